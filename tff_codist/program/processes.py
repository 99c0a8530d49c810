"""Many trainings, each a process of bin/train.py.

A process of its own gives a training its memory back when it ends, and lets
one that fails fail alone.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tff_codist import errors
from tff_codist.program import stopping

_POLL_SECONDS = 1.0
# Before a command in a log.
_PROMPT = '$ '
# Becomes a command that gets SIGTERM when its parent dies, by kill -9 for
# instance; PR_SET_PDEATHSIG is 1 in <linux/prctl.h>.
_END_WITH_PARENT = (
  'import ctypes, os, signal, sys; '
  'ctypes.CDLL(None).prctl(1, signal.SIGTERM); '
  'os.getppid() == int(sys.argv[1]) or sys.exit(1); '
  'os.execv(sys.argv[2], sys.argv[2:])'
)


class Training(NamedTuple):
  """A training to run.

  Attributes:
    command: The program and its arguments.
    run_dir: Its run folder.
    log: The file that takes its output, appended to.
  """

  command: tuple[str, ...]
  run_dir: pathlib.Path
  log: pathlib.Path


class Ended(NamedTuple):
  """A training that has ended.

  Attributes:
    training: The training.
    exit_code: As of `bin/train.py`: 0 done, 1 failed, 2 wrong input, 128 plus
      a signal's number if it was stopped; negative if a signal killed it.
  """

  training: Training
  exit_code: int


def run(
  trainings: Iterable[Training],
  *,
  jobs: int,
  watch: Callable[[Training], bool] = lambda training: True,
) -> Iterator[Ended]:
  """Runs trainings, some at a time, and yields each as it ends.

  The next training is taken only when there is room for it, so that it may
  depend on those that have been yielded. A signal, see `StopOnSignal`, or the
  end of this process, however it comes, stops the ones that run; each writes a
  checkpoint, with which it goes on when it is run again.

  Args:
    trainings: The trainings.
    jobs: How many run at a time, at least 1.
    watch: Called about once a second with each training that runs; false stops
      it.

  Yields:
    The trainings in the order in which they end.

  Raises:
    StorageError: If a log cannot be written; the processes have ended.
    StopRequested: After a signal, when all processes have ended; what they did
      is in their checkpoints.
  """
  waiting = iter(trainings)
  running: dict[Training, subprocess.Popen] = {}
  stopped: set[Training] = set()
  with stopping.StopOnSignal() as stop, contextlib.ExitStack() as stack:
    stack.callback(_stop, running.values())
    is_exhausted = False
    while running or not is_exhausted:
      while len(running) < jobs and not is_exhausted:
        training = next(waiting, None)
        if training is None:
          is_exhausted = True
        else:
          running[training] = _start(training)
      try:
        with stop.interruptible():
          time.sleep(_POLL_SECONDS if running else 0)
      except stopping.StopRequested as stopped_here:
        stopped_here.has_checkpoint = True
        raise
      for training, process in list(running.items()):
        if process.poll() is not None:
          del running[training]
          yield Ended(training, process.returncode)
        elif training not in stopped and not watch(training):
          process.send_signal(signal.SIGTERM)
          stopped.add(training)


def train_command(*flags: str) -> tuple[str, ...]:
  """Returns the command that runs this clone's bin/train.py.

  Args:
    *flags: Its flags.
  """
  script = pathlib.Path(__file__).resolve().parents[2] / 'bin' / 'train.py'
  return (sys.executable, str(script), *flags)


def last_words(log: pathlib.Path) -> str:
  """Returns the line of a log that says why a training ended.

  Of its last start, the last error of this package, after which libraries may
  still print; else the last line, as of a traceback.

  Args:
    log: The file; it may be missing.
  """
  if not log.exists():
    return ''
  lines: list[str] = []
  for line in log.read_text(errors='replace').splitlines():
    if line.startswith(_PROMPT):
      lines = []  # The file is appended to; here begins a later start.
    elif line.strip():
      lines.append(line.strip())
  own = [line for line in lines if line.startswith('error: ')]
  return (own or lines or [''])[-1]


def _start(training: Training) -> subprocess.Popen:
  _begin_log(training)
  with open(training.log, 'ab') as log:
    # A session of its own: Ctrl-C reaches it once, through this process.
    return subprocess.Popen(
      [
        *(sys.executable, '-I', '-S', '-c', _END_WITH_PARENT),
        f'{os.getpid()}',
        *training.command,
      ],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )


def _begin_log(training: Training) -> None:
  try:
    training.log.parent.mkdir(parents=True, exist_ok=True)
    with open(training.log, 'ab') as log:
      log.write(f'{_PROMPT}{shlex.join(training.command)}\n'.encode())
  except OSError as error:
    raise errors.StorageError(
      f'a log {training.log} that cannot be written ({error.strerror})',
      expected='a writable folder with free space',
      fix='free space, then start the command again to resume',
    ) from error


def _stop(processes: Iterable[subprocess.Popen]) -> None:
  processes = list(processes)
  for process in processes:
    process.send_signal(signal.SIGTERM)
  for process in processes:
    process.wait()
