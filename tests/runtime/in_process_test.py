"""The runtime in this process: fast, reproducible, and sound after errors.

That it computes what TFF's worker computes is the matter of
`catalogue_test.py`.
"""

import collections
import hashlib
import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import errors
from tff_codist import runtime
from tff_codist.runtime import in_process
from tff_codist.runtime import staging

_LOGGER = 'tff_codist.runtime.in_process'
_NUM_FEATURES = 8
_WEIGHTS = tff.TensorType(np.float32, [_NUM_FEATURES])
_EXAMPLES = collections.OrderedDict(
  x=tff.TensorType(np.float32, [None, _NUM_FEATURES]),
  y=tff.TensorType(np.float32, [None]),
)
_STEPS_OF_SLOW_CLIENT = 5_000  # Tens of milliseconds.


def _at_clients(type_spec):
  return tff.FederatedType(type_spec, tff.CLIENTS)


def _at_server(type_spec):
  return tff.FederatedType(type_spec, tff.SERVER)


@tff.federated_computation(_at_clients(np.int32))
def _sum(values):
  return tff.federated_sum(values)


@tff.tensorflow.computation(np.int32)
def _fail_if_negative(value):
  with tf.control_dependencies([tf.debugging.assert_non_negative(value)]):
    return tf.identity(value)


@tff.federated_computation(_at_clients(np.int32))
def _sum_of_non_negatives(values):
  return tff.federated_sum(tff.federated_map(_fail_if_negative, values))


@tff.tensorflow.computation(np.int32)
def _count_slowly(start):
  return tf.while_loop(
    lambda i, _: i < _STEPS_OF_SLOW_CLIENT,
    lambda i, total: (i + 1, total + 1),
    loop_vars=(0, start),
  )[1]


@tff.federated_computation(_at_clients(np.int32))
def _sum_slowly(values):
  return tff.federated_sum(tff.federated_map(_count_slowly, values))


@tff.federated_computation(tff.FunctionType(np.int32, np.int32), np.int32)
def _apply_twice(function, x):
  return function(function(x))


@tff.tensorflow.computation(np.int32)
def _double(x):
  return 2 * x


def _build_round(learning_rate=0.1):
  """Builds the mean of linear models after ten steps on their examples."""

  @tff.tensorflow.computation(_WEIGHTS, _EXAMPLES)
  def train(weights, examples):
    def step(weights):
      error = tf.linalg.matvec(examples['x'], weights) - examples['y']
      gradient = tf.linalg.matvec(examples['x'], error, transpose_a=True)
      size = tf.cast(tf.size(error), tf.float32)
      return [weights - learning_rate * tf.math.divide_no_nan(gradient, size)]

    return tf.while_loop(
      lambda _: True, step, [weights], maximum_iterations=10
    )[0]

  @tff.federated_computation(_at_server(_WEIGHTS), _at_clients(_EXAMPLES))
  def comp(weights, examples):
    sent = tff.federated_broadcast(weights)
    return tff.federated_mean(tff.federated_map(train, (sent, examples)))

  return comp


def _examples(num_examples, rng):
  return collections.OrderedDict(
    x=rng.normal(size=[num_examples, _NUM_FEATURES]).astype(np.float32),
    y=rng.normal(size=num_examples).astype(np.float32),
  )


def _cohort(num_clients, seed=0):
  """Returns clients with 0, 1, 2, ... examples."""
  rng = np.random.default_rng(seed)
  return [_examples(size, rng) for size in range(num_clients)]


def _train(comp, num_rounds=3):
  """Returns the digest of a model after rounds with 40 clients."""
  weights = np.zeros(_NUM_FEATURES, np.float32)
  for round_num in range(num_rounds):
    weights = comp(weights, _cohort(40, seed=round_num))
  assert np.isfinite(weights).all()
  return hashlib.sha256(weights.tobytes()).hexdigest()


def _installed(context):
  return tff.framework.get_context_stack().install(context)


@pytest.fixture
def context():
  with (
    in_process.InProcessContext(strict=True) as context,
    _installed(context),
  ):
    yield context


@pytest.fixture
def compiled(monkeypatch):
  """The computations that were compiled."""
  compile_computation = staging.compile_computation
  comps = []

  def record(comp):
    comps.append(comp)
    return compile_computation(comp)

  monkeypatch.setattr(staging, 'compile_computation', record)
  return comps


@pytest.fixture
def four_cores(monkeypatch):
  """Lets up to four clients train at a time, whatever the machine has."""
  monkeypatch.setattr(os, 'cpu_count', lambda: 4)


# What is compiled, and when.


def test_other_cohorts_compile_and_trace_nothing(
  context, compiled, function_names
):
  comp = _build_round()
  weights = np.zeros(_NUM_FEATURES, np.float32)
  comp(weights, _cohort(3))
  known = function_names()
  for num_clients in (3, 1, 20, 0, 7):
    comp(weights, _cohort(num_clients))
  assert compiled == [comp]
  assert function_names() == known


def test_other_datasets_compile_and_trace_nothing(
  context, compiled, function_names
):
  element = tff.TensorType(np.int64, [None])

  @tff.tensorflow.computation(tff.SequenceType(element))
  def total(data):
    return data.reduce(np.int64(0), lambda s, x: s + tf.reduce_sum(x))

  @tff.federated_computation(_at_clients(tff.SequenceType(element)))
  def comp(data):
    return tff.federated_sum(tff.federated_map(total, data))

  def run(*sizes):
    return comp([tf.data.Dataset.range(n).batch(3) for n in sizes])

  assert run(4, 0) == 6
  known = function_names()
  assert run(9) == 36
  assert run(5, 3, 1) == 13
  assert compiled == [comp]
  assert function_names() == known


def test_equal_computations_are_compiled_once(context, compiled):
  def build(scale):
    # TensorFlow numbers the bodies of loops, which would be a difference.
    multiply = tff.tensorflow.computation(lambda x: scale * x, np.int32)

    @tff.federated_computation(_at_clients(np.int32))
    def comp(x):
      return tff.federated_sum(tff.federated_map(multiply, x))

    return comp

  assert build(2)([1, 2]) == build(2)([3]) == 6
  assert len(compiled) == 1
  assert build(3)([1, 2]) == 9
  assert len(compiled) == 2


class _Point(NamedTuple):
  x: Any
  y: Any


def test_equal_computations_return_containers_of_their_own(context, compiled):
  containers = (
    _Point(x=np.int32, y=np.int32),
    collections.OrderedDict(x=np.int32, y=np.int32),
  )
  comps = [tff.tensorflow.computation(lambda x: x, c) for c in containers]
  at_clients = [
    tff.federated_computation(lambda x: x, _at_clients(c)) for c in containers
  ]
  expected = tff.structure.Struct([('x', 1), ('y', 2)])
  for _ in range(2):
    for comp, at_client, container in zip(comps, at_clients, containers):
      value = collections.OrderedDict(x=1, y=2)
      [of_client] = at_client([value])
      for result in (comp(value), of_client):
        assert type(result) is type(container)
        assert tff.structure.from_container(result) == expected
  assert len(compiled) == 2


def test_computation_is_not_taken_for_one_that_is_gone(context):
  def invoke(value):
    return tff.tensorflow.computation(lambda: tf.constant(value))()

  # Python gives the new ones the addresses of the old ones.
  assert [invoke(value) for value in range(10)] == list(range(10))


# The same numbers, however they are computed.


def test_result_does_not_depend_on_the_number_of_threads(
  four_cores, context, monkeypatch
):
  threads, numbers = context.threads, []

  def record(number):
    numbers.append(number)
    return threads(number)

  monkeypatch.setattr(context, 'threads', record)
  comp = _build_round()
  assert len({_train(comp, num_rounds=1) for _ in range(8)}) == 1
  assert numbers[:7] == [1, 1, 2, 4, 1, 2, 4]


def test_runs_and_contexts_give_the_same_bits(context):
  digest = _train(_build_round())
  assert _train(_build_round()) == digest
  with in_process.InProcessContext() as other, _installed(other):
    assert _train(_build_round()) == digest
  # The first context lives on.
  assert _train(_build_round()) == digest


@pytest.mark.parametrize(
  ('num_devices', 'seconds', 'numbers', 'fastest'),
  [
    (1, {1: 1.0, 2: 3.0, 4: 4.0}, [1, 1, 2, 4, 1, 2, 4], 1),
    (1, {1: 4.0, 2: 2.0, 4: 3.0}, [1, 1, 2, 4, 1, 2, 4], 2),
    (1, {1: 4.0, 2: 2.0, 4: 1.0}, [1, 1, 2, 4, 1, 2, 4], 4),
    (2, {2: 2.0, 4: 1.0}, [2, 2, 4, 2, 4], 4),
    (3, {3: 1.0}, [3, 3, 3], 3),
    (8, {8: 1.0}, [8, 8, 8], 8),
  ],
)
def test_schedule_tries_numbers_of_threads_and_keeps_the_fastest(
  num_devices, seconds, numbers, fastest, four_cores
):
  schedule = in_process._Schedule(num_devices)
  for round_num, number in enumerate(numbers):
    assert schedule.choose() == number
    # Invocations have work of their own; what counts is the work per second.
    work = 10 + round_num
    schedule.record(number, work, work * seconds[number])
  assert schedule.choose() == fastest


def test_schedule_leaves_out_the_first_invocation_and_slow_spells(
  four_cores, caplog
):
  caplog.set_level(logging.INFO, _LOGGER)
  schedule = in_process._Schedule(1)
  # One thread seems fast at first; two seem slow once, and four.
  for seconds in (0.1, 4.0, 9.0, 2.0, 4.0, 1.0, 8.0):
    schedule.record(schedule.choose(), 10, seconds)
  assert schedule.choose() == 2
  assert 'relative speed: 1: 1.00, 2: 4.00, 4: 2.00.' in caplog.text


def test_schedule_does_not_count_the_time_of_other_numbers(four_cores):
  schedule = in_process._Schedule(1)
  schedule.record(1, 10, 1.0)
  schedule.record(4, 10, 1.0)  # It began when something else was tried.
  assert [schedule.choose(), schedule.choose()] == [1, 1]


# Several users at once.


def test_threads_invoke_at_once(context, compiled):
  comp = _build_round()
  start = threading.Barrier(4)
  digests = []

  def train():
    with _installed(context):
      start.wait()
      digests.append(_train(comp))

  threads = [threading.Thread(target=train) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert digests == [_train(comp)] * 4
  assert compiled == [comp]


# Errors, after which the context works.


def test_client_that_fails_is_named(context):
  with pytest.raises(errors.ComputationError, match='Condition x >= 0') as info:
    _sum_of_non_negatives([1, 2, -3])
  assert info.value.client == 2
  assert 'at client 2, whose values are int32:' in str(info.value)
  with (
    pytest.raises(errors.ComputationError) as named,
    errors.in_pool('low', ['a', 'b', 'c']),
  ):
    raise info.value
  assert "in pool 'low', client id 'c'" in str(named.value)
  assert named.value.client == 2
  assert _sum_of_non_negatives([1, 2]) == 3


def test_shapes_of_a_client_that_fails_are_named(context):
  @tff.tensorflow.computation(_EXAMPLES)
  def first(examples):
    return tf.slice(examples['y'], [0], [1])

  @tff.federated_computation(_at_clients(_EXAMPLES))
  def comp(examples):
    return tff.federated_sum(tff.federated_map(first, examples))

  with pytest.raises(
    errors.ComputationError, match=r'client 0, .* float32\[0,8\], float32\[0\]:'
  ):
    comp(_cohort(3))
  assert comp(_cohort(3)[1:]).shape == (1,)


def test_first_of_several_clients_that_fail_is_named(four_cores, context):
  values = np.where(np.isin(np.arange(40), [5, 11, 30]), -1, 1).tolist()
  for _ in range(8):
    with pytest.raises(errors.ComputationError) as info:
      _sum_of_non_negatives(values)
    assert info.value.client == 5


def test_server_that_fails_has_no_client(context):
  with pytest.raises(errors.ComputationError, match='at the server:') as info:
    _fail_if_negative(-1)
  assert info.value.client is None
  with (
    pytest.raises(errors.ComputationError, match="in pool 'low', Invalid"),
    errors.in_pool('low', ['a']),
  ):
    raise info.value
  assert _fail_if_negative(1) == 1


def test_interrupt_stops_the_clients_and_leaves_the_context(
  context, monkeypatch
):
  num_clients = 64
  num_run = 0

  def interrupt(_):
    nonlocal num_run
    num_run += 1
    if num_run == 1:
      signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

  # A program that was started in the background ignores the signal.
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with monkeypatch.context() as patch:
      patch.setattr(context, 'report_device', interrupt)
      with pytest.raises(KeyboardInterrupt):
        _sum_slowly([0] * num_clients)
  finally:
    signal.signal(signal.SIGINT, previous)
  assert 0 < num_run < num_clients
  assert _sum_slowly([0, 1]) == 2 * _STEPS_OF_SLOW_CLIENT + 1


class _InterruptedPool:
  """Threads whose user is interrupted while handing out the work."""

  def __init__(self, pool):
    self._pool = pool
    self.pending = []

  def submit(self, *args):
    if self.pending:
      raise KeyboardInterrupt
    self.pending.append(self._pool.submit(*args))
    return self.pending[0]


def test_no_client_runs_on_after_an_interrupt_at_the_start(
  context, monkeypatch
):
  pool = _InterruptedPool(context.threads(1))
  with monkeypatch.context() as patch:
    patch.setattr(context, 'threads', lambda _: pool)
    with pytest.raises(KeyboardInterrupt):
      _sum_slowly([0] * 64)
  assert pool.pending[0].done()
  assert _sum_slowly([0, 1]) == 2 * _STEPS_OF_SLOW_CLIENT + 1


@pytest.fixture(scope='module')
def typed():
  """A computation of weights, examples and scales, and right arguments."""

  @tff.federated_computation(
    _at_server(_WEIGHTS), _at_clients(_EXAMPLES), _at_clients(np.float32)
  )
  def comp(weights, examples, scale):
    return weights, tff.federated_sum(scale), examples

  arguments = {
    'weights': np.zeros(_NUM_FEATURES, np.float32),
    'examples': _cohort(2),
    'scale': [1.0, 2.0],
  }
  return comp, arguments


def _second(**changes):
  """Returns examples of which the second client's are changed."""
  first, second = _cohort(2)
  return [first, {**second, **changes}]


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    (
      {'weights': np.zeros(3, np.float32)},
      r'float32\[3\] as arg.weights; expected .*float32\[8\]',
    ),
    ({'weights': 'text'}, 'as arg.weights;'),
    ({'weights': None}, 'NoneType as arg.weights;'),
    (
      {'examples': _second(x=np.zeros([1, 3], np.float32))},
      r'float32\[1,3\] as arg.examples\[1\].x; expected .*float32\[\?,8\]',
    ),
    (
      {'examples': _second(x=np.zeros([1, 8], np.float64))},
      r'float64\[1,8\] as arg.examples\[1\].x;',
    ),
    (
      {'examples': _second(x=tf.zeros([8]))},
      r'float32\[8\] as arg.examples\[1\].x;',
    ),
    (
      {'examples': _second(y=np.array(['text']))},
      r'as arg.examples\[1\].y; expected .*float32\[\?\]',
    ),
    ({'examples': _second(y=[[1.0], 2.0])}, r'list as arg.examples\[1\].y;'),
    (
      {'examples': _second(z=1)},
      r'the keys x, y, z as arg.examples\[1\]; expected .*<x=',
    ),
    (
      {'examples': [_cohort(1)[0], {'x': np.zeros([1, 8])}]},
      r'the keys x as arg.examples\[1\]; expected .*<x=.*,y=',
    ),
    ({'examples': [1, 2]}, r'int as arg.examples\[0\];'),
    ({'examples': _cohort(1)[0]}, 'OrderedDict as arg.examples; .* a list'),
    ({'scale': [1.0]}, 'clients: 1 in arg.scale, but 2 before it'),
    ({'scale': [1.0, 'text']}, r'as arg.scale\[1\]; expected .*float32'),
  ],
)
def test_wrong_argument_is_named(wrong, message, typed, context):
  comp, arguments = typed
  with pytest.raises(errors.ArgumentError, match=message) as info:
    comp(**{**arguments, **wrong})
  assert isinstance(info.value, TypeError)
  assert isinstance(info.value, ValueError)
  _, total, _ = comp(**arguments)
  assert total == 3.0


@pytest.mark.parametrize(
  ('dataset', 'message'),
  [
    (tf.data.Dataset.range(3), r'int64\* as arg\[1\];'),
    (tf.data.Dataset.from_tensors({'x': 1.0}), r'<x=float32>\* as arg\[1\];'),
    (np.ones(3, np.int32), r'int32\[3\] as arg\[1\];'),
    ([1, 'text'], r'as arg\[1\];'),
  ],
)
def test_wrong_dataset_is_named(dataset, message, context):
  @tff.tensorflow.computation(tff.SequenceType(np.int32))
  def total(data):
    return data.reduce(0, tf.add)

  @tff.federated_computation(_at_clients(tff.SequenceType(np.int32)))
  def comp(data):
    return tff.federated_sum(tff.federated_map(total, data))

  with pytest.raises(errors.ArgumentError, match=message):
    comp([[1, 2], dataset])
  assert comp([[1, 2], [3]]) == 6


def test_argument_that_is_not_ascii(context):
  comp = tff.tensorflow.computation(lambda x: (x, x), np.str_)
  assert comp('é') == ('é'.encode(), 'é'.encode())
  at_clients = tff.federated_computation(lambda x: x, _at_clients(np.str_))
  assert at_clients(['é', 'e']) == ['é'.encode(), b'e']


@pytest.mark.parametrize(
  'device', ['', 'tpu', 'cpu:7', 'cpu:one', 'gpu:99', 'cpu:-1']
)
def test_unknown_device_is_an_error(device):
  with pytest.raises(errors.ConfigError, match=r'CPU:0.*expected auto, cpu'):
    in_process.InProcessContext(device=device)


@pytest.mark.parametrize('device', ['cpu', 'cpu:0', 'cpu:all', 'CPU'])
def test_clients_run_on_the_device_asked_for(device, caplog):
  caplog.set_level(logging.INFO, _LOGGER)
  with in_process.InProcessContext(device=device) as context:
    assert context.devices == ('CPU:0',)
    with _installed(context):
      assert _sum([1, 2]) == _sum([3]) == 3
  assert caplog.text.count('Clients run on CPU:0.') == 1


# What cannot be compiled.


def test_what_cannot_be_compiled_runs_on_the_worker_with_one_warning(caplog):
  with in_process.InProcessContext() as context, _installed(context):
    assert _apply_twice(_double, 3) == 12
    assert _apply_twice(_double, 5) == 20
    assert _sum([1, 2]) == 3
  [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert (record.name, record.levelname) == (_LOGGER, 'WARNING')
  assert 'because it has an argument that is a function' in record.message


def test_what_cannot_be_compiled_is_an_error_if_strict(context):
  for _ in range(2):
    with pytest.raises(
      errors.ConfigError, match=r'that is a function.*--runtime.strict'
    ):
      _apply_twice(_double, 3)
  assert _sum([1, 2]) == 3


def _size_of_mutable_table(x):
  table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
  with tf.control_dependencies([table.insert([x], [x])]):
    return table.size()


def _size_of_queue(x):
  queue = tf.queue.FIFOQueue(10, [tf.int64], shapes=[[]])
  with tf.control_dependencies([queue.enqueue(x)]):
    return queue.size()


def _value_in_static_table(x):
  key = tf.constant([1], tf.int64)
  initializer = tf.lookup.KeyValueTensorInitializer(key, tf.reshape(x, [1]))
  return tf.lookup.StaticHashTable(initializer, -1).lookup(key)[0]


@pytest.mark.parametrize(
  ('function', 'expected'),
  [
    (_size_of_mutable_table, [1, 1, 1]),
    (_size_of_queue, [1, 1, 1]),
    (_value_in_static_table, [5, 6, 7]),
  ],
)
def test_resources_start_anew_in_each_call(function, expected):
  comp = tff.tensorflow.computation(function, np.int64)
  # Compiled or not: nothing that one call keeps is seen by the next.
  with in_process.InProcessContext() as context, _installed(context):
    assert [comp(x) for x in (5, 6, 7)] == expected


# The end.


def test_closed_context_refuses_and_has_no_threads():
  before = set(threading.enumerate())
  with in_process.InProcessContext() as context, _installed(context):
    assert _sum([1, 2]) == 3
    assert not context.closed
    context.close()
    context.close()
    assert context.closed
    with pytest.raises(errors.WorkerError, match='install the runtime again'):
      _sum([1, 2])
  assert set(threading.enumerate()) <= before


def _train_on_devices():
  """Prints digests of models trained on one, and on all logical devices."""
  for device in ('cpu', 'cpu:1', 'cpu:all'):
    with runtime.install('in_process', device=device) as context:
      print(*context.devices, _train(_build_round()))


_NUM_ROUNDS = 200
_NUM_WEIGHTS = 250_000  # A megabyte.


def _train_long():
  """Prints by how many bytes 200 rounds make the process grow."""
  runtime.install('in_process')
  type_spec = tff.TensorType(np.float32, [_NUM_WEIGHTS])

  @tff.tensorflow.computation(type_spec, np.float32)
  def train(weights, x):
    variable = tf.Variable(tf.zeros([_NUM_WEIGHTS]))
    with tf.control_dependencies([variable.assign(weights + x)]):
      return variable.read_value()

  @tff.federated_computation(_at_server(type_spec), _at_clients(np.float32))
  def comp(weights, x):
    sent = tff.federated_broadcast(weights)
    return tff.federated_mean(tff.federated_map(train, (sent, x)))

  def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

  weights = np.zeros(_NUM_WEIGHTS, np.float32)
  for round_num in range(50 + _NUM_ROUNDS):
    if round_num == 50:
      before = peak()
    weights = comp(weights, [1.0, 2.0, 3.0])
  assert (weights == 2 * (50 + _NUM_ROUNDS)).all()
  print(peak() - before)


def _end_without_closing():
  """Uses datasets, variables, threads and the worker, and ends."""
  runtime.install('in_process')
  _train(_build_round())
  comp = tff.tensorflow.computation(
    lambda data: data.map(lambda x: x + 1).reduce(np.int64(0), tf.add),
    tff.SequenceType(np.int64),
  )
  print(comp(tf.data.Dataset.range(3)), _apply_twice(_double, 3))


# Devices can be set up only until TensorFlow runs something. Arguments: where
# this file is, the number of devices, and the function of it to call.
_CHILD = """
import sys
import tensorflow as tf
_, folder, num_devices, function = sys.argv
[cpu] = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
  cpu, [tf.config.LogicalDeviceConfiguration()] * int(num_devices)
)
sys.path.insert(0, folder)
import in_process_test
getattr(in_process_test, function)()
"""

_CHILDREN = {
  'two devices': (2, _train_on_devices),
  'three devices': (3, _train_on_devices),
  'long': (1, _train_long),
  'end': (1, _end_without_closing),
}


@pytest.fixture(scope='module')
def children():
  """Programs that begin at once, because importing TensorFlow is slow."""
  here = pathlib.Path(__file__).resolve()
  children = {
    name: subprocess.Popen(
      [
        sys.executable,
        *('-c', _CHILD),
        *(str(here.parent), str(num_devices), function.__name__),
      ],
      env={**os.environ, 'PYTHONPATH': str(here.parents[2])},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for name, (num_devices, function) in _CHILDREN.items()
  }
  yield children
  for child in children.values():
    child.kill()
    child.wait()


def _output(child):
  """Returns the lines that a program and its log wrote until its end."""
  output, log = child.communicate(timeout=120)
  assert child.returncode == 0, log
  return output.splitlines(), log.splitlines()


@pytest.mark.parametrize(
  ('name', 'devices'),
  [
    ('two devices', ['CPU:0', 'CPU:1', 'CPU:0 CPU:1']),
    ('three devices', ['CPU:0', 'CPU:1', 'CPU:0 CPU:1 CPU:2']),
  ],
)
def test_result_does_not_depend_on_the_devices(
  name, devices, children, context
):
  digest = _train(_build_round())
  lines, log = _output(children[name])
  assert lines == [f'{names} {digest}' for names in devices]
  assert not log


def test_memory_does_not_grow_with_the_rounds(children):
  [growth], log = _output(children['long'])
  # A tenth of a model each round. Whoever kept one would keep ten times that.
  assert int(growth) < _NUM_ROUNDS * 4 * _NUM_WEIGHTS / 10
  assert not log


def test_program_ends_without_complaints(children):
  output, log = _output(children['end'])
  assert output == ['6 12']
  [warning] = log
  assert 'runs on TFF' in warning
