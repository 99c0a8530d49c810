"""One worker for the whole session, started when a test first needs it."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope='session')
def _worker():
  from tff_codist import runtime

  yield runtime
  runtime.install('stock').close()


@pytest.fixture
def stock(_worker):
  """TFF's worker as the default context of the test."""
  return _worker.install('stock')
