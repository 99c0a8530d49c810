"""bin/quickstart.py on a few rounds."""

import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(*flags):
  return subprocess.run(
    [sys.executable, str(_ROOT / 'bin' / 'quickstart.py'), *map(str, flags)],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_prints_a_table_of_models_and_algorithms_and_pictures(tmp_path):
  done = _run('--quick', '--seeds=1', f'--out={tmp_path / "out"}')
  assert done.returncode == 0, done.stderr
  for word in (
    'small',
    'large',
    'fed_avg',
    'periodic_codist',
    'merged_codist',
  ):
    assert word in done.stdout
  pictures = [
    pathlib.Path(line)
    for line in done.stdout.splitlines()
    if line.endswith('.png')
  ]
  assert pictures
  assert all(path.read_bytes()[:4] == b'\x89PNG' for path in pictures)


def test_wrong_input(tmp_path):
  done = _run('--seeds=0', f'--out={tmp_path / "out"}')
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith('error: Found --seeds 0')
  assert not (tmp_path / 'out').exists()
