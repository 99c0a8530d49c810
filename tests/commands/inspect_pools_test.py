"""bin/inspect_pools.py on the digits."""

import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(*flags):
  return subprocess.run(
    [sys.executable, str(_ROOT / 'bin' / 'inspect_pools.py'), *flags],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_shows_pools_without_a_worker(tmp_path):
  out = tmp_path / 'out'
  done = _run(
    *('--preset=digits', '--quick', f'--out={out}'),
    *('--pools.names', 'small', 'medium', 'large'),
    *('--pools.models', 'small', 'medium', 'large'),
    *('--pools.clients_fraction', '1', '0.5', '0.25'),
    '--pools.cohort_size=4',
    '--merged.distillation_weight=0.5',
  )
  assert (done.returncode, done.stderr) == (0, '')
  lines = done.stdout.splitlines()
  assert lines[0].startswith('digits, seed 1: ')
  assert lines[0].endswith(' clients in overlapping pools')
  rows = [line.split() for line in lines]
  assert ['share', 'of', 'all', '100.0%', '50.0%', '25.0%'] in rows
  assert 'Distillation data: ' in done.stdout
  assert lines[-2:] == [str(out / 'pools.png'), str(out / 'sizes.png')]
  assert sorted(path.name for path in out.iterdir()) == [
    'pools.png',
    'sizes.png',
  ]


def test_wrong_input_is_one_sentence_and_writes_nothing(tmp_path):
  done = _run('--pools.models', 'small', 'larg', f'--out={tmp_path / "out"}')
  assert done.returncode == 2
  assert done.stderr.startswith('error: Found ')
  assert done.stderr.count('\n') == 1
  assert not list(tmp_path.iterdir())
