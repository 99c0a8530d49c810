"""Which stages computations are compiled into, and what each stage computes."""

import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist.runtime import graphs
from tff_codist.runtime import staging

_FLOAT_AT_CLIENTS = tff.FederatedType(np.float32, tff.CLIENTS)
_FLOAT_AT_SERVER = tff.FederatedType(np.float32, tff.SERVER)


@tff.tensorflow.computation(np.float32, np.float32)
def _add(x, y):
  return x + y


@tff.tensorflow.computation(np.float32, np.float32)
def _multiply(x, y):
  return x * y


@tff.tensorflow.computation(np.float32)
def _halve(x):
  return x / 2


@tff.tensorflow.computation(np.float32)
def _fail(x):
  with tf.control_dependencies([tf.debugging.Assert(False, [x])]):
    return tf.identity(x)


@tff.federated_computation(_FLOAT_AT_SERVER, _FLOAT_AT_CLIENTS)
def _one_round(weight, x):
  product = tff.federated_map(_multiply, (tff.federated_broadcast(weight), x))
  return tff.federated_map(_halve, tff.federated_sum(product))


@tff.federated_computation(_FLOAT_AT_SERVER, _FLOAT_AT_CLIENTS)
def _two_rounds(weight, x):
  total = tff.federated_sum(
    tff.federated_map(_multiply, (tff.federated_broadcast(weight), x))
  )
  moved = tff.federated_map(_add, (tff.federated_broadcast(total), x))
  return tff.federated_sum(moved), moved


def _client_counts(program):
  """Returns the numbers of sums, shared, own and kept values of each stage."""
  return [
    (len(stage.sums), len(stage.shared), len(stage.own), len(stage.outputs))
    for stage in program.clients
  ]


def _server_counts(program):
  """Returns the numbers of inputs and outputs of each stage."""
  return [(len(stage.inputs), len(stage.outputs)) for stage in program.servers]


def _run(function, *values):
  """Runs a stage's function on tensors and returns arrays."""
  return [t.numpy() for t in function([tf.constant(v) for v in values])]


def test_computation_without_clients_is_one_server_stage():
  program = staging.compile_computation(_halve)
  assert _server_counts(program) == [(1, 1)]
  assert _client_counts(program) == [(0, 0, 0, 0)]
  assert program.servers[0].inputs == [program.parameter]
  assert program.servers[0].outputs == [program.result]
  assert _run(program.servers[0].run, np.float32(3)) == [1.5]


def test_computation_without_argument_has_no_parameter():
  program = staging.compile_computation(
    tff.tensorflow.computation(lambda: (1, 2.5))
  )
  assert program.parameter is None
  assert _server_counts(program) == [(0, 1)]
  assert _run(program.servers[0].run) == [1, 2.5]


def test_client_work_alone_needs_nothing_of_the_server():
  @tff.federated_computation(_FLOAT_AT_CLIENTS)
  def comp(x):
    return tff.federated_map(_halve, x)

  program = staging.compile_computation(comp)
  assert _server_counts(program) == [(0, 0)]
  assert _client_counts(program) == [(0, 0, 1, 1)]
  assert program.clients[0].own == [program.parameter]
  assert program.clients[0].outputs == [program.result]
  assert _run(program.clients[0].run, np.float32(3)) == [1.5]


def test_round_is_a_stage_of_clients_between_two_of_the_server():
  program = staging.compile_computation(_one_round)
  weight, x = program.parameter
  assert _client_counts(program) == [(1, 1, 1, 0), (0, 0, 0, 0)]
  before, after = program.servers
  clients = program.clients[0]
  assert clients.shared == [weight]
  assert clients.own == [x]
  assert before.outputs == [clients.sums[0].zero]
  assert after.inputs == [clients.sums[0].total]
  assert after.outputs == [program.result]


def test_stages_of_a_round_compute_it():
  program = staging.compile_computation(_one_round)
  clients = program.clients[0]
  assert _run(program.servers[0].run) == [0.0]
  # To a sum of 10 a client adds 3 times the weight 2.
  assert _run(clients.run, *np.float32([10, 2, 3])) == [16.0]
  assert _run(clients.merge, *np.float32([16, 5])) == [21.0]
  assert _run(program.servers[1].run, np.float32(21)) == [10.5]


def test_second_communication_is_a_stage_of_its_own():
  program = staging.compile_computation(_two_rounds)
  _, x = program.parameter
  _, moved = program.result
  first, second, last = program.clients
  assert _client_counts(program) == [(1, 1, 1, 0), (1, 1, 1, 1), (0, 0, 0, 0)]
  assert first.own == second.own == [x]
  assert program.servers[1].inputs == [first.sums[0].total]
  assert program.servers[1].outputs == second.shared
  assert second.outputs == [moved]
  assert not last.sums
  # To a sum of 10 a client with 3 adds its value moved by 6, and keeps it.
  assert _run(second.run, *np.float32([10, 6, 3])) == [19.0, 9.0]


def test_aggregations_side_by_side_share_a_stage():
  @tff.federated_computation(_FLOAT_AT_CLIENTS)
  def comp(x):
    halves = tff.federated_map(_halve, x)
    return tff.federated_sum(x), tff.federated_max(x), tff.federated_sum(halves)

  program = staging.compile_computation(comp)
  assert _client_counts(program) == [(3, 0, 1, 0), (0, 0, 0, 0)]
  found = _run(program.clients[0].run, *np.float32([10, 1, 0, 4]))
  assert found == [14.0, 4.0, 2.0]


def test_value_that_all_clients_share_is_computed_at_the_server():
  @tff.federated_computation(_FLOAT_AT_SERVER, _FLOAT_AT_CLIENTS)
  def comp(weight, x):
    sent = tff.federated_broadcast(tff.federated_map(_halve, weight))
    return tff.federated_map(_add, (sent, x))

  program = staging.compile_computation(comp)
  weight, _ = program.parameter
  assert _client_counts(program) == [(0, 1, 1, 1)]
  assert program.servers[0].inputs == [weight]
  assert program.servers[0].outputs == program.clients[0].shared
  assert _run(program.servers[0].run, np.float32(3)) == [1.5]


def test_client_result_of_an_earlier_stage_is_kept_for_a_later_one():
  @tff.federated_computation(_FLOAT_AT_CLIENTS)
  def comp(x):
    half = tff.federated_map(_halve, x)
    total = tff.federated_broadcast(tff.federated_sum(half))
    return tff.federated_sum(tff.federated_map(_add, (total, half)))

  program = staging.compile_computation(comp)
  first, second, _ = program.clients
  assert len(first.outputs) == 1
  assert second.own == first.outputs
  assert _run(first.run, *np.float32([10, 3])) == [11.5, 1.5]


def test_what_the_result_does_not_need_is_not_computed():
  @tff.federated_computation(_FLOAT_AT_SERVER, _FLOAT_AT_CLIENTS)
  def comp(weight, x):
    tff.federated_sum(tff.federated_map(_fail, x))
    tff.federated_broadcast(tff.federated_map(_fail, weight))
    return tff.federated_sum(x)

  program = staging.compile_computation(comp)
  weight, _ = program.parameter
  assert _client_counts(program) == [(1, 0, 1, 0), (0, 0, 0, 0)]
  assert weight not in program.servers[0].inputs
  assert _run(program.clients[0].run, *np.float32([10, 4])) == [14.0]


def test_op_that_the_result_does_not_need_does_not_run():
  @tff.tensorflow.computation(np.int32)
  def comp(x):
    tf.debugging.assert_non_negative(x)
    return x + 1

  program = staging.compile_computation(comp)
  assert _run(program.servers[0].run, np.int32(-3)) == [-2]


@tff.tensorflow.computation(np.int32)
def _count_in_a_variable(x):
  count = tf.Variable(0)
  with tf.control_dependencies(
    tf.while_loop(
      lambda i: i < 1000,
      lambda i: i + tf.sign(tf.abs(count.assign_add(x)) + 1),
      [0],
    )
  ):
    return count.read_value()


def test_variables_start_anew_in_each_call():
  program = staging.compile_computation(_count_in_a_variable)
  run = program.servers[0].run
  assert [_run(run, np.int32(x)) for x in (1, 1, 2)] == [[1000], [1000], [2000]]


def test_variables_are_not_shared_between_threads():
  run = staging.compile_computation(_count_in_a_variable).servers[0].run
  start = threading.Barrier(4)
  found = {}

  def count(x):
    start.wait()
    found[x] = [_run(run, np.int32(x)) for _ in range(20)]

  threads = [threading.Thread(target=count, args=[x]) for x in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {x: [[1000 * x]] * 20 for x in range(4)}


def test_one_computation_called_twice_has_variables_of_its_own():
  @tff.tensorflow.computation(np.int32, np.int32)
  def subtract(x, y):
    return x - y

  @tff.federated_computation(np.int32, np.int32)
  def comp(x, y):
    return subtract(_count_in_a_variable(x), _count_in_a_variable(y))

  program = staging.compile_computation(comp)
  assert _run(program.servers[0].run, *np.int32([5, 3])) == [2000]


def test_functions_are_forgotten_with_the_program(function_names):
  def names():
    # TensorFlow keeps one for each op that is run by itself.
    return {n for n in function_names() if not n.startswith('__wrapped__')}

  @tff.tensorflow.computation(tff.SequenceType(np.int64))
  def comp(data):
    return data.map(lambda x: 2 * x).reduce(np.int64(0), tf.add)

  before = names()
  program = staging.compile_computation(comp)
  variant = tf.data.experimental.to_variant(tf.data.Dataset.range(4))
  assert program.servers[0].run([variant])[0] == 12
  assert names() > before
  del program
  assert names() == before


def _takes_a_function():
  @tff.federated_computation(tff.FunctionType(np.float32, np.float32))
  def comp(function):
    return function(function(1.0))

  return comp


def _returns_a_function():
  return tff.federated_computation(lambda: _halve)


def _captures_a_value():
  @tff.federated_computation(np.float32, _FLOAT_AT_CLIENTS)
  def comp(weight, x):
    @tff.federated_computation(np.float32, np.float32)
    def accumulate(total, x):
      return _add(total, _multiply(x, weight))

    identity = tff.tensorflow.computation(lambda x: x, np.float32)
    return tff.federated_aggregate(x, 0.0, accumulate, _add, identity)

  return comp


def _is_of_jax():
  return tff.jax.computation(lambda x: 2 * x, np.float32)


def _calls_something_unknown():
  return _from_body(
    tff.framework.Call(
      tff.framework.Intrinsic(
        'unheard_of', tff.FunctionType(np.float32, np.float32)
      ),
      tff.framework.Reference('x', np.float32),
    )
  )


def _is_incomplete():
  return _from_body(tff.framework.Reference('nobody', np.float32))


def _from_body(body):
  return tff.framework.ConcreteComputation.from_building_block(
    tff.framework.Lambda('x', np.float32, body)
  )


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (_takes_a_function, 'argument that is a function'),
    (_returns_a_function, 'result that is a function'),
    (_captures_a_value, 'aggregation captures a value'),
    (_is_of_jax, 'not of TensorFlow'),
    (_calls_something_unknown, 'unheard_of'),
    (_is_incomplete, 'failed with KeyError.*nobody'),
  ],
)
def test_what_cannot_be_compiled_is_named(build, message):
  with pytest.raises(graphs.UnsupportedError, match=message):
    staging.compile_computation(build())
