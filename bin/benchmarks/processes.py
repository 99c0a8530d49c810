"""Measurements in processes of their own, which take turns.

What is compared is run by turns, so that a noisy machine is noisy for all of
it, and in processes apart, so that memory, threads and caches are its own. A
process that does not have the turn waits at a pipe.
"""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Optional

from tff_codist import errors
from tff_codist import runtime

# A generator function. What runs between two `yield`s is a turn, and what the
# second one yields is the turn's result. The first `yield`, of `None`, comes
# when everything is imported: imports are nobody's turn.
Measurement = Callable[..., Generator]


class Rounds(NamedTuple):
  """How many turns a measurement of rounds takes.

  Attributes:
    warmup: Rounds that are not counted, at least 1: the first one compiles.
    counted: Rounds that come after them, at least 1.
  """

  warmup: int
  counted: int


def take_turns(measurements: Mapping[str, tuple]) -> dict[str, list]:
  """Runs measurements by turns, each in a new process, until all have ended.

  Args:
    measurements: {name: (measurement, *arguments)}, all of them picklable.

  Returns:
    {name: the results of its turns}.

  Raises:
    CodistError: If a process ends before its measurement.
  """
  results = {name: [] for name in measurements}
  with contextlib.ExitStack() as stack:
    # Processes that are ended do not remove their temporary files.
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    processes = [
      stack.enter_context(_Process(name, folder, *measurement))
      for name, measurement in measurements.items()
    ]
    for process in processes:
      process.receive()
    for turn in itertools.zip_longest(*processes):
      for name, result in zip(results, turn):
        if result is not None:
          results[name].append(result)
  return results


def install_runtime(name: str):
  """Installs a runtime that runs everything itself; see `runtime.install`."""
  # Else it would run on TFF's worker what it cannot compile.
  options = {'strict': True} if name == 'in_process' else {}
  return runtime.install(name, **options)


def memory_bytes(field: str, pid: Optional[int] = None) -> int:
  """Returns resident memory of a process, as the kernel counts it.

  Args:
    field: `'VmRSS'`, what it has now, or `'VmHWM'`, the most that it ever had.
    pid: The process; `None` is this one.
  """
  status = pathlib.Path(f'/proc/{pid or "self"}/status').read_text()
  fields = dict(line.split(':', 1) for line in status.splitlines())
  return int(fields[field].split()[0]) * 1024


class _Process:
  """A measurement in a new Python process, an iterator over its turns.

  The process ends with the `with` block. Its temporary files are in `folder`.
  """

  def __init__(
    self, name: str, folder: str, measurement: Measurement, *arguments: Any
  ):
    # A forked process would begin with the memory and locks of this one.
    spawn = multiprocessing.get_context('spawn')
    self._pipe, theirs = spawn.Pipe()
    self._process = spawn.Process(
      target=_serve,
      args=(theirs, folder, measurement, *arguments),
      name=name,
      daemon=True,
    )
    self._process.start()
    theirs.close()  # Else its death would not end the pipe.

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.terminate()
    self._process.join()
    self._pipe.close()

  def __iter__(self):
    return self

  def __next__(self) -> Any:
    """Lets the process take a turn, and returns the turn's result."""
    # If it is dead, `receive` says so.
    with contextlib.suppress(BrokenPipeError):
      self._pipe.send(None)
    result = self.receive()
    if result is None:
      raise StopIteration
    return result

  def receive(self) -> Any:
    """Waits for what the measurement yields; `None` is also its end."""
    try:
      return self._pipe.recv()
    except (EOFError, ConnectionResetError):
      self._process.join()
      raise errors.CodistError(
        f'that the process of {self._process.name!r} ended with exit code'
        f' {self._process.exitcode}',
        expected='one that measures to its end',
        fix='see what it wrote above; -9 often means too little memory',
      ) from None


def _serve(
  pipe, folder: str, measurement: Measurement, *arguments: Any
) -> None:
  """Takes a turn whenever the pipe says so, until it is ended."""
  tempfile.tempdir = folder
  # Ctrl-C reaches every process; the one that has started the others ends them.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # Else the first one to use a GPU takes all of its memory.
  os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')
  with contextlib.suppress(EOFError, BrokenPipeError):
    # Having ended, it waits too: even the end of Python takes a second's work.
    for result in itertools.chain(measurement(*arguments), [None]):
      pipe.send(result)
      pipe.recv()
  if 'tensorflow_federated' in sys.modules:
    runtime.uninstall()
