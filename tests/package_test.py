"""The package's public names, and what importing it does."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

import tff_codist
from tff_codist import errors

_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('name', tff_codist.__all__)
def test_public_names_exist_and_are_documented(name):
  assert getattr(tff_codist, name).__doc__


def test_unknown_name():
  with pytest.raises(AttributeError, match='no_such_name'):
    tff_codist.no_such_name  # noqa: B018


def test_import_loads_no_tensorflow():
  script = (
    'import sys, tff_codist, tff_codist.reports, tff_codist.runtime\n'
    'assert "tensorflow" not in sys.modules\n'
    'assert tff_codist.load_run\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run(
    [sys.executable, '-c', script], check=True, timeout=60, cwd=_ROOT
  )


def test_missing_tff_points_to_the_way_that_works(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.EnvironmentSetupError, match='bin/setup') as caught:
    tff_codist.check_installation()
  assert caught.value.exit_code == 3
