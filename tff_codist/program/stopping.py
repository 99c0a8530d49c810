"""Ending a run on a signal without losing its last round."""

import contextlib
import signal
from collections.abc import Iterator


class StopRequested(BaseException):
  """Raised inside a round that may be given up.

  Attributes:
    signum: The signal.
    has_checkpoint: Whether the run can go on from a checkpoint.
  """

  def __init__(self, signum: int):
    super().__init__(signum)
    self.signum = signum
    self.has_checkpoint = False


class StopOnSignal(contextlib.AbstractContextManager):
  """Turns signals into `StopRequested` at points that allow it.

  SIGINT (Ctrl-C), SIGTERM, and SIGHUP (a terminal or connection that closes),
  unless that is ignored, as under nohup.

  A signal ends a round at once, since the state before it is a value that is
  still there; while files are written it waits until they are.
  """

  _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

  def __enter__(self) -> 'StopOnSignal':
    self._requested: int = 0
    self._is_interruptible = False
    self._previous = {
      signum: signal.signal(signum, self._handle)
      for signum in self._SIGNALS
      if signum != signal.SIGHUP
      or signal.getsignal(signum) is not signal.SIG_IGN
    }
    return self

  def __exit__(self, *unused_exc_info) -> None:
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Marks work that a signal may end, also one that has already come."""
    self._is_interruptible = True
    try:
      if self._requested:
        raise StopRequested(self._requested)
      yield
    finally:
      self._is_interruptible = False

  def _handle(self, signum, unused_frame) -> None:
    self._requested = signum
    if self._is_interruptible:
      self._is_interruptible = False
      raise StopRequested(signum)
