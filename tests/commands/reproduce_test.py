"""bin/reproduce.py as a process; its trainings are in tests/reproduction."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['codist_cifar10'], "use 'codist_cifar100'"),
    (['privacy', '--seeds', 'many'], "invalid int value: 'many'"),
    (['privacy', '--report_only', '--jobs', '2'], '--jobs with --report_only'),
    (['privacy', '--scale', 'quick', '--publish'], '--publish of a table of'),
  ],
)
def test_wrong_input_ends_with_one_message_and_writes_nothing(
  flags, message, tmp_path
):
  done = subprocess.run(
    [sys.executable, str(_ROOT / 'bin' / 'reproduce.py'), *flags],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())
