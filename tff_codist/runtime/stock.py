"""TFF's C++ worker as an execution context that neither hangs nor leaks.

TFF's own context waits without limit for a worker that cannot start, retries
without limit on one that has died, shares a port with a stranger's worker
(gRPC listens with SO_REUSEPORT) and leaves its child behind at exit. Here the
worker is the child of a guard process (`_worker_guard.py`) that ends it
whenever this process ends; every wait has a limit and watches the worker; the
port is reserved for as long as the worker lives.

Compilation, serialization and execution are TFF's own pieces.
"""

import atexit
import contextlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Optional

import grpc
import tensorflow_federated as tff

from tff_codist import errors

_logger = logging.getLogger(__name__)

_GUARD_PATH = pathlib.Path(__file__).with_name('_worker_guard.py')
_PORT_ATTEMPTS = 3
_PORT_TAKEN = 'Address already in use'
_STARTUP_POLL_SECONDS = 0.01
# A broken connection is seen before the guard has reaped the worker.
_DEATH_REPORT_SECONDS = 2.0
_STOP_SECONDS = 10.0
_MAX_EXECUTORS = 10  # As in TFF's own factory.
_MAX_MESSAGE_BYTES = 2_000_000_000  # As in TFF's own context.
_CHANNEL_OPTIONS = (
  ('grpc.max_message_length', _MAX_MESSAGE_BYTES),
  ('grpc.max_receive_message_length', _MAX_MESSAGE_BYTES),
  ('grpc.max_send_message_length', _MAX_MESSAGE_BYTES),
  # With `http_proxy` set, gRPC would look for this machine on the proxy.
  ('grpc.enable_http_proxy', 0),
  # One worker, one connection: never one that another context opened.
  ('grpc.use_local_subchannel_pool', 1),
)

_FIX = 'run bin/doctor.py; if it finds nothing, report the words above'
_FIX_FOR_SIGNAL = {
  signal.SIGKILL: (
    'if nobody killed it, the kernel did for lack of memory: lower the'
    ' number of clients in a round or use a machine with more memory'
  ),
  signal.SIGILL: 'use a machine whose CPU has AVX (bin/doctor.py checks it)',
}


class _LostCallError(Exception):
  """A call that failed because its worker is gone or forgot its executor."""


def _default_worker_path() -> str:
  return str(pathlib.Path(tff.__file__).parent / 'data' / 'worker_binary')


def _reserve_port() -> socket.socket:
  """Returns a bound socket whose port only this user's worker can listen on.

  The socket never listens, so that it receives no connection, and shares the
  port with sockets that also set SO_REUSEPORT, as the worker's does. As long as
  it is open the system gives the port to nobody who asks for a free one.
  """
  if socket.has_dualstack_ipv6():
    family, address = socket.AF_INET6, '::'
  else:
    family, address = socket.AF_INET, '0.0.0.0'
  reservation = socket.socket(family, socket.SOCK_STREAM)
  try:
    if family == socket.AF_INET6:
      reservation.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((address, 0))
  except OSError:
    reservation.close()
    raise
  return reservation


def _accepts_connections(port: int) -> bool:
  try:
    with socket.create_connection(('127.0.0.1', port), timeout=1.0):
      return True
  except OSError:
    return False


class _Worker:
  """One worker process, its guard, and the connection to it.

  Attributes:
    pid: Process id of the worker, once `wait_until_ready` has returned.
    stub: The connection to it, likewise.
    executors: Executors on it by cardinalities, least recently used first.
  """

  def __init__(self, worker_path: str, *, max_concurrent_computation_calls):
    self.pid = None
    self._channel = None
    self.stub = None
    self.executors = {}
    self._ending = None
    self._lock = threading.Lock()
    self._reservation = _reserve_port()
    self._port = self._reservation.getsockname()[1]
    command = [
      worker_path,
      f'--port={self._port}',
      f'--max_concurrent_computation_calls={max_concurrent_computation_calls}',
    ]
    # Its own session: Ctrl-C at the terminal reaches the program alone, which
    # may still need the worker to finish what it is doing.
    self._guard = subprocess.Popen(
      [sys.executable, '-I', '-S', _GUARD_PATH, str(os.getpid()), *command],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      bufsize=0,  # What `readline` leaves is for `communicate`.
      env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'},
      start_new_session=True,
    )

  def is_alive(self) -> bool:
    return self._ending is None and self._guard.poll() is None

  def wait_until_ready(self, timeout_seconds: float) -> bool:
    """Returns whether the worker answers; False if dead or out of time."""
    deadline = time.monotonic() + timeout_seconds
    while not _accepts_connections(self._port):
      if not self.is_alive() or time.monotonic() > deadline:
        return False
      time.sleep(_STARTUP_POLL_SECONDS)
    pid_line = self._guard.stdout.readline()
    if not pid_line:
      return False
    self.pid = int(pid_line.split()[1])
    self._channel = grpc.insecure_channel(
      f'127.0.0.1:{self._port}', _CHANNEL_OPTIONS
    )
    self.stub = _Stub(self, self._channel)
    return True

  def wait_for_death(self, timeout_seconds: float) -> bool:
    """Returns whether the worker is gone, now or within the time-out."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      if self._ending is None:
        self._guard.wait(timeout_seconds)
    return not self.is_alive()

  def stop(self) -> tuple[Optional[int], str]:
    """Ends the worker, if need be, and everything held for it.

    Returns:
      The worker's exit status as `subprocess` has it, None if unknown, and its
      last words.
    """
    with self._lock:
      if self._ending is None:
        self._ending = self._stop()
      return self._ending

  def _stop(self) -> tuple[Optional[int], str]:
    # A byte is the order to stop. Closing the pipe alone would be none while a
    # fork of this process holds it open. Both fail if the guard has ended.
    with contextlib.suppress(OSError, ValueError):
      self._guard.stdin.write(b'.')
    try:
      report, _ = self._guard.communicate(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
      self._guard.kill()  # The kernel kills the worker with its guard.
      report, _ = self._guard.communicate()
    lines = report.decode(errors='replace').splitlines()
    if self._channel is not None:
      self._channel.close()
    self._reservation.close()
    if lines and lines[0].startswith('pid '):
      del lines[0]
    if not lines:
      return None, ''
    return int(lines[0].split()[1]), '\n'.join(lines[1:]).strip()


class _Stub(tff.framework.RemoteExecutorGrpcStub):
  """Gives errors of the worker, not of a computation, a type of their own.

  TFF's contexts retry a call whose error is a `tff.framework.RetryableError`
  for as long as it fails. No such error leaves this stub.
  """

  def __init__(self, worker: _Worker, channel: grpc.Channel):
    super().__init__(channel)
    self._worker = worker

  def _call(self, method, request):
    try:
      return method(request)
    # `ValueError` is what gRPC raises on a channel that has been closed.
    except (grpc.RpcError, ValueError) as error:
      # Errors of a computation have other codes than the retryable ones.
      is_lost = isinstance(error, tff.framework.RetryableError)
      if self._worker.wait_for_death(_DEATH_REPORT_SECONDS if is_lost else 0.0):
        is_lost = True
      if is_lost:
        raise _LostCallError from error
      raise

  def _release(self, method, request):
    # Called as values are garbage collected, maybe long after their worker.
    if self._worker.is_alive():
      with contextlib.suppress(grpc.RpcError, ValueError, _LostCallError):
        return self._call(method, request)
    return None

  def get_executor(self, request):
    return self._call(super().get_executor, request)

  def create_value(self, request):
    return self._call(super().create_value, request)

  def create_struct(self, request):
    return self._call(super().create_struct, request)

  def create_call(self, request):
    return self._call(super().create_call, request)

  def create_selection(self, request):
    return self._call(super().create_selection, request)

  def compute(self, request):
    return self._call(super().compute, request)

  def dispose(self, request):
    return self._release(super().dispose, request)

  def dispose_executor(self, request):
    return self._release(super().dispose_executor, request)


class _ExecutorFactory(tff.framework.ExecutorFactory):
  """Executors on whichever worker a context now has.

  `tff.framework.ResourceManagingExecutorFactory` forgets the executors that it
  drops from its cache without closing them. The worker keeps each of those,
  with eight threads and all graphs that it has run, as long as it lives: one
  per number of clients that a round ever had.
  """

  def __init__(self, get_worker):
    self._get_worker = get_worker

  def create_executor(self, cardinalities):
    cardinalities.setdefault(tff.CLIENTS, 0)
    worker = self._get_worker()
    key = _cardinalities_key(cardinalities)
    executor = worker.executors.pop(key, None)
    if executor is None:
      executor = tff.framework.RemoteExecutor(worker.stub)
      executor.set_cardinalities(cardinalities)
    worker.executors[key] = executor  # Now the one most recently used.
    while len(worker.executors) > _MAX_EXECUTORS:
      worker.executors.pop(next(iter(worker.executors))).close()
    return executor

  def clean_up_executor(self, cardinalities):
    cardinalities.setdefault(tff.CLIENTS, 0)
    key = _cardinalities_key(cardinalities)
    executor = self._get_worker().executors.pop(key, None)
    if executor is not None:
      executor.close()


def _cardinalities_key(cardinalities):
  return frozenset((str(k), v) for k, v in cardinalities.items())


class StockContext(tff.framework.SyncContext):
  """Runs computations on TFF's C++ worker, on the CPU.

  A worker that dies is started again, with one warning. A computation during
  which it died is run once more, which changes no result: its arguments are
  values. An error of the computation itself is raised as it is, at once.

  Attributes:
    closed: Whether `close` was called; such a context runs nothing any more.
    devices: Where clients run: the CPU is all that the worker can use.
    worker_pid: Process id of the running worker.
  """

  devices = ('CPU',)

  def __init__(
    self,
    *,
    startup_timeout_seconds: float = 60.0,
    max_concurrent_computation_calls: int = -1,
    worker_path: Optional[str] = None,
  ):
    """Starts the worker, which takes a fraction of a second.

    Args:
      startup_timeout_seconds: How long a worker may take to answer, > 0.
      max_concurrent_computation_calls: How many calls of one computation the
        worker runs at a time, which bounds its memory; -1 is no limit.
      worker_path: Worker executable; None is the one that TFF ships.

    Raises:
      WorkerError: If the worker does not start.
    """
    self._startup_timeout_seconds = startup_timeout_seconds
    self._max_concurrent_computation_calls = max_concurrent_computation_calls
    self._worker_path = worker_path or _default_worker_path()
    self._owner_pid = os.getpid()
    self._lock = threading.RLock()
    self._closed = False
    self._worker = self._start_worker()
    atexit.register(self.close)
    self._context = tff.framework.SyncExecutionContext(
      executor_fn=_ExecutorFactory(lambda: self._worker),
      compiler_fn=tff.backends.native.desugar_and_transform_to_native,
      transform_args=tff.tensorflow.transform_args,
      transform_result=tff.tensorflow.transform_result,
    )

  @property
  def closed(self) -> bool:
    return self._closed

  @property
  def worker_pid(self) -> int:
    return self._worker.pid

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self.close()

  def close(self) -> None:
    """Ends the worker. Calling it again does nothing."""
    # A fork that exits must not take its parent's worker with it.
    if os.getpid() != self._owner_pid:
      return
    with self._lock:
      self._closed = True
      atexit.unregister(self.close)
      self._worker.stop()

  def invoke(self, comp, arg):
    self._ensure_worker()
    try:
      return self._context.invoke(comp, arg)
    except _LostCallError:
      worker = self._ensure_worker()
    try:
      return self._context.invoke(comp, arg)
    except _LostCallError as error:
      if worker.is_alive():
        raise error.__cause__ from None
      status, last_words = worker.stop()
      raise _worker_error(
        "that TFF's worker died during a computation and, started again,"
        ' died during the same one',
        status=status,
        last_words=last_words,
        expected='a worker that survives it',
      ) from error

  def _ensure_worker(self) -> _Worker:
    """Returns the worker, started again if it is found dead."""
    if os.getpid() != self._owner_pid:
      raise errors.WorkerError(
        'a stock runtime that was started before this process was forked',
        expected='one that was started in this process',
        fix="start processes with multiprocessing's 'spawn' method and"
        ' install the runtime in each',
      )
    with self._lock:
      if self._closed:
        raise errors.WorkerError(
          'a stock runtime that has been closed',
          expected='an open one',
          fix='install the runtime again',
        )
      if not self._worker.is_alive():
        status, last_words = self._worker.stop()
        _logger.warning(
          "TFF's worker died (%s); starting it again.%s",
          _describe_status(status),
          f' Its last words: {_last_line(last_words)}' if last_words else '',
        )
        self._worker = self._start_worker()
      return self._worker

  def _start_worker(self) -> _Worker:
    for attempt in range(1, _PORT_ATTEMPTS + 1):
      worker = _Worker(
        self._worker_path,
        max_concurrent_computation_calls=self._max_concurrent_computation_calls,
      )
      try:
        if worker.wait_until_ready(self._startup_timeout_seconds):
          return worker
      except BaseException:  # Ctrl-C, above all: the worker must not stay.
        worker.stop()
        raise
      timed_out = worker.is_alive()
      status, last_words = worker.stop()
      if timed_out:
        raise _worker_error(
          f"that TFF's worker {self._worker_path} did not answer within"
          f' {self._startup_timeout_seconds:g} s',
          status=None,
          last_words=last_words,
          expected='an answer in that time, usually within 1 s',
          fix='raise startup_timeout_seconds on a slow or busy machine, or '
          + _FIX,
        )
      if _PORT_TAKEN not in last_words or attempt == _PORT_ATTEMPTS:
        break
    raise _worker_error(
      f"that TFF's worker {self._worker_path} ended before it answered",
      status=status,
      last_words=last_words,
      expected='a worker that starts',
    )


def _describe_status(status: Optional[int]) -> str:
  if status is None:
    return 'exit status unknown'
  if status < 0:
    return f'killed by signal {-status}, {signal.strsignal(-status)}'
  return f'exit status {status}'


def _last_line(text: str) -> str:
  return text.splitlines()[-1]


def _worker_error(
  found: str,
  *,
  status: Optional[int],
  last_words: str,
  expected: str,
  fix: Optional[str] = None,
) -> errors.WorkerError:
  """Returns an error that quotes the worker's last words."""
  if status is not None:
    found += f' ({_describe_status(status)})'
    fix = fix or _FIX_FOR_SIGNAL.get(-status)
  quoted = f'its last words: {last_words!r}' if last_words else 'without a word'
  return errors.WorkerError(
    f'{found}, {quoted}', expected=expected, fix=fix or _FIX
  )
