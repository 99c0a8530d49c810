"""Computations of every kind give the same on both runtimes.

A row of the catalogue is a function that builds computations and returns one
that invokes them, without arguments, and returns the results. It runs on TFF's
worker and in this process, where nothing may fall back to the worker. The
results must have the same containers, in all depths, the same NumPy types and
shapes, and the same values: integers, strings and booleans exactly, floats to
1e-5 relative or 1e-6 absolute, unless the row says `_Near` or `_Random`.

Left out, because the worker itself cannot do it: results of clients when there
are none, or when nothing tells how many there are; strings that are not ASCII,
unless encoded; arguments whose keys are in another order than the type's, which
the worker takes by position. What it cannot do with sequences has a test of its
own, with values found by hand.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.aggregators import primitives
from tensorflow_federated.python.analytics import count_distinct
from tensorflow_federated.python.core.impl.compiler import transformations

from tff_codist.runtime import in_process as in_process_lib
from tff_codist.runtime import stock as stock_lib

# Invokes computations and returns the results.
Run = Callable[[], Any]


class _Near(NamedTuple):
  """A result that rounding to random neighbours moves by up to `atol`."""

  value: Any
  atol: float


class _Random(NamedTuple):
  """A result of which only containers, types and shapes can be compared."""

  value: Any


class _Point(NamedTuple):
  x: Any
  y: Any


@attrs.define
class _Batch:
  x: Any
  y: Any


class _WorkerContext(tff.framework.SyncContext):
  """TFF's worker, made to compute secure sums: openly, as in_process does."""

  def __init__(self, worker: stock_lib.StockContext):
    self._worker = worker
    self._open = functools.lru_cache(maxsize=8)(_compute_openly)

  def invoke(self, comp, arg):
    if 'secure' in str(comp.to_building_block()):
      comp = self._open(comp)
    return self._worker.invoke(comp, arg)


def _compute_openly(comp: tff.Computation) -> tff.Computation:
  """Returns a computation without secure sums."""
  # Nested any deeper, the message of a computation cannot be parsed.
  flat = tff.framework.ConcreteComputation.from_building_block(
    transformations.to_call_dominant(comp.to_building_block())
  )
  return tff.framework.ConcreteComputation.with_type(
    tff.backends.test.replace_secure_intrinsics_with_bodies(flat),
    comp.type_signature,
  )


@pytest.fixture(scope='module')
def in_process():
  with in_process_lib.InProcessContext(strict=True) as context:
    yield context


@pytest.fixture(scope='module')
def check(in_process):
  """Asserts that a `Run` gives the same on both runtimes."""
  with stock_lib.StockContext() as worker:
    reference = _WorkerContext(worker)

    def check(run: Run) -> None:
      expected = _run_in(reference, run)
      _assert_same(_run_in(in_process, run), expected, 'result')

    yield check


def _run_in(context: tff.framework.SyncContext, run: Run) -> Any:
  with tff.framework.get_context_stack().install(context):
    return run()


def _assert_same(
  found: Any, expected: Any, place: str, *, atol: float = 1e-6
) -> None:
  same = functools.partial(_assert_same, atol=atol)
  if isinstance(expected, tf.data.Dataset):
    assert isinstance(found, tf.data.Dataset), place
    assert found.element_spec == expected.element_spec, place
    same(_elements(found), _elements(expected), place)
    return
  assert type(found) is type(expected), f'{place}: {found!r}, not {expected!r}'
  if isinstance(expected, _Near):
    _assert_same(found.value, expected.value, place, atol=expected.atol)
  elif isinstance(expected, _Random):
    _assert_same(found.value, expected.value, place, atol=np.inf)
  elif isinstance(expected, dict):
    assert list(found) == list(expected), place
    for key in expected:
      same(found[key], expected[key], f'{place}.{key}')
  elif isinstance(expected, (list, tuple)):
    assert len(found) == len(expected), place
    for index, (a, b) in enumerate(zip(found, expected)):
      same(a, b, f'{place}[{index}]')
  elif attrs.has(type(expected)):
    for field in attrs.fields_dict(type(expected)):
      same(getattr(found, field), getattr(expected, field), f'{place}.{field}')
  else:
    _assert_same_array(np.asarray(found), np.asarray(expected), place, atol)


def _assert_same_array(
  found: np.ndarray, expected: np.ndarray, place: str, atol: float
) -> None:
  assert found.dtype == expected.dtype, place
  assert found.shape == expected.shape, place
  if atol == np.inf:
    return
  if np.issubdtype(expected.dtype, np.inexact) or atol > 1e-6:
    np.testing.assert_allclose(
      found, expected, rtol=1e-5, atol=atol, err_msg=place
    )
  else:
    np.testing.assert_array_equal(found, expected, err_msg=place)


def _elements(dataset: tf.data.Dataset) -> list[Any]:
  return list(dataset.as_numpy_iterator())


_ROWS: dict[str, Callable[[], Run]] = {}


def _row(build: Callable[[], Run]) -> Callable[[], Run]:
  """Adds a row to the catalogue."""
  assert build.__name__ not in _ROWS
  _ROWS[build.__name__.strip('_')] = build
  return build


@pytest.mark.parametrize('name', _ROWS)
def test_computation(name, check):
  check(_ROWS[name]())


def _calls(comp: tff.Computation, *arguments: tuple) -> Run:
  """Returns a `Run` that invokes a computation on each tuple of arguments."""
  return lambda: [comp(*args) for args in arguments]


def _at_clients(type_spec: Any, *, all_equal: bool = False) -> tff.Type:
  return tff.FederatedType(type_spec, tff.CLIENTS, all_equal=all_equal)


def _at_server(type_spec: Any) -> tff.Type:
  return tff.FederatedType(type_spec, tff.SERVER)


# TensorFlow computations.

_DTYPES = (
  np.bool_,
  np.uint8,
  np.int8,
  np.int16,
  np.int32,
  np.int64,
  np.uint64,
  np.float16,
  np.float32,
  np.float64,
  np.complex64,
  tf.bfloat16.as_numpy_dtype,
)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_scalar_and_array_of_type(dtype, check):
  @tff.tensorflow.computation(dtype, tff.TensorType(dtype, [2]))
  def comp(scalar, array):
    return tf.identity(scalar), scalar, array, tf.stack([array, array])

  check(_calls(comp, (dtype(1), np.array([0, 1]).astype(dtype))))


@_row
def _python_numbers_are_converted():
  @tff.tensorflow.computation(
    np.int64, np.float32, np.bool_, tff.TensorType(np.float32, [2])
  )
  def comp(whole, real, flag, array):
    return whole + 1, real / 2, tf.logical_not(flag), array

  return _calls(
    comp,
    (1, 0.5, True, [1.0, 2.0]),
    (np.int64(2), 1.0, np.bool_(False), np.float32([1, 2])),
    (
      tf.constant(3, tf.int64),
      tf.constant(1.0),
      False,
      tf.constant([1.0, 2.0]),
    ),
  )


@_row
def _no_argument():
  return _calls(tff.tensorflow.computation(lambda: tf.constant(3)), (), ())


@_row
def _constants_without_a_graph():
  @tff.tensorflow.computation
  def comp():
    return 1, 2.5, 'three', [True, np.int64(4)], np.ones([2, 2])

  return _calls(comp, ())


@_row
def _argument_is_the_result():
  comp = tff.tensorflow.computation(lambda x: (x, x), np.float32)
  return _calls(comp, (1.5,))


@_row
def _argument_is_unused():
  comp = tff.tensorflow.computation(lambda x, y: y, np.str_, np.int32)
  return _calls(comp, ('unused', 1))


@_row
def _strings():
  @tff.tensorflow.computation(np.str_, tff.TensorType(np.str_, [None]))
  def comp(scalar, array):
    return (
      tf.strings.join([scalar, '!']),
      tf.strings.upper(array),
      tf.strings.length(array),
      array,
    )

  return _calls(
    comp,
    ('a', ['b', 'ccc']),
    ('d', np.array(['e', ''])),
    ('é'.encode(), np.array(['ü'.encode()], object)),
    (b'\x00\xff', np.array([b'\xfe', b'x'], object)),
    (tf.constant('é'), tf.constant(['ü', 'x'])),
    ('none', np.array([], object)),
  )


@_row
def _unknown_dimensions():
  @tff.tensorflow.computation(
    tff.TensorType(np.float32, [None]), tff.TensorType(np.int32, [None, 2])
  )
  def comp(x, y):
    return tf.shape(x), tf.reduce_sum(y, axis=1), tf.concat([x, x], 0)

  return _calls(
    comp,
    (np.ones(3, np.float32), np.ones([1, 2], np.int32)),
    (np.ones(0, np.float32), np.ones([4, 2], np.int32)),
  )


@_row
def _empty_structs():
  @tff.tensorflow.computation((), collections.OrderedDict(a=(), b=np.int32))
  def comp(nothing, some):
    return nothing, some, [], collections.OrderedDict(), ((), ((),))

  return _calls(comp, ((), collections.OrderedDict(a=(), b=1)))


@_row
def _containers():
  type_spec = collections.OrderedDict(
    z=_Point(x=np.int32, y=(np.int32, [np.float32, np.float32])),
    a=_Batch(x=np.int64, y=np.bool_),
  )

  @tff.tensorflow.computation(type_spec)
  def comp(arg):
    return collections.OrderedDict(
      same=arg,
      point=_Point(x=_Batch(arg['z'], 1), y=[arg['a'], (2,)]),
    )

  value = collections.OrderedDict(
    z=_Point(x=1, y=(2, [3.0, 4.0])), a=_Batch(x=5, y=True)
  )
  return _calls(comp, (value,), (dict(value),))


@_row
def _containers_of_another_kind_than_the_type():
  type_spec = tff.to_type(collections.OrderedDict(x=np.int32, y=np.int32))
  comp = tff.tensorflow.computation(lambda arg: arg, type_spec)
  return _calls(
    comp,
    ({'x': 1, 'y': 2},),
    ((1, 2),),
    (_Point(x=1, y=2),),
    (_Batch(x=1, y=2),),
    (tff.structure.Struct([('x', 1), ('y', 2)]),),
  )


@_row
def _keyword_arguments():
  comp = tff.tensorflow.computation(lambda x, y: x - y, np.int32, np.int32)
  return lambda: (comp(1, 2), comp(x=1, y=2), comp(1, y=2), comp(y=2, x=1))


_ELEMENT = collections.OrderedDict(
  y=tff.TensorType(np.int32, [None]), x=tff.TensorType(np.float32, [None, 2])
)


def _batches(num_examples: int, batch_size: int = 2) -> tf.data.Dataset:
  """Returns batches of elements, the last of them smaller."""
  examples = collections.OrderedDict(
    y=tf.range(num_examples),
    x=tf.reshape(tf.range(2.0 * num_examples), [-1, 2]),
  )
  return tf.data.Dataset.from_tensor_slices(examples).batch(batch_size)


@_row
def _dataset_is_reduced():
  @tff.tensorflow.computation(tff.SequenceType(_ELEMENT))
  def comp(dataset):
    return dataset.reduce(
      (0, 0.0),
      lambda total, batch: (
        total[0] + tf.reduce_sum(batch['y']),
        total[1] + tf.reduce_max(batch['x']),
      ),
    )

  return _calls(comp, (_batches(5),), (_batches(1),), (_batches(0),))


@_row
def _dataset_is_iterated():
  @tff.tensorflow.computation(tff.SequenceType(_ELEMENT))
  @tf.function
  def comp(dataset):
    total = 0
    for batch in dataset:
      if tf.size(batch['y']) > 1:
        total += tf.reduce_sum(batch['y'])
    return total

  return _calls(comp, (_batches(5),), (_batches(0),))


@_row
def _dataset_that_never_ends():
  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def comp(dataset):
    return dataset.take(7).reduce(np.int64(0), tf.add)

  return _calls(comp, (tf.data.Dataset.range(3).repeat(),))


@_row
def _datasets_with_state_of_their_own():
  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def comp(dataset):
    return dataset.reduce(np.int64(0), lambda total, x: 3 * total + x)

  shuffled = tf.data.Dataset.range(8).shuffle(8, seed=5)
  keys = tf.lookup.KeyValueTensorInitializer(
    tf.range(3, dtype=tf.int64), tf.constant([5, 6, 7], tf.int64)
  )
  table = tf.lookup.StaticHashTable(keys, -1)
  looked_up = tf.data.Dataset.range(3).map(table.lookup)
  return _calls(comp, (shuffled.cache(),), (looked_up,))


@_row
def _list_as_dataset():
  integers = tff.tensorflow.computation(
    lambda data: data.reduce(0, tf.add), tff.SequenceType(np.int32)
  )
  structs = tff.tensorflow.computation(
    lambda data: data.reduce(0.0, lambda total, one: total + one['x']),
    tff.SequenceType(collections.OrderedDict(x=np.float32, y=np.str_)),
  )
  example = collections.OrderedDict(x=2.0, y='a')
  return lambda: (
    integers([1, 2, 3]),
    integers([]),
    structs([example, example]),
  )


@_row
def _datasets_as_results():
  @tff.tensorflow.computation(tff.SequenceType(_ELEMENT), np.int64)
  def comp(dataset, length):
    return (
      dataset,
      dataset.map(
        lambda batch: (batch['x'], {'sum': tf.reduce_sum(batch['y'])})
      ),
      tf.data.Dataset.range(length).map(lambda i: (i, i)).batch(2),
      tf.data.Dataset.from_tensors('text'),
    )

  return _calls(comp, (_batches(5), 3))


@_row
def _two_datasets_in_a_struct():
  @tff.tensorflow.computation(
    _Point(x=tff.SequenceType(np.int64), y=(tff.SequenceType(np.int64),))
  )
  def comp(arg):
    pairs = tf.data.Dataset.zip((arg.x, arg.y[0]))
    return pairs.reduce(
      np.int64(0), lambda total, pair: total + pair[0] * pair[1]
    )

  numbers = tf.data.Dataset.range(4)
  return _calls(comp, (_Point(x=numbers, y=(numbers.skip(1),)),))


@_row
def _dataset_made_inside():
  @tff.tensorflow.computation(np.int64)
  def comp(length):
    dataset = tf.data.Dataset.range(length).map(lambda i: 2 * i)
    return dataset.reduce(np.int64(0), tf.add)

  return _calls(comp, (4,), (0,))


@_row
def _variables_start_anew_in_each_call():
  @tff.tensorflow.computation(np.float32)
  def comp(x):
    count = tf.Variable(1)
    total = tf.Variable(tf.ones([2]), trainable=False)
    with tf.control_dependencies(
      [count.assign_add(1), total.assign_add([x, x])]
    ):
      return count.read_value(), total.read_value()

  return _calls(comp, (1.0,), (1.0,), (2.0,))


@_row
def _keras_layer_is_trained():
  @tff.tensorflow.computation(tff.TensorType(np.float32, [None, 2]))
  def comp(x):
    layer = tf.keras.layers.Dense(1, kernel_initializer='ones')
    norm = tf.keras.layers.BatchNormalization()
    layer.build([None, 2])
    norm.build([None, 1])

    @tf.function
    def step():
      with tf.GradientTape() as tape:
        loss = tf.reduce_sum(norm(layer(x), training=True) ** 3)
      gradient = tape.gradient(loss, layer.kernel)
      layer.kernel.assign_sub(0.1 * gradient)
      return loss

    first = step()
    with tf.control_dependencies([first]):
      second = step()
    with tf.control_dependencies([second]):
      return (
        first,
        second,
        layer.kernel.read_value(),
        norm.moving_mean.read_value(),
      )

  x = np.arange(6, dtype=np.float32).reshape(3, 2) ** 2
  return _calls(comp, (x,), (x[:2],))


@_row
def _functions_within():
  @tf.function
  def factorial(n):
    result = 1
    while n > 1:
      result *= n
      n -= 1
    return result

  @tff.tensorflow.computation(np.int32)
  def comp(n):
    return factorial(n), tf.function(lambda x: factorial(x) + 1)(n + 1)

  return _calls(comp, (4,), (0,))


@_row
def _loops_and_branches():
  @tff.tensorflow.computation(np.int32)
  def comp(n):
    array = tf.TensorArray(tf.int32, 0, dynamic_size=True)
    _, array = tf.while_loop(
      lambda i, _: i < n,
      lambda i, array: (i + 1, array.write(i, i * i)),
      (0, array),
    )
    branch = tf.cond(
      n > 2, lambda: tf.constant('big'), lambda: tf.constant('small')
    )
    case = tf.switch_case(n % 2, [lambda: 1.0, lambda: 2.0])
    return array.stack(), branch, case, tf.map_fn(lambda i: i + n, tf.range(3))

  return _calls(comp, (5,), (2,))


@_row
def _lookup_table():
  @tff.tensorflow.computation(tff.TensorType(np.str_, [None]))
  def comp(words):
    table = tf.lookup.StaticVocabularyTable(
      tf.lookup.KeyValueTensorInitializer(
        ['a', 'b'], tf.constant([0, 1], tf.int64)
      ),
      num_oov_buckets=1,
    )
    return table.lookup(words)

  return _calls(comp, (['b', 'a', 'c'],), (['c'],))


@_row
def _sparse_and_ragged_values_within():
  @tff.tensorflow.computation(tff.TensorType(np.str_, [None]))
  def comp(lines):
    words = tf.strings.split(lines)
    return words.row_lengths(), tf.sparse.to_dense(words.to_sparse(), '-')

  return _calls(comp, (['one two', '', 'three'],))


@_row
def _stateless_random_numbers():
  @tff.tensorflow.computation(tff.TensorType(np.int32, [2]))
  def comp(seed):
    return (
      tf.random.stateless_normal([3], seed),
      tf.random.stateless_uniform([3], seed, 0, 9, tf.int32),
      tf.random.experimental.stateless_shuffle(tf.range(9), seed),
    )

  return _calls(comp, ([1, 2],), ([3, 4],))


@_row
def _random_numbers_with_a_seed():
  comp = tff.tensorflow.computation(lambda: tf.random.normal([2], seed=3))
  # The generator lives as long as the computation is kept, and moves on.
  return lambda: [comp(), comp()]


@_row
def _random_numbers_without_a_seed():
  @tff.tensorflow.computation
  def comp():
    return tf.random.uniform([2]), tf.random.get_global_generator().normal([2])

  return lambda: _Random(comp())


# Federated computations.


@tff.tensorflow.computation(np.int32)
def _double(x):
  return 2 * x


@tff.tensorflow.computation(np.int32, np.int32)
def _add(x, y):
  return x + y


@tff.tensorflow.computation
def _one():
  return 1


def _federated_calls(function, parameters, *arguments) -> Run:
  """Returns `_calls` of a function of federated values."""
  comp = tff.federated_computation(function, *parameters)
  return _calls(comp, *arguments)


_INTEGERS = _at_clients(np.int32)
# More clients than there are runs of clients that are added up separately.
_COHORTS = (([],), ([5],), ([1, 2, 3],), (list(range(40)),))


@_row
def _map_at_clients():
  return _federated_calls(
    lambda x: tff.federated_map(_double, x), [_INTEGERS], *_COHORTS[1:]
  )


@_row
def _map_at_server():
  return _federated_calls(
    lambda x: tff.federated_map(_double, x), [_at_server(np.int32)], (1,), (2,)
  )


@_row
def _sum_over_cohorts_of_any_size():
  return _federated_calls(tff.federated_sum, [_INTEGERS], *_COHORTS)


@_row
def _sum_of_structs():
  type_spec = collections.OrderedDict(
    b=_Point(x=np.int64, y=np.float32),
    a=(tff.TensorType(np.float64, [2]), (), tff.TensorType(np.uint8, [])),
  )
  value = collections.OrderedDict(
    b=_Point(x=1, y=0.25), a=(np.arange(2.0), (), np.uint8(200))
  )
  return _federated_calls(
    tff.federated_sum, [_at_clients(type_spec)], ([value] * 3,), ([],)
  )


@_row
def _broadcast_to_clients():
  @tff.federated_computation(_at_server(np.int32), _INTEGERS)
  def comp(at_server, at_clients):
    broadcast = tff.federated_broadcast(at_server)
    return tff.federated_sum(
      tff.federated_map(_add, (broadcast, at_clients))
    ), tff.federated_map(_add, (at_clients, broadcast))

  return _calls(comp, (1, [2, 3]), (4, [5]))


@_row
def _result_that_is_equal_at_all_clients():
  @tff.federated_computation(_at_server(np.int32), _INTEGERS)
  def comp(at_server, at_clients):
    return tff.federated_broadcast(at_server), at_clients

  return _calls(comp, (1, [2, 3]))


@_row
def _argument_that_is_equal_at_all_clients():
  @tff.federated_computation(_at_clients(np.int32, all_equal=True), _INTEGERS)
  def comp(equal, own):
    return (
      equal,
      tff.federated_sum(equal),
      tff.federated_sum(own),
      tff.federated_map(_add, (equal, own)),
      tff.federated_map(_double, equal),
    )

  return _calls(comp, (7, [1, 2, 3]))


@_row
def _mean():
  type_spec = (np.float32, collections.OrderedDict(x=np.float64))
  values = [(1.0, {'x': 2.0}), (2.0, {'x': 5.0}), (6.0, {'x': -2.0})]
  return _federated_calls(
    lambda x: tff.federated_mean(x),
    [_at_clients(type_spec)],
    (values,),
    (values[:1],),
    ([],),
  )


@_row
def _weighted_mean():
  @tff.federated_computation(
    _at_clients(np.float32), _at_clients(np.float32), _INTEGERS
  )
  def comp(value, weight, count):
    return (
      tff.federated_mean(value, weight),
      tff.federated_mean(value, count),
    )

  return _calls(
    comp,
    ([1.0, 2.0, 3.0], [0.5, 0.25, 1.0], [0, 3, 1]),
    ([1.0], [0.0], [0]),
    ([], [], []),
  )


@_row
def _min_and_max():
  @tff.federated_computation(_INTEGERS, _at_clients(np.float32))
  def comp(whole, real):
    both = tff.federated_zip((whole, real))
    return (
      tff.federated_min(whole),
      tff.federated_max(real),
      tff.federated_min(both),
      tff.federated_max(both),
    )

  return _calls(comp, ([3, -1, 2], [0.5, 0.25, 4.0]), ([], []))


@_row
def _aggregate_with_report():
  total_type = tff.to_type(_Point(x=np.str_, y=np.int64))

  @tff.tensorflow.computation(total_type, np.str_)
  def accumulate(total, word):
    return _Point(tf.strings.join([total.x, word]), total.y + 1)

  @tff.tensorflow.computation(total_type, total_type)
  def merge(left, right):
    return _Point(tf.strings.join([left.x, right.x]), left.y + right.y)

  @tff.tensorflow.computation(total_type)
  def report(total):
    return tf.strings.join([total.x, tf.strings.as_string(total.y)], '#')

  @tff.federated_computation(_at_clients(np.str_))
  def comp(words):
    return tff.federated_aggregate(
      words, _Point(x='', y=np.int64(0)), accumulate, merge, report
    )

  # The clients' order shows.
  return _calls(comp, ([chr(65 + i) for i in range(40)],), (['a'],), ([],))


@_row
def _evaluate_at_clients():
  @tff.federated_computation(_INTEGERS)
  def comp(_):
    everywhere = tff.federated_eval(_one, tff.CLIENTS)
    return everywhere, tff.federated_sum(everywhere)

  return _calls(comp, ([7, 8, 9],), ([7],))


@_row
def _evaluate_at_server():
  return _federated_calls(lambda: tff.federated_eval(_one, tff.SERVER), [], ())


@_row
def _constants_with_a_placement():
  @tff.federated_computation(_INTEGERS)
  def comp(_):
    everywhere = tff.federated_value(2, tff.CLIENTS)
    return tff.federated_sum(everywhere), tff.federated_value(3, tff.SERVER)

  return _calls(comp, ([7, 8, 9],), ([],))


@_row
def _clients_of_which_nothing_tells_the_number():
  return _federated_calls(
    lambda: tff.federated_sum(tff.federated_value(1, tff.CLIENTS)), [], ()
  )


@_row
def _zip():
  @tff.federated_computation(
    _INTEGERS, _at_clients(np.str_), _at_server(np.int32), _at_server(np.bool_)
  )
  def comp(a, b, c, d):
    return (
      tff.federated_zip((a, b)),
      tff.federated_zip(collections.OrderedDict(z=a, y=(b, a))),
      tff.federated_zip([c, d]),
      tff.federated_zip((a,)),
    )

  return _calls(comp, ([1, 2], ['a', 'b'], 3, True))


@_row
def _selection_from_placed_structs():
  type_spec = collections.OrderedDict(a=np.int32, b=(np.int32, np.str_))

  @tff.federated_computation(_at_clients(type_spec), _at_server(type_spec))
  def comp(at_clients, at_server):
    return (
      tff.federated_sum(at_clients['b'][0]),
      at_clients['b'],
      at_server['a'],
    )

  value = {'a': 1, 'b': (2, 'three')}
  return _calls(comp, ([value, value], value))


_KEYS = _at_clients(tff.TensorType(np.int32, [2]))
_TABLE = tff.TensorType(np.float32, [4])


@tff.tensorflow.computation(_TABLE, np.int32)
def _pick(table, key):
  return tf.gather(table, key)


def _select(select) -> Run:
  @tff.federated_computation(_KEYS, _at_server(_TABLE))
  def comp(keys, table):
    count = tff.federated_value(4, tff.SERVER)
    return select(keys, count, table, _pick)

  keys = [np.array([0, 3], np.int32), np.array([2, 2], np.int32)]
  return _calls(comp, (keys, np.arange(4, dtype=np.float32)))


@_row
def _select_slices():
  return _select(tff.federated_select)


@_row
def _select_slices_securely():
  return _select(tff.federated_secure_select)


@_row
def _select_slices_of_structs_and_reduce_them():
  @tff.tensorflow.computation((_TABLE, np.int32), np.int32)
  def pick(tables, key):
    return collections.OrderedDict(x=tables[0][key], y=tables[1] + key)

  @tff.tensorflow.computation(tff.SequenceType(pick.type_signature.result))
  def total(slices):
    return slices.reduce(0.0, lambda total, one: total + one['x'])

  @tff.federated_computation(_KEYS, _at_server((_TABLE, np.int32)))
  def comp(keys, tables):
    count = tff.federated_value(4, tff.SERVER)
    slices = tff.federated_select(keys, count, tables, pick)
    return tff.federated_sum(tff.federated_map(total, slices))

  keys = [np.array([0, 3], np.int32), np.array([2, 2], np.int32)]
  return _calls(comp, (keys, (np.arange(4, dtype=np.float32), 1)))


@_row
def _secure_sums():
  @tff.federated_computation(_INTEGERS, _at_clients((np.int64, np.int32)))
  def comp(x, pair):
    return (
      tff.federated_secure_sum(x, 100),
      tff.federated_secure_sum(pair, (100, 100)),
      tff.federated_secure_sum_bitwidth(x, 8),
    )

  return _calls(comp, ([1, 2, 3], [(4, 5)] * 3), ([], []))


@_row
def _quantized_secure_sum():
  @tff.federated_computation(_at_clients(np.float32))
  def comp(x):
    return primitives.secure_quantized_sum(x, -1.0, 1.0)

  return _calls(comp, ([0.25, -0.5, 3.0],))


@_row
def _sequence_is_mapped_and_reduced():
  return _federated_calls(
    lambda data: tff.sequence_reduce(tff.sequence_map(_double, data), 1, _add),
    [tff.SequenceType(np.int32)],
    ([1, 2, 3],),
    ([],),
  )


@_row
def _sequence_at_server_is_reduced():
  return _federated_calls(
    lambda data: tff.sequence_reduce(
      data, tff.federated_value(1, tff.SERVER), _add
    ),
    [_at_server(tff.SequenceType(np.int32))],
    ([1, 2, 3],),
  )


@_row
def _clients_return_datasets():
  @tff.tensorflow.computation(np.int64)
  def count_up(n):
    return tf.data.Dataset.range(n)

  return _federated_calls(
    lambda x: tff.federated_map(count_up, x),
    [_at_clients(np.int64)],
    ([0, 3],),
  )


@_row
def _two_rounds_of_communication():
  @tff.tensorflow.computation(np.float32, np.float32)
  def squared_distance(mean, x):
    return (x - mean) ** 2

  @tff.federated_computation(_at_clients(np.float32))
  def comp(x):
    mean = tff.federated_mean(x)
    distances = tff.federated_map(
      squared_distance, (tff.federated_broadcast(mean), x)
    )
    return mean, tff.federated_mean(distances), distances, x

  return _calls(comp, ([1.0, 2.0, 6.0],), ([4.0],))


@_row
def _client_values_are_used_in_a_later_round():
  @tff.federated_computation(_INTEGERS)
  def comp(x):
    doubled = tff.federated_map(_double, x)
    total = tff.federated_broadcast(tff.federated_sum(doubled))
    again = tff.federated_map(_add, (total, doubled))
    total = tff.federated_broadcast(tff.federated_max(again))
    return tff.federated_map(_add, (total, doubled)), tff.federated_sum(again)

  return _calls(comp, ([1, 2, 3],))


@_row
def _nested_federated_computations():
  @tff.federated_computation(_INTEGERS)
  def inner(x):
    return tff.federated_sum(tff.federated_map(_double, x)), x

  @tff.federated_computation(np.int32)
  def twice(x):
    return _double(_double(x))

  @tff.federated_computation(_INTEGERS, np.int32)
  def comp(x, y):
    total, same = inner(x)
    return inner(same), tff.federated_map(twice, total), twice(y)

  return _calls(comp, ([1, 2], 3))


@_row
def _value_is_captured_at_the_server():
  @tff.federated_computation(_at_server(np.int32), _at_server(np.int32))
  def comp(x, y):
    pair = tff.federated_zip((x, y))
    return tff.federated_map(
      tff.federated_computation(
        lambda pair: (_add(pair[0], pair[1]), _double(pair[0])),
        (np.int32, np.int32),
      ),
      pair,
    )

  return _calls(comp, (1, 2))


@_row
def _results_of_every_placement():
  @tff.federated_computation(_INTEGERS, _at_server(np.str_), np.float32)
  def comp(clients, server, plain):
    return collections.OrderedDict(
      clients=_Point(x=clients, y=tff.federated_sum(clients)),
      server=[server],
      plain=(plain, ()),
      constant=tff.tensorflow.computation(lambda: tf.range(3))(),
    )

  return _calls(comp, ([1, 2], 'a', 0.5))


@_row
def _argument_of_placed_structs():
  type_spec = _Point(
    x=_at_clients(tff.TensorType(np.str_, [None])),
    y=(_at_server(np.int32), _INTEGERS, tff.SequenceType(np.int64)),
  )

  @tff.federated_computation(type_spec)
  def comp(arg):
    return arg.x, arg.y

  data = tf.data.Dataset.range(2)
  return _calls(comp, (_Point(x=[['a'], ['b', 'c']], y=(1, [2, 3], data)),))


@_row
def _clients_load_their_own_data():
  make_dataset = tff.tensorflow.computation(
    lambda n: tf.data.Dataset.range(n), np.int64
  )

  add_up = tff.tensorflow.computation(
    lambda data: data.reduce(np.int64(0), tf.add), tff.SequenceType(np.int64)
  )

  @tff.federated_computation(_at_clients(tff.SequenceType(np.int64)))
  def count(datasets):
    return tff.federated_sum(tff.federated_map(add_up, datasets))

  comp = tff.simulation.compose_dataset_computation_with_computation(
    make_dataset, count
  )
  return _calls(comp, ([3, 4, 5],))


@_row
def _iterative_process():
  @tff.federated_computation
  def initialize():
    return tff.federated_value((0, 1.0), tff.SERVER)

  @tff.tensorflow.computation((np.int32, np.float32), np.int32)
  def update(state, total):
    return state[0] + total, state[1] * 0.5

  @tff.federated_computation(initialize.type_signature.result, _INTEGERS)
  def next_fn(state, values):
    total = tff.federated_sum(values)
    return tff.federated_map(update, (state, total))

  process = tff.templates.IterativeProcess(initialize, next_fn)

  def run():
    states = [process.initialize()]
    for cohort in ([1], [2, 3], []):
      states.append(process.next(states[-1], cohort))
    return states

  return run


# Aggregators.

_VALUE_TYPE = tff.to_type(
  collections.OrderedDict(
    kernel=tff.TensorType(np.float32, [3, 2]),
    bias=tff.TensorType(np.float32, [2]),
  )
)
_INTEGER_TYPE = tff.TensorType(np.int32, [4])


def _values(num_clients: int, *, scale: float = 1.0) -> list[Any]:
  """Returns a value of `_VALUE_TYPE` for each client."""
  rng = np.random.default_rng(num_clients)
  return [
    collections.OrderedDict(
      kernel=np.float32(scale * rng.normal(size=[3, 2])),
      bias=np.float32(scale * rng.normal(size=[2])),
    )
    for _ in range(num_clients)
  ]


def _integer_values(num_clients: int) -> list[np.ndarray]:
  return [np.arange(4, dtype=np.int32) + i for i in range(num_clients)]


# The third cohort is one of outliers.
_ROUNDS = (_values(3), _values(5), _values(2, scale=40.0))
_INTEGER_ROUNDS = tuple(map(_integer_values, (3, 5)))


def _aggregation(
  factory: Any,
  *,
  value_type: tff.Type = _VALUE_TYPE,
  rounds: tuple = _ROUNDS,
  atol: float = 0.0,
  is_random: bool = False,
) -> Run:
  """Returns a `Run` of a few rounds of a factory's process.

  Args:
    factory: Weighted or unweighted.
    value_type: Type of a client's value.
    rounds: For each round, the clients' values.
    atol: By how much results and measurements may differ, because the factory
      rounds at random. Its state then has a random seed.
    is_random: Whether nothing but types can be compared.
  """
  is_weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  weight_types = (tff.TensorType(np.float32),) if is_weighted else ()
  process = factory.create(value_type, *weight_types)

  def compared(output):
    if is_random:
      return _Random(output)
    if atol:
      return _Random(output.state), _Near(
        (output.result, output.measurements), atol
      )
    return output

  def run():
    state = process.initialize()
    results = [_Random(state) if atol or is_random else state]
    for values in rounds:
      weights = ([1.0 + i for i in range(len(values))],) if is_weighted else ()
      output = process.next(state, values, *weights)
      results.append(compared(output))
      state = output.state
    return results

  return run


def _estimate_norm(multiplier: float) -> tff.templates.EstimationProcess:
  return tff.aggregators.PrivateQuantileEstimationProcess.no_noise(
    initial_estimate=1.0,
    target_quantile=0.5,
    learning_rate=1.0,
    multiplier=multiplier,
  )


_SPECS = collections.OrderedDict(
  kernel=tf.TensorSpec([3, 2]), bias=tf.TensorSpec([2])
)
_SUM = tff.aggregators.SumFactory()
_MEAN = tff.aggregators.MeanFactory()
_DP = tff.aggregators.DifferentiallyPrivateFactory

_AGGREGATIONS: dict[str, Callable[[], Run]] = {
  'sum': lambda: _aggregation(_SUM),
  'sum_of_integers': lambda: _aggregation(
    _SUM, value_type=_INTEGER_TYPE, rounds=_INTEGER_ROUNDS
  ),
  'mean': lambda: _aggregation(_MEAN),
  'mean_without_nan': lambda: _aggregation(
    tff.aggregators.MeanFactory(no_nan_division=True), rounds=([], _values(2))
  ),
  'unweighted_mean': lambda: _aggregation(
    tff.aggregators.UnweightedMeanFactory()
  ),
  'unweighted_mean_as_weighted': lambda: _aggregation(
    tff.aggregators.as_weighted_aggregator(
      tff.aggregators.UnweightedMeanFactory()
    )
  ),
  'clipping': lambda: _aggregation(
    tff.aggregators.clipping_factory(1.0, _MEAN)
  ),
  'clipping_at_estimated_norm': lambda: _aggregation(
    tff.aggregators.clipping_factory(_estimate_norm(1.0), _SUM)
  ),
  'zeroing': lambda: _aggregation(
    tff.aggregators.zeroing_factory(5.0, _MEAN, norm_order=2.0)
  ),
  'zeroing_at_estimated_norm': lambda: _aggregation(
    tff.aggregators.zeroing_factory(_estimate_norm(2.0), _MEAN)
  ),
  'concatenation': lambda: _aggregation(tff.aggregators.concat_factory(_MEAN)),
  'measurements': lambda: _aggregation(
    tff.aggregators.add_measurements(
      _MEAN,
      client_measurement_fn=_measure_clients,
      server_measurement_fn=_measure_server,
    )
  ),
  'debug_measurements': lambda: _aggregation(
    tff.learning.add_debug_measurements(_MEAN)
  ),
  'secure_sum': lambda: _aggregation(
    tff.aggregators.SecureSumFactory(2.0, -2.0)
  ),
  'secure_sum_at_estimated_bound': lambda: _aggregation(
    tff.aggregators.SecureSumFactory(_estimate_norm(2.0))
  ),
  'secure_sum_of_integers': lambda: _aggregation(
    tff.aggregators.SecureSumFactory(10, 0),
    value_type=_INTEGER_TYPE,
    rounds=_INTEGER_ROUNDS,
  ),
  'secure_modular_sum': lambda: _aggregation(
    tff.aggregators.SecureModularSumFactory(7, symmetric_range=True),
    value_type=_INTEGER_TYPE,
    rounds=_INTEGER_ROUNDS,
  ),
  # Values are at most 3 here, and rounded at random to 255 steps.
  'quantized_sum': lambda: _aggregation(
    tff.aggregators.EncodedSumFactory.quantize_above_threshold(
      quantization_bits=8, threshold=1
    ),
    rounds=_ROUNDS[:2],
    atol=0.2,
  ),
  'hadamard_transform': lambda: _aggregation(
    tff.aggregators.HadamardTransformFactory(), atol=1e-4
  ),
  'fourier_transform': lambda: _aggregation(
    tff.aggregators.DiscreteFourierTransformFactory(), atol=1e-4
  ),
  'reservoir_sampling': lambda: _aggregation(
    tff.aggregators.UnweightedReservoirSamplingFactory(
      sample_size=2, return_sampling_metadata=True
    ),
    rounds=(_values(5), _values(3)),
    is_random=True,
  ),
  'gaussian_noise': lambda: _aggregation(
    _DP.gaussian_fixed(1.0, clients_per_round=3, clip=1.0), is_random=True
  ),
  'gaussian_without_noise': lambda: _aggregation(
    _DP.gaussian_fixed(0.0, clients_per_round=3, clip=1.0)
  ),
  'gaussian_at_adaptive_clip': lambda: _aggregation(
    _DP.gaussian_adaptive(0.0, clients_per_round=3, clipped_count_stddev=0.0)
  ),
  'tree_aggregation': lambda: _aggregation(
    _DP.tree_aggregation(
      1.0,
      clients_per_round=3,
      l2_norm_clip=1.0,
      record_specs=_SPECS,
      noise_seed=1,
    )
  ),
  'tree_at_adaptive_clip': lambda: _aggregation(
    _DP.tree_adaptive(1.0, clients_per_round=20, record_specs=_SPECS),
    is_random=True,
  ),
  'robust': lambda: _aggregation(tff.learning.robust_aggregator()),
  'robust_unweighted': lambda: _aggregation(
    tff.learning.robust_aggregator(weighted=False)
  ),
  # Tensors this small are not compressed.
  'compression': lambda: _aggregation(tff.learning.compression_aggregator()),
  'compression_of_a_large_tensor': lambda: _aggregation(
    tff.learning.compression_aggregator(zeroing=False, clipping=False),
    value_type=tff.TensorType(np.float32, [20_001]),
    rounds=([np.linspace(-1, 1, 20_001, dtype=np.float32)] * 2,),
    atol=0.05,
  ),
  'secure': lambda: _aggregation(tff.learning.secure_aggregator()),
  'differentially_private': lambda: _aggregation(
    tff.learning.dp_aggregator(1e-8, clients_per_round=3), is_random=True
  ),
  'distributed_differentially_private': lambda: _aggregation(
    tff.learning.ddp_secure_aggregator(0.1, expected_clients_per_round=3),
    is_random=True,
  ),
}


def _measure_clients(value, weight):
  del value
  return collections.OrderedDict(total_weight=tff.federated_sum(weight))


@tff.tensorflow.computation(_VALUE_TYPE)
def _largest(value):
  return tf.reduce_max(value['kernel'])


def _measure_server(value):
  return collections.OrderedDict(largest=tff.federated_map(_largest, value))


@pytest.mark.parametrize('name', _AGGREGATIONS)
def test_aggregator(name, check):
  check(_AGGREGATIONS[name]())


# Analytics.


@_row
def _federated_sample():
  @tff.federated_computation(_at_clients((np.int32, np.str_)))
  def comp(values):
    return primitives.federated_sample(values, 10)

  def run():
    # All clients are in the sample, in random order.
    numbers, words = comp([(i, str(i)) for i in range(4)])
    return _Random((numbers, words)), np.sort(numbers), sorted(words)

  return run


@_row
def _quantile_estimation():
  process = _estimate_norm(1.0)

  def run():
    state = process.initialize()
    estimates = []
    for values in ([1.0, 2.0, 3.0], [4.0, 0.5]):
      state = process.next(state, values)
      estimates.append((state, process.report(state)))
    return estimates

  return run


@_row
def _hierarchical_histogram():
  process = tff.analytics.build_hierarchical_histogram_process(
    lower_bound=0.0,
    upper_bound=8.0,
    num_bins=4,
    clip_mechanism='distinct',
    max_records_per_user=3,
  )

  def run():
    state = process.initialize()
    state, _ = process.next(state, [[1.0, 2.5, 7.0], [7.5]])
    # The rest of the state is the time of day.
    return _Random(state), state.aggregated_hierarchical_histogram

  return run


# Heavy hitters keep a queue and run on the worker.


@_row
def _count_of_distinct_words():
  comp = count_distinct.create_federated_hyperloglog_computation()
  words = [tf.data.Dataset.from_tensor_slices(list(w)) for w in ('abc', 'cde')]
  return _calls(comp, (words,))


# Learning.

_INPUT_SPEC = collections.OrderedDict(
  x=tf.TensorSpec([None, 3]), y=tf.TensorSpec([None, 1], tf.int32)
)


def _examples(num_examples: int) -> tf.data.Dataset:
  """Returns one client's examples, in a class told by the first feature."""
  rng = np.random.default_rng(num_examples)
  x = rng.normal(size=(num_examples, 3)).astype(np.float32)
  y = (x[:, :1] > 0).astype(np.int32)
  return tf.data.Dataset.from_tensor_slices(collections.OrderedDict(x=x, y=y))


def _cohort(*sizes: int) -> list[tf.data.Dataset]:
  return [_examples(size).batch(4) for size in sizes]


# Clients of several batches, of one example, and of none.
_COHORTS_OF_EXAMPLES = (_cohort(9, 4, 1), _cohort(6, 0))


def _keras_model() -> tf.keras.Model:
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input([3]),
      tf.keras.layers.Dense(
        4, 'relu', kernel_initializer=tf.keras.initializers.HeNormal(seed=1)
      ),
      tf.keras.layers.BatchNormalization(),
      tf.keras.layers.Dense(2, kernel_initializer='zeros'),
    ]
  )


def _loss() -> tf.keras.losses.Loss:
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _metrics() -> list[tf.keras.metrics.Metric]:
  return [
    tf.keras.metrics.SparseCategoricalAccuracy(),
    tff.learning.metrics.NumExamplesCounter(),
  ]


def _model() -> tff.learning.models.VariableModel:
  return tff.learning.models.from_keras_model(
    _keras_model(), loss=_loss(), input_spec=_INPUT_SPEC, metrics=_metrics()
  )


def _functional_model() -> tff.learning.models.FunctionalModel:
  keras_model = tf.keras.Sequential(
    [tf.keras.layers.Input([3]), tf.keras.layers.Dense(2)]
  )
  keras_model.set_weights([np.eye(3, 2), np.zeros(2)])
  return tff.learning.models.functional_model_from_keras(
    keras_model,
    loss_fn=_loss(),
    input_spec=_INPUT_SPEC,
    metrics_constructor=lambda: collections.OrderedDict(
      accuracy=tf.keras.metrics.SparseCategoricalAccuracy()
    ),
  )


def _reconstruction_model() -> tff.learning.models.ReconstructionModel:
  keras_model = _keras_model()
  return tff.learning.models.ReconstructionModel.from_keras_model_and_layers(
    keras_model,
    global_layers=keras_model.layers[:-1],
    local_layers=keras_model.layers[-1:],
    input_spec=_INPUT_SPEC,
  )


def _rounds(process: Any, cohorts: tuple = _COHORTS_OF_EXAMPLES) -> Run:
  """Returns a `Run` of a learning process."""

  def run():
    state = process.initialize()
    results = [state, process.get_hparams(state)]
    for cohort in cohorts:
      output = process.next(state, cohort)
      results.append(output)
      state = output.state
    weights = process.get_model_weights(state)
    return results, weights, process.set_model_weights(state, weights)

  return run


def _personalization() -> Run:
  @tf.function
  def evaluate(model, data):
    total = 0.0
    for batch in data.batch(4):
      total += model.forward_pass(batch, training=False).loss
    return collections.OrderedDict(loss=total)

  def build_personalize():
    @tf.function
    def personalize(model, train_data, test_data):
      for batch in train_data.batch(4):
        with tf.GradientTape() as tape:
          loss = model.forward_pass(batch, training=True).loss
        variables = model.trainable_variables
        for variable, gradient in zip(
          variables, tape.gradient(loss, variables)
        ):
          variable.assign_sub(0.1 * gradient)
      return evaluate(model, test_data)

    return personalize

  comp = tff.learning.algorithms.build_personalization_eval_computation(
    _model, collections.OrderedDict(sgd=build_personalize), evaluate
  )
  weights = tff.learning.models.ModelWeights.from_model(_model())

  def run():
    clients = [
      collections.OrderedDict(train_data=_examples(n), test_data=_examples(5))
      for n in (9, 2)
    ]
    return comp(weights, clients)

  return run


_SGD = tff.learning.optimizers.build_sgdm(0.1)
_ADAM = tff.learning.optimizers.build_adam(0.05)
_ALGORITHMS = tff.learning.algorithms

_PROCESSES: dict[str, Callable[[], Run]] = {
  'weighted_fed_avg': lambda: _rounds(
    _ALGORITHMS.build_weighted_fed_avg(_model, _SGD, _ADAM)
  ),
  'weighted_fed_avg_of_functional_model': lambda: _rounds(
    _ALGORITHMS.build_weighted_fed_avg(_functional_model(), _SGD)
  ),
  'weighted_fed_avg_with_iterator': lambda: _rounds(
    _ALGORITHMS.build_weighted_fed_avg(
      _functional_model(),
      _ADAM,
      loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
    )
  ),
  'weighted_fed_avg_with_robust_aggregator': lambda: _rounds(
    _ALGORITHMS.build_weighted_fed_avg(
      _functional_model(),
      _SGD,
      model_aggregator=tff.learning.robust_aggregator(),
    )
  ),
  'unweighted_fed_avg': lambda: _rounds(
    _ALGORITHMS.build_unweighted_fed_avg(_functional_model(), _SGD, _SGD)
  ),
  'weighted_fed_avg_with_optimizer_schedule': lambda: _rounds(
    _ALGORITHMS.build_weighted_fed_avg_with_optimizer_schedule(
      _functional_model(),
      lambda round_num: 0.1 / tf.cast(round_num + 1, tf.float32),
      lambda learning_rate: tff.learning.optimizers.build_sgdm(learning_rate),
    )
  ),
  'weighted_fed_prox': lambda: _rounds(
    _ALGORITHMS.build_weighted_fed_prox(_functional_model(), 0.5, _SGD)
  ),
  'unweighted_fed_prox': lambda: _rounds(
    _ALGORITHMS.build_unweighted_fed_prox(_functional_model(), 0.5, _SGD)
  ),
  'fed_sgd': lambda: _rounds(_ALGORITHMS.build_fed_sgd(_functional_model())),
  'weighted_mime_lite': lambda: _rounds(
    _ALGORITHMS.build_weighted_mime_lite(_functional_model(), _ADAM)
  ),
  'unweighted_mime_lite': lambda: _rounds(
    _ALGORITHMS.build_unweighted_mime_lite(_model, _SGD)
  ),
  'mime_lite_with_optimizer_schedule': lambda: _rounds(
    _ALGORITHMS.build_mime_lite_with_optimizer_schedule(
      _functional_model(),
      lambda round_num: 0.1 / tf.cast(round_num + 1, tf.float32),
      _SGD,
    )
  ),
  'fed_eval': lambda: _rounds(_ALGORITHMS.build_fed_eval(_model)),
  'fed_eval_of_functional_model': lambda: _rounds(
    _ALGORITHMS.build_fed_eval(_functional_model())
  ),
  'fed_kmeans': lambda: _rounds(
    _ALGORITHMS.build_fed_kmeans(2, (3,), random_seed=(1, 2)),
    tuple(
      [_examples(n).map(lambda example: example['x']) for n in sizes]
      for sizes in ((9, 4), (6, 1))
    ),
  ),
  'fed_recon': lambda: _rounds(
    _ALGORITHMS.build_fed_recon(
      _reconstruction_model,
      loss_fn=_loss,
      metrics_fn=_metrics,
      client_optimizer_fn=_SGD,
      reconstruction_optimizer_fn=_SGD,
    )
  ),
  'fed_recon_eval': lambda: _rounds(
    _ALGORITHMS.build_fed_recon_eval(
      _reconstruction_model,
      loss_fn=_loss,
      metrics_fn=_metrics,
      reconstruction_optimizer_fn=_SGD,
    )
  ),
  'personalization': _personalization,
}


@pytest.mark.parametrize('name', _PROCESSES)
def test_learning_process(name, check):
  check(_PROCESSES[name]())


def test_sequences_that_the_worker_cannot_compute(in_process):
  element_type = collections.OrderedDict(x=np.int32)

  @tff.tensorflow.computation(element_type)
  def negate(element):
    return -element['x'], 1

  @tff.federated_computation(
    _at_clients(tff.SequenceType(element_type)), tff.SequenceType(np.int32)
  )
  def comp(clients, numbers):
    negated = tff.sequence_map(negate, clients)
    sums = tff.sequence_sum(negated)
    doubled = tff.sequence_map(_double, numbers)
    return (
      negated,
      sums,
      tff.federated_sum(sums),
      (doubled, tff.sequence_sum(doubled), tff.sequence_sum(clients)),
    )

  x = [
    [collections.OrderedDict(x=x) for x in values] for values in ([5, 6], [])
  ]
  with tff.framework.get_context_stack().install(in_process):
    negated, sums, total, (doubled, doubled_sum, plain_sums) = comp(x, [1, 2])
  assert [_elements(data) for data in negated] == [[(-5, 1), (-6, 1)], []]
  assert sums == [(-11, 2), (0, 0)]
  assert total == (-11, 2)
  assert _elements(doubled) == [2, 4]
  assert doubled_sum == 6
  assert plain_sums == [{'x': 11}, {'x': 0}]
