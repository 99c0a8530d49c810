"""TFF computations as a few TensorFlow functions in this process.

A computation is compiled into stages (`staging.py`) when it is first invoked.
Then a client costs one call of one function, on one of the context's devices;
its update is added to a sum at once, so that memory does not grow with the
number of clients.

The clients of a cohort are cut into at most eight runs of neighbours. Those
are worked off by several threads, each run from its first client to its last,
and the runs' sums are added in order: the result is the same, bit for bit,
however many threads and devices there are. How many clients train at a time is
chosen by measurement in a computation's first invocations: small models leave
cores idle unless several clients train, large ones keep all of them busy.
"""

import atexit
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Optional, Union

import cachetools
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.types import type_conversions

from tff_codist import errors
from tff_codist.runtime import graphs
from tff_codist.runtime import staging
from tff_codist.runtime import stock
from tff_codist.runtime import values

_logger = logging.getLogger(__name__)

# Runs of neighbouring clients into which a cohort is cut. More balance the
# threads better, each costs one addition of two sums.
_MAX_RUNS = 8
# Programs that stay compiled although their computation is gone.
_MAX_PROGRAMS = 64
# Invocations for which each number of threads is tried.
_TRIALS = 2


class _Schedule:
  """How many threads run the clients of one stage, chosen by measurement.

  Small models gain from more threads, until all cores are busy; large ones
  lose. Each number that could be best is tried, and the fastest is kept.
  """

  def __init__(self, num_devices: int):
    self._lock = threading.Lock()
    most = max(os.cpu_count() or 1, num_devices)
    doublings = (num_devices << n for n in itertools.count())
    self._rates = dict.fromkeys(
      itertools.takewhile(lambda n: n <= most, doublings), 0.0
    )
    # In the first invocation, which is no trial, TensorFlow optimizes graphs.
    self._trials = [next(iter(self._rates)), *list(self._rates) * _TRIALS]

  def choose(self) -> int:
    """Returns the number of threads for the next invocation."""
    with self._lock:
      if self._trials:
        return self._trials[0]
      return max(self._rates, key=self._rates.get)

  def record(self, num_threads: int, work: int, seconds: float) -> None:
    """Takes the time for clients whose examples have so many entries."""
    with self._lock:
      if not self._trials or self._trials[0] != num_threads:
        return
      del self._trials[0]
      if len(self._trials) < len(self._rates) * _TRIALS:
        rate = work / seconds
        self._rates[num_threads] = max(self._rates[num_threads], rate)
      if not self._trials and len(self._rates) > 1:
        slowest = min(self._rates.values())
        _logger.info(
          'Clients trained at a time, and their relative speed: %s.',
          ', '.join(f'{n}: {r / slowest:.2f}' for n, r in self._rates.items()),
        )


class _Compiled(NamedTuple):
  """A program, and for each of its client stages how it is best run."""

  program: staging.Program
  schedules: Sequence[_Schedule]


# Or why the computation cannot be compiled.
_CompiledOrNot = Union[_Compiled, graphs.UnsupportedError]


class InProcessContext(tff.framework.SyncContext):
  """Runs computations in this process, on CPU or GPU.

  What cannot be compiled runs on TFF's worker, which is started for it, and is
  logged once.

  Attributes:
    closed: Whether `close` was called; such a context runs nothing any more.
    devices: Names of the devices on which clients run, such as `GPU:0`.
  """

  def __init__(self, *, device: str = 'auto', strict: bool = False):
    """Looks for the devices.

    Args:
      device: `'auto'`, which is the first GPU if there is one and else the CPU;
        `'cpu'`, `'gpu'`, the first of the kind, `'gpu:2'`, the one with this
        number, or `'gpu:all'`, between which cohorts are shared.
      strict: Whether a computation that cannot be compiled is an error.

    Raises:
      ConfigError: If there is no such device.
    """
    self.devices = tuple(map(_short, _find_devices(device)))
    self.closed = False
    self._strict = strict
    self._lock = threading.RLock()
    self._programs = cachetools.LRUCache(_MAX_PROGRAMS)
    self._known: dict[int, tuple[weakref.ref, _CompiledOrNot]] = {}
    self._worker: Optional[stock.StockContext] = None
    # Types of the computations that the worker runs.
    self._on_worker: set[str] = set()
    self._has_reported_device = False
    self._threads: dict[int, futures.ThreadPoolExecutor] = {}
    # TensorFlow complains of functions that are left when Python has ended.
    atexit.register(self.close)

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self.close()

  def close(self) -> None:
    """Forgets everything compiled. Calling it again does nothing."""
    with self._lock:
      self.closed = True
      atexit.unregister(self.close)
      self._programs.clear()
      self._known.clear()
      for pool in self._threads.values():
        pool.shutdown()
      if self._worker is not None:
        self._worker.close()

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    if self.closed:
      raise errors.WorkerError(
        'an in_process runtime that has been closed',
        expected='an open one',
        fix='install the runtime again',
      )
    try:
      compiled = self._compile(comp)
      return _Invocation(self, compiled).run(comp.type_signature, arg)
    except graphs.UnsupportedError as error:
      return self._invoke_on_worker(comp, arg, error)

  def _compile(self, comp: tff.Computation) -> _Compiled:
    """Returns the computation's program, compiled once for equal content."""
    known, compiled = self._known.get(id(comp), (lambda: None, None))
    if known() is not comp:
      with self._lock:
        compiled = self._find_or_compile(comp)
        forget = functools.partial(self._known.pop, id(comp))
        gone = weakref.ref(comp, lambda _: forget(None))
        self._known[id(comp)] = gone, compiled
    if isinstance(compiled, graphs.UnsupportedError):
      raise compiled.with_traceback(None)
    return compiled

  def _find_or_compile(self, comp: tff.Computation) -> _CompiledOrNot:
    proto = tff.framework.serialize_computation(comp)
    key = hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()
    if key not in self._programs:
      try:
        program = staging.compile_computation(comp)
      except graphs.UnsupportedError as error:
        self._programs[key] = error
      else:
        schedules = [_Schedule(len(self.devices)) for _ in program.clients]
        self._programs[key] = _Compiled(program, schedules)
    return self._programs[key]

  def _invoke_on_worker(
    self, comp: tff.Computation, arg: Any, reason: graphs.UnsupportedError
  ) -> Any:
    signature = comp.type_signature.compact_representation()
    if self._strict:
      raise errors.ConfigError(
        f'{reason}, in a computation of type {signature}',
        expected='what the runtime in_process can compile',
        fix='choose --runtime.name stock, or leave out --runtime.strict',
      ) from reason
    with self._lock:
      if self._worker is None:
        self._worker = stock.StockContext()
      if signature not in self._on_worker:
        self._on_worker.add(signature)
        _logger.warning(
          "A computation of type %s runs on TFF's worker, because %s.",
          signature,
          reason,
        )
    return self._worker.invoke(comp, arg)

  def threads(self, number: int) -> futures.ThreadPoolExecutor:
    """Returns a pool of so many threads."""
    with self._lock:
      if number not in self._threads:
        self._threads[number] = futures.ThreadPoolExecutor(number, 'clients')
      return self._threads[number]

  def report_device(self, tensors: Sequence[tf.Tensor]) -> None:
    """Logs once on which device a first client really ran."""
    if tensors and not self._has_reported_device:
      self._has_reported_device = True
      _logger.info('Clients run on %s.', _short(tensors[0].device))


def _find_devices(device: str) -> list[str]:
  """Returns the names of the devices that a flag's value means."""
  for gpu in tf.config.list_physical_devices('GPU'):
    # Else TensorFlow takes all memory of every GPU as soon as it uses one.
    with contextlib.suppress(RuntimeError):  # It is in use already.
      tf.config.experimental.set_memory_growth(gpu, True)
  if device == 'auto':
    device = 'gpu' if tf.config.list_logical_devices('GPU') else 'cpu'
  kind, _, number = device.upper().partition(':')
  found = [one.name for one in tf.config.list_logical_devices(kind)]
  if number == 'ALL':
    chosen = found
  else:
    chosen = [name for name in found if name.endswith(f':{number or 0}')]
  if not chosen:
    every = [_short(one.name) for one in tf.config.list_logical_devices()]
    raise errors.ConfigError(
      f'--runtime.device {device} with the devices {", ".join(every)}',
      expected='auto, cpu, gpu, gpu:N or gpu:all, of a device that is there',
      fix='choose another one, or see docs/performance.md on how to get '
      'TensorFlow to use a GPU',
    )
  return chosen


def _short(device: str) -> str:
  """Returns a device's name without where it is, as `CPU:0`."""
  return device.rpartition('device:')[2]


class _Invocation:
  """One run of a program: the values of its nodes, so far."""

  def __init__(self, context: InProcessContext, compiled: _Compiled):
    self._context = context
    self._program, self._schedules = compiled
    # Values at the server and those that clients share, and each client's own.
    self._shared: dict[staging.Node, list[tf.Tensor]] = {}
    self._own: dict[staging.Node, Callable[[int], list[tf.Tensor]]] = {}
    self._num_clients = None

  def run(self, signature: tff.FunctionType, arg: Any) -> Any:
    """Returns the computation's result for an argument."""
    self._bind(self._program.parameter, signature.parameter, arg, 'arg')
    for server, clients, schedule in zip(
      self._program.servers, self._program.clients, self._schedules
    ):
      self._run_server(server)
      if clients.sums or clients.outputs:
        self._run_clients(clients, schedule)
    result = self._result(self._program.result, signature.result)
    return type_conversions.type_to_py_container(result, signature.result)

  def _bind(
    self, nodes: Any, type_spec: Optional[tff.Type], value: Any, place: str
  ) -> None:
    """Gives the parameter's nodes their values."""
    if nodes is None:
      return
    if isinstance(nodes, tuple):
      elements = values.elements(value, type_spec, place)
      for node, (element, element_type, inner) in zip(nodes, elements):
        self._bind(node, element_type, element, inner)
    elif nodes.where == staging.CLIENTS:
      self._count_clients(value, type_spec, place)
      self._own[nodes] = lambda client: list(
        values.to_tensors(value[client], nodes.type, f'{place}[{client}]')
      )
      if all(nodes not in stage.own for stage in self._program.clients):
        # Nothing reads it, but it must be what it is said to be.
        for client in range(len(value)):
          self._own[nodes](client)
    else:
      self._shared[nodes] = list(values.to_tensors(value, nodes.type, place))

  def _count_clients(self, value: Any, type_spec: tff.Type, place: str) -> None:
    if not isinstance(value, (list, tuple)):
      raise errors.ArgumentError(
        f'{type(value).__name__} as {place}',
        expected=f'a list with an element for each client, for {type_spec}',
        fix='pass a list',
      )
    if self._num_clients not in (None, len(value)):
      raise errors.ArgumentError(
        f'clients: {len(value)} in {place}, but {self._num_clients} before it',
        expected='as many in all arguments',
        fix='pass lists of equal length',
      )
    self._num_clients = len(value)

  def _run_server(self, stage: staging.ServerStage) -> None:
    inputs = [tensor for node in stage.inputs for tensor in self._shared[node]]
    with _explained(), tf.device(self._context.devices[0]):
      outputs = iter(stage.run(inputs))
    for node in stage.outputs:
      self._shared[node] = staging.take(node.type, outputs)

  def _run_clients(
    self, stage: staging.ClientStage, schedule: _Schedule
  ) -> None:
    """Runs all clients, whose sums and own values are then known."""
    num_clients = self._num_clients or 0
    kept: list[Sequence[tf.Tensor]] = [()] * num_clients
    work = [0] * num_clients
    zeros = [t for one in stage.sums for t in self._shared[one.zero]]
    runs = np.array_split(np.arange(num_clients), _MAX_RUNS)
    runs = [run for run in runs if len(run)]
    stop = threading.Event()

    shared = {
      device: self._copy(stage.shared, device)
      for device in self._context.devices
    }

    def work_off(run: np.ndarray, device: str) -> Sequence[tf.Tensor]:
      sums = zeros
      with tf.device(device):
        for client in run:
          if stop.is_set():
            break
          own = [t for node in stage.own for t in self._own[node](client)]
          work[client] = sum(tensor.shape.num_elements() for tensor in own)
          with _explained(client, own):
            outputs = stage.run([*sums, *shared[device], *own])
          self._context.report_device(outputs)
          sums, kept[client] = outputs[: len(zeros)], outputs[len(zeros) :]
      return sums

    num_threads = schedule.choose()
    started = time.monotonic()
    totals = zeros
    pool = self._context.threads(num_threads)
    pending = []
    try:
      for run, device in zip(runs, itertools.cycle(self._context.devices)):
        pending.append(pool.submit(work_off, run, device))
      with _explained(), tf.device(self._context.devices[0]):
        for index, future in enumerate(pending):
          sums = future.result()
          totals = stage.merge([*totals, *sums]) if index else sums
    finally:
      # After an error or Ctrl-C no client begins any more.
      stop.set()
      futures.wait(pending)
    if len(runs) > 1:
      schedule.record(num_threads, sum(work), time.monotonic() - started)

    totals = iter(totals)
    for one in stage.sums:
      self._shared[one.total] = staging.take(one.total.type, totals)
    begin = 0
    for node in stage.outputs:
      end = begin + staging.count_leaves(node.type)
      self._own[node] = functools.partial(_part, kept, begin, end)
      begin = end

  def _copy(
    self, nodes: Sequence[staging.Node], device: str
  ) -> list[tf.Tensor]:
    """Returns the nodes' tensors on a device, copied once for all clients."""
    with tf.device(device):
      return [tf.identity(t) for node in nodes for t in self._shared[node]]

  def _result(self, nodes: Any, type_spec: tff.Type) -> Any:
    """Returns the result's arrays, in `tff.structure.Struct`s and lists."""
    if isinstance(nodes, tuple):
      elements = tff.structure.iter_elements(type_spec)
      return tff.structure.Struct(
        (name, self._result(node, element))
        for node, (name, element) in zip(nodes, elements)
      )
    if nodes.where == staging.CLIENTS:
      return [
        values.from_tensors(nodes.type, iter(self._own[nodes](client)))
        for client in range(self._num_clients or 0)
      ]
    return values.from_tensors(nodes.type, iter(self._shared[nodes]))


def _part(
  kept: Sequence[Sequence[tf.Tensor]], begin: int, end: int, client: int
) -> Sequence[tf.Tensor]:
  return kept[client][begin:end]


@contextlib.contextmanager
def _explained(
  client: Optional[int] = None, own: Sequence[tf.Tensor] = ()
) -> Iterator[None]:
  """Turns errors of TensorFlow into ones that say where they happened."""
  try:
    yield
  except tf.errors.OpError as error:
    where = 'at the server' if client is None else f'at client {client}'
    if own:
      where += f', whose values are {", ".join(map(values.describe, own))}'
    is_memory = isinstance(error, tf.errors.ResourceExhaustedError)
    raise errors.ComputationError(
      f'{type(error).__name__} {where}: {error.message.strip()}',
      expected='a computation that runs',
      fix='lower --client.batch_size, or train on another --runtime.device'
      if is_memory
      else 'correct the examples or the computation that the message names',
      client=client,
    ) from error
