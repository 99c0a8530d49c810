"""bin/train.py and bin/evaluate.py as a user runs them, on digits."""

import csv
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SMALL = (
  '--preset=digits',
  '--quick',
  '--program.rounds_per_checkpoint=1',
  '--program.rounds=4',
  # The server validates the teachers and keeps the worst from teaching.
  *('--task.validation_clients=2', '--pools.cohort_size', '10', '3'),
  *('--distillation.min_teacher_accuracy=0.05',),
)


def _command(name, *flags):
  return [sys.executable, str(_ROOT / 'bin' / name), *map(str, flags)]


def _run(name, *flags):
  return subprocess.run(
    _command(name, *flags),
    capture_output=True,
    text=True,
    timeout=180,
    check=False,
  )


def _metrics(run_dir):
  """Returns the metrics that a resumed run must repeat, by round."""
  with open(run_dir / 'metrics.csv', newline='') as file:
    return {
      int(row['round']): {
        key: value for key, value in row.items() if not key.startswith('time/')
      }
      for row in csv.DictReader(file)
    }


def _last_state(run_dir):
  path = max((run_dir / 'checkpoints').glob('*.npz'))
  with np.load(path, allow_pickle=False) as archive:
    return path.name, {key: archive[key] for key in archive.files}


def _assert_same_run(one, other):
  assert _metrics(one) == _metrics(other)
  name, state = _last_state(one)
  other_name, other_state = _last_state(other)
  assert name == other_name
  assert state.keys() == other_state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(value, other_state[key])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that was never stopped: its folder and its output."""
  run_dir = tmp_path_factory.mktemp('runs') / 'whole'
  done = _run('train.py', *_SMALL, f'--run_dir={run_dir}')
  assert done.returncode == 0, done.stderr
  return run_dir, done


def test_run_folder_is_complete(whole):
  run_dir, done = whole
  assert (run_dir / 'DONE').exists()
  assert not (run_dir / 'FAILED.txt').exists()
  config = json.loads((run_dir / 'config.json').read_text())
  assert config['program']['rounds'] == 4
  environment = json.loads((run_dir / 'environment.json').read_text())
  assert environment['packages']['tensorflow-federated'] == '0.87.0'
  metrics = _metrics(run_dir)
  assert list(metrics) == [0, 1, 2, 3, 4]
  assert float(metrics[4]['eval/large/accuracy']) > 0
  assert 0 <= float(metrics[4]['exchange/large/calibration_error']) <= 1
  assert float(metrics[4]['exchange/small/teachers_refused']) in (0, 1)
  # (|θ| + 1) floats of 4 bytes from each of 10 clients.
  assert float(metrics[1]['cost/small/uplink_bytes']) == 4 * 2411 * 10
  assert float(metrics[1]['cost/small/downlink_bytes']) == 4 * 2410 * 10
  assert list((run_dir / 'events').glob('events.out.tfevents*'))
  assert 'round 4/4' in done.stderr
  assert 'small' in done.stdout
  pictures = [line for line in done.stdout.splitlines() if '.png' in line]
  assert len(pictures) >= 4
  assert all(pathlib.Path(line).stat().st_size > 5000 for line in pictures)


def test_models_load_in_plain_keras(whole):
  run_dir, _ = whole
  script = (
    'import sys, keras, numpy as np\n'
    'model = keras.models.load_model(sys.argv[1])\n'
    'print(model.predict(np.zeros((2, 8, 8, 1)), verbose=0).shape)\n'
    'assert "tff_codist" not in sys.modules\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script, str(run_dir / 'models' / 'large.keras')],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
    cwd='/',
  )
  assert '(2, 10)' in done.stdout


def test_evaluate_repeats_the_last_evaluation(whole):
  run_dir, _ = whole
  done = _run('evaluate.py', f'--run_dir={run_dir}')
  assert done.returncode == 0, done.stderr
  lines = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[1:])
  expected = float(_metrics(run_dir)[4]['eval/large/accuracy'])
  assert float(lines['eval/large/accuracy']) == pytest.approx(
    expected, abs=1e-4
  )
  assert done.stdout.startswith('round 4')


def test_finished_run_is_reported_again_without_training(whole):
  run_dir, _ = whole
  before = _last_state(run_dir)[0]
  started = (run_dir / 'metrics.csv').stat().st_mtime_ns
  done = _run('train.py', *_SMALL, f'--run_dir={run_dir}')
  assert done.returncode == 0, done.stderr
  assert (run_dir / 'metrics.csv').stat().st_mtime_ns == started
  assert _last_state(run_dir)[0] == before


@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGTERM])
def test_stopped_run_resumes_bit_equal(whole, tmp_path, signum):
  run_dir = tmp_path / 'stopped'
  flags = (*_SMALL, f'--run_dir={run_dir}')
  process = subprocess.Popen(
    _command('train.py', *flags),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  first = run_dir / 'checkpoints' / 'round_00000001.npz'
  deadline = time.monotonic() + 120
  while not first.exists() and time.monotonic() < deadline:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)
  process.send_signal(signum)
  _, stderr = process.communicate(timeout=60)
  assert not (run_dir / 'DONE').exists()
  if signum == signal.SIGTERM:
    assert process.returncode == 128 + signal.SIGTERM
    assert 'same command goes on' in stderr
  done = _run('train.py', *flags)
  assert done.returncode == 0, done.stderr
  _assert_same_run(run_dir, whole[0])


def test_other_configuration_in_the_folder_is_refused(whole):
  run_dir, _ = whole
  done = _run('train.py', *_SMALL, '--seed=2', f'--run_dir={run_dir}')
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith('error: Found')
  assert 'seed: 1 there, 2 now' in done.stderr
  assert 'Traceback' not in done.stderr


def test_corrupt_checkpoint_of_a_run_falls_back(whole, tmp_path):
  run_dir = tmp_path / 'copy'
  subprocess.run(['cp', '-r', str(whole[0]), str(run_dir)], check=True)
  (run_dir / 'DONE').unlink()
  newest = max((run_dir / 'checkpoints').glob('*.npz'))
  newest.write_bytes(newest.read_bytes()[:-1])
  done = _run('train.py', *_SMALL, f'--run_dir={run_dir}')
  assert done.returncode == 0, done.stderr
  assert 'Falling back' in done.stderr
  _assert_same_run(run_dir, whole[0])
