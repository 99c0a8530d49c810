import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tff_codist import errors
from tff_codist.program import processes

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def training(tmp_path):
  """Returns a function from a name and Python code to a training."""

  def make(name, code):
    return processes.Training(
      (sys.executable, '-c', code), tmp_path / name, tmp_path / f'{name}.log'
    )

  return make


def test_yields_exit_codes_and_keeps_the_output(training):
  trainings = [
    training('good', 'print("hello")'),
    training('bad', 'import sys; print("no", file=sys.stderr); sys.exit(3)'),
  ]
  ended = {e.training: e.exit_code for e in processes.run(trainings, jobs=2)}
  assert ended == {trainings[0]: 0, trainings[1]: 3}
  for one, said in zip(trainings, ('hello\n', 'no\n')):
    command, output = one.log.read_text().split('\n', 1)
    assert command.startswith('$ ')
    assert one.command[0] in command
    assert output == said


def test_log_that_cannot_be_written(training):
  one = training('one', '')
  one.log.mkdir()
  with pytest.raises(errors.StorageError, match=r'one\.log that cannot be wri'):
    list(processes.run([one], jobs=1))


def test_takes_the_next_training_after_it_has_yielded_the_one_before(training):
  seen = []

  def follow():
    for name in ('a', 'b', 'c'):
      seen.append(f'take {name}')
      yield training(name, '')

  for ended in processes.run(follow(), jobs=1):
    seen.append(f'end {ended.training.run_dir.name}')
  assert seen == ['take a', 'end a', 'take b', 'end b', 'take c', 'end c']


def test_runs_no_more_than_jobs_at_a_time(training, tmp_path):
  # Each notes how many others are there while it is.
  code = (
    'import pathlib, time, os; p = pathlib.Path({!r}); '
    'p.mkdir(exist_ok=True); own = p / str(os.getpid()); own.touch(); '
    'print(len(list(p.iterdir()))); time.sleep(0.2); own.unlink()'
  ).format(str(tmp_path / 'live'))
  trainings = [training(name, code) for name in 'abcd']
  assert len(list(processes.run(trainings, jobs=2))) == 4
  assert max(int(t.log.read_text().splitlines()[-1]) for t in trainings) <= 2


def test_watch_stops_a_training_once(training):
  code = (
    'import signal, sys, time\n'
    'def handle(*_):\n'
    '  print("asked", flush=True)\n'
    '  time.sleep(2.5)\n'
    '  sys.exit(143)\n'
    'signal.signal(signal.SIGTERM, handle)\n'
    'print("ready", flush=True)\n'
    'time.sleep(60)\n'
  )
  one = training('one', code)

  def watch(running):
    return not running.log.read_text().endswith('ready\n')

  assert list(processes.run([one], jobs=1, watch=watch)) == [(one, 143)]
  assert one.log.read_text().endswith('\nready\nasked\n')


def _wait(holds):
  deadline = time.monotonic() + 60
  while not holds():
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.fixture
def waiting(tmp_path):
  """A process that runs a training that waits, and the training's log."""
  child = (
    'import signal, sys, time; '
    'end = lambda *_: (print("saved"), sys.exit(143)); '
    'signal.signal(signal.SIGTERM, end); '
    'print("ready", flush=True); time.sleep(60)'
  )
  log = tmp_path / 'log'
  parent = (
    f'import signal, sys, pathlib; sys.path.insert(0, {str(_ROOT)!r})\n'
    # The tests themselves may run under nohup, which children inherit.
    'signal.signal(signal.SIGHUP, signal.SIG_DFL)\n'
    'from tff_codist.program import processes, stopping\n'
    f'one = processes.Training((sys.executable, "-c", {child!r}), '
    f'pathlib.Path("run"), pathlib.Path({str(log)!r}))\n'
    'try:\n'
    '  list(processes.run([one], jobs=1))\n'
    'except stopping.StopRequested as stopped:\n'
    '  print("stopped by", stopped.signum, stopped.has_checkpoint)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', parent], stdout=subprocess.PIPE, text=True
  )
  _wait(lambda: log.exists() and log.read_text().endswith('ready\n'))
  yield process, log
  process.kill()


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_trainings_first(signum, waiting):
  process, log = waiting
  process.send_signal(signum)
  out, _ = process.communicate(timeout=60)
  assert out == f'stopped by {int(signum)} True\n'
  assert log.read_text().endswith('\nready\nsaved\n')


def test_kill_stops_the_trainings_too(waiting):
  process, log = waiting
  process.kill()
  process.communicate(timeout=60)
  _wait(lambda: log.read_text().endswith('\nready\nsaved\n'))


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    (
      '$ a\nround 1\nerror: Found x.\nAttributeError: late\n',
      'error: Found x.',
    ),
    ('$ a\nTraceback\nKeyError: 1\n\n', 'KeyError: 1'),
    ('$ a\nerror: Found x.\n$ a\nround 2\n', 'round 2'),
    ('$ a\n', ''),
  ],
)
def test_last_words(text, words, tmp_path):
  (tmp_path / 'log').write_text(text)
  assert processes.last_words(tmp_path / 'log') == words


def test_last_words_without_a_log(tmp_path):
  assert processes.last_words(tmp_path / 'log') == ''


def test_train_command_is_this_clones():
  command = processes.train_command('--preset', 'digits')
  assert command == (
    sys.executable,
    str(_ROOT / 'bin' / 'train.py'),
    '--preset',
    'digits',
  )
