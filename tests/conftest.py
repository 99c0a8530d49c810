"""Runtimes for the whole session, started when a test first needs them."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

pytest_plugins = ['tests.run_folders']


@pytest.fixture(scope='session')
def _runtimes():
  from tff_codist import runtime

  yield runtime
  for name in runtime.runtimes.names():
    runtime.install(name).close()


@pytest.fixture
def in_process(_runtimes):
  """The runtime in this process as the default context of the test."""
  return _runtimes.install('in_process')


@pytest.fixture
def stock(_runtimes):
  """TFF's worker as the default context of the test."""
  return _runtimes.install('stock')


@pytest.fixture(params=['in_process', 'stock'])
def context(request, _runtimes):
  """Each runtime in turn as the default context of the test."""
  return _runtimes.install(request.param)
