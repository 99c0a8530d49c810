"""Compiles a TFF computation into a few TensorFlow functions, one per stage.

Between two communications, everything that happens at one placement is one
stage, and one TensorFlow function:

    server 0 ─▶ clients 0 ─▶ server 1 ─▶ clients 1 ─▶ ... ─▶ server n

Server stage k computes what the clients of stage k are sent; a client of stage
k computes from that and its own values, adds to the sums over clients, and may
keep values; server stage k + 1 starts from the finished sums. A round of
federated averaging has three stages, a computation without clients one.

TFF's own transformations first express other intrinsics by a handful of them
(`federated_aggregate`, `federated_map`, ...). The computation is then evaluated
on nodes, placeholders that record who computes what from what, and at last the
nodes of each stage are traced into its function, with the graphs of all
`tff.tensorflow.computation`s inlined.
"""

import collections
import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.python.eager import context

from tff_codist.runtime import graphs

_logger = logging.getLogger(__name__)

SERVER = 'server'
CLIENTS = 'clients'

# A value while a stage is traced: a tensor, a dataset's variant tensor, a tuple
# of values in the order of the struct type, or a function of the computation.
Value = Any


class Node:
  """A value of the computation that is placed, but not computed yet.

  Attributes:
    type: Its TFF type, without placement.
    where: `'server'`, also for unplaced values and those that all clients
      share, or `'clients'`.
    stage: Number of the stage that computes it.
    inputs: Nodes from which it is computed, in the same or earlier stages.
    trace: From the inputs' values to its value, in TensorFlow; `None` for the
      computation's arguments and for sums over clients.
  """

  def __init__(self, type_spec, where, stage, inputs=(), trace=None):
    self.type = type_spec
    self.where = where
    self.stage = stage
    self.inputs = tuple(inputs)
    self.trace = trace

  @property
  def function(self) -> tuple[str, int]:
    """The stage function that computes it."""
    return self.where, self.stage


class Sum(NamedTuple):
  """A federated aggregation over the clients of one stage.

  Attributes:
    total: The finished sum, a node of the server stage after it.
    summand: What each client adds, a node of the clients.
    zero: Where the sum starts, a node of the server.
    accumulate: From a sum's and a summand's value to a sum's.
    merge: From two sums' values to a sum's.
  """

  total: Node
  summand: Node
  zero: Node
  accumulate: Callable[[Value], Value]
  merge: Callable[[Value], Value]


class Function:
  """A stage function from flat tensors to flat tensors.

  It is known to TensorFlow by its name. The Python objects of the graph that
  was traced are not kept: they are many, and slow down the whole program.

  Attributes:
    name: The function's name.
    output_types: Types of its outputs.
  """

  def __init__(self, concrete: Any):
    """Takes over what a concrete function does.

    Args:
      concrete: A `tf.types.experimental.ConcreteFunction` without captures.
    """
    graph = concrete.graph.as_graph_def()
    graph.library.function.append(concrete.function_def)
    graphs.rename_functions(graph)
    names = [function.signature.name for function in graph.library.function]
    self.name = names[-1]
    self.output_types = [tensor.dtype for tensor in concrete.outputs]
    runtime = context.context()
    for function in graph.library.function:
      runtime.add_function_def(function)

    def forget():
      for name in names:
        runtime.remove_function(name)

    weakref.finalize(self, forget).atexit = False

  def __call__(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
    """Runs the function on the device in whose scope it is called."""
    if not self.output_types:
      return ()
    # Calling a concrete function would bind, check and wrap arguments for up
    # to 0.2 ms, as long as a small client trains.
    return tf.raw_ops.StatefulPartitionedCall(
      args=tensors, Tout=self.output_types, f=self.name
    )


class ServerStage(NamedTuple):
  """One server stage.

  Attributes:
    inputs: Nodes of arguments and earlier stages that it reads.
    outputs: Its nodes that a later stage or the result reads.
    run: From the inputs' to the outputs' tensors.
  """

  inputs: Sequence[Node]
  outputs: Sequence[Node]
  run: Function


class ClientStage(NamedTuple):
  """One client stage.

  Attributes:
    sums: The sums to which its clients add.
    shared: Server nodes that every client is sent.
    own: Nodes of which each client has its own value.
    outputs: Its nodes that a later stage or the result reads, per client.
    run: From the tensors of the sums, `shared` and `own`, to those of the new
      sums and `outputs`.
    merge: From the tensors of two sets of sums to those of their union's.
  """

  sums: Sequence[Sum]
  shared: Sequence[Node]
  own: Sequence[Node]
  outputs: Sequence[Node]
  run: Function
  merge: Function


class Program(NamedTuple):
  """A computation in stages.

  Attributes:
    parameter: The argument: a node, or a tuple of such for a struct, or `None`.
    result: The result, likewise.
    servers: The server stages.
    clients: The client stages, of which the last has work only if clients'
      values are the result.
  """

  parameter: Any
  result: Any
  servers: Sequence[ServerStage]
  clients: Sequence[ClientStage]


def leaf_types(
  type_spec: tff.Type,
) -> Iterator[Union[tff.TensorType, tff.SequenceType]]:
  """Yields the tensor and sequence types of a type, in order.

  Raises:
    UnsupportedError: If it has constituents of another kind.
  """
  if isinstance(type_spec, tff.StructType):
    for _, element in tff.structure.iter_elements(type_spec):
      yield from leaf_types(element)
  elif isinstance(type_spec, (tff.TensorType, tff.SequenceType)):
    yield type_spec
  else:
    raise graphs.UnsupportedError(f'it has a value of type {type_spec}')


def flatten(value: Value) -> Iterator[tf.Tensor]:
  """Yields the tensors of a value, in the order of `leaf_types`."""
  if isinstance(value, tuple):
    for element in value:
      yield from flatten(element)
  else:
    yield value


def unflatten(type_spec: tff.Type, tensors: Iterator[tf.Tensor]) -> Value:
  """Takes from an iterator the tensors of a value of some type."""
  if isinstance(type_spec, tff.StructType):
    return tuple(
      unflatten(element, tensors)
      for _, element in tff.structure.iter_elements(type_spec)
    )
  return next(tensors)


def take(type_spec: tff.Type, tensors: Iterator[tf.Tensor]) -> list[tf.Tensor]:
  """Takes from an iterator the tensors of a value of some type, flat."""
  return list(itertools.islice(tensors, count_leaves(type_spec)))


def count_leaves(type_spec: tff.Type) -> int:
  """Returns how many tensors a value of some type has."""
  return sum(1 for _ in leaf_types(type_spec))


def compile_computation(comp: tff.Computation) -> Program:
  """Compiles a computation.

  Args:
    comp: Any TFF computation.

  Returns:
    Its stages, traced.

  Raises:
    UnsupportedError: If it uses something that cannot be compiled.
  """
  try:
    recorder = _Recorder()
    parameter = _parameter_nodes(comp.type_signature.parameter)
    result = recorder.apply(recorder.evaluate(_reduce(comp), {}), parameter)
    return _trace_stages(parameter, result, recorder.sums)
  except graphs.UnsupportedError:
    raise
  except Exception as error:  # Whatever TFF and TensorFlow raise.
    raise graphs.UnsupportedError(
      f'compiling it failed with {type(error).__name__}: {error}'
    ) from error


def _reduce(comp: tff.Computation) -> tff.framework.ComputationBuildingBlock:
  """Returns a computation in terms of the intrinsics that are recorded."""
  block = comp.to_building_block()
  secure = {uri for uri in _intrinsics(block) if 'secure' in uri}
  if secure:
    _logger.info(
      'What a deployment computes securely (%s) is computed openly here.',
      ', '.join(sorted(secure)),
    )
    # Written out, a deeply nested computation is one that TFF cannot parse.
    comp = tff.framework.ConcreteComputation.from_building_block(
      tff.framework.to_call_dominant(block)
    )
    comp = tff.backends.test.replace_secure_intrinsics_with_bodies(comp)
    block = comp.to_building_block()
  block, _ = tff.tensorflow.replace_intrinsics_with_bodies(block)
  return block


def _intrinsics(block: tff.framework.ComputationBuildingBlock) -> Iterator[str]:
  if isinstance(block, tff.framework.Intrinsic):
    yield block.uri
  for child in block.children():
    yield from _intrinsics(child)


def _parameter_nodes(type_spec: Optional[tff.Type]) -> Any:
  if type_spec is None:
    return None
  if isinstance(type_spec, tff.FederatedType):
    return Node(type_spec.member, _where(type_spec), stage=0)
  if isinstance(type_spec, tff.FunctionType):
    raise graphs.UnsupportedError('it has an argument that is a function')
  if isinstance(type_spec, tff.StructType):
    return tuple(map(_parameter_nodes, _element_types(type_spec)))
  return Node(type_spec, SERVER, stage=0)


def _where(type_spec: tff.Type) -> str:
  """Returns where a value of a type is, see `Node.where`."""
  is_own = (
    isinstance(type_spec, tff.FederatedType)
    and type_spec.placement is tff.CLIENTS
    and not type_spec.all_equal
  )
  return CLIENTS if is_own else SERVER


def _element_types(type_spec: tff.StructType) -> list[tff.Type]:
  return [element for _, element in tff.structure.iter_elements(type_spec)]


class _Closure(NamedTuple):
  """A lambda with the values of the names around it."""

  block: tff.framework.Lambda
  scope: Mapping[str, Any]


class _Evaluator:
  """Evaluates building blocks up to calls of TensorFlow and of intrinsics.

  Structs become tuples, functions closures or the building block itself.
  """

  def evaluate(
    self, block: tff.framework.ComputationBuildingBlock, scope: Mapping
  ) -> Any:
    """Returns the value of a building block, given those of names around it."""
    if isinstance(block, tff.framework.Reference):
      return scope[block.name]
    if isinstance(block, tff.framework.Struct):
      return tuple(self.evaluate(element, scope) for element in block)
    if isinstance(block, tff.framework.Selection):
      index = block.index
      if index is None:
        names = tff.structure.name_list_with_nones(block.source.type_signature)
        index = names.index(block.name)
      return self.select(self.evaluate(block.source, scope), index)
    if isinstance(block, tff.framework.Block):
      scope = dict(scope)
      for name, value in block.locals:
        scope[name] = self.evaluate(value, scope)
      return self.evaluate(block.result, scope)
    if isinstance(block, tff.framework.Lambda):
      return _Closure(block, scope)
    if isinstance(block, tff.framework.Call):
      argument = block.argument
      if argument is not None:
        argument = self.evaluate(argument, scope)
      return self.apply(self.evaluate(block.function, scope), argument)
    if isinstance(
      block, (tff.framework.CompiledComputation, tff.framework.Intrinsic)
    ):
      return block
    if isinstance(block, tff.framework.Literal):
      return self.literal(block)
    raise graphs.UnsupportedError(f'it has a {type(block).__name__}')

  def apply(self, function: Any, argument: Any) -> Any:
    """Returns the result of calling a function of the computation."""
    if not isinstance(function, _Closure):
      return self.call(function, argument)
    scope = {**function.scope, function.block.parameter_name: argument}
    return self.evaluate(function.block.result, scope)


class _Recorder(_Evaluator):
  """Evaluates on nodes: records who computes what from what.

  Attributes:
    sums: The aggregations met so far.
  """

  def __init__(self):
    self.sums: list[Sum] = []
    self._intrinsics = {
      'federated_aggregate': self._aggregate,
      'federated_apply': self._map,
      'federated_broadcast': lambda result_type, value: value,
      'federated_eval_at_clients': self._evaluate_at,
      'federated_eval_at_server': self._evaluate_at,
      'federated_map': self._map,
      'federated_map_all_equal': self._map,
      'federated_secure_select': self._select_slices,
      'federated_select': self._select_slices,
      'federated_value_at_clients': self._place,
      'federated_value_at_server': self._place,
      'federated_zip_at_clients': self._place,
      'federated_zip_at_server': self._place,
    }

  def select(self, value, index):
    if isinstance(value, tuple):
      return value[index]
    element_type = _element_types(value.type)[index]
    return self._node(element_type, value, lambda struct: struct[index])

  def literal(self, block):
    return self._node(
      block.type_signature, (), lambda _: _TRACER.literal(block)
    )

  def call(self, function, argument):
    result_type = function.type_signature.result
    intrinsic = self._intrinsics.get(getattr(function, 'uri', None), None)
    if intrinsic is None:
      return self._map(result_type, (function, argument))
    return intrinsic(result_type, argument)

  def _node(
    self, result_type: tff.Type, argument: Any, trace: Callable[[Any], Value]
  ) -> Node:
    """Returns the node of a result.

    Args:
      result_type: Its type, with its placement.
      argument: What it is computed from, with nodes in it.
      trace: From the argument with values in place of its nodes to the result.
    """
    inputs = list(dict.fromkeys(_nodes_in(argument)))
    return Node(
      getattr(result_type, 'member', result_type),
      _where(result_type),
      max((node.stage for node in inputs), default=0),
      inputs,
      lambda *values: trace(_substitute(argument, dict(zip(inputs, values)))),
    )

  def _map(self, result_type, argument):
    return self._node(result_type, argument, lambda call: _TRACER.apply(*call))

  def _evaluate_at(self, result_type, function):
    return self._map(result_type, (function, None))

  def _place(self, result_type, value):
    return self._node(result_type, value, lambda value: value)

  def _aggregate(self, result_type, argument):
    summand, zero, accumulate, merge, report = argument
    if any(_nodes_in((accumulate, merge))):
      raise graphs.UnsupportedError('its aggregation captures a value')
    total_type = _signature(accumulate).parameter[0]
    total = Node(total_type, SERVER, summand.stage + 1)
    self.sums.append(
      Sum(
        total=total,
        summand=summand,
        zero=self._place(total_type, zero),
        accumulate=functools.partial(_TRACER.apply, accumulate),
        merge=functools.partial(_TRACER.apply, merge),
      )
    )
    return self._map(result_type, (report, total))

  def _select_slices(self, result_type, argument):
    keys, _, server_value, select = argument
    element_type = result_type.member.element

    def trace(argument):
      keys, server_value, select = argument
      slices = tf.data.Dataset.from_tensor_slices(keys).map(
        lambda key: _to_element(
          _TRACER.apply(select, (server_value, key)), element_type
        )
      )
      return tf.data.experimental.to_variant(slices)

    return self._node(result_type, (keys, server_value, select), trace)


def _signature(function: Any) -> tff.FunctionType:
  block = function.block if isinstance(function, _Closure) else function
  return block.type_signature


def _nodes_in(value: Any) -> Iterator[Node]:
  """Yields the nodes in a tuple, and those a closure refers to."""
  if isinstance(value, Node):
    yield value
  elif isinstance(value, _Closure):
    for name in _names_needed(value):
      yield from _nodes_in(value.scope[name])
  elif isinstance(value, tuple):
    for element in value:
      yield from _nodes_in(element)


def _substitute(value: Any, values: Mapping[Node, Value]) -> Any:
  """Returns a tuple or closure with values in place of its nodes."""
  if isinstance(value, Node):
    return values[value]
  if isinstance(value, _Closure):
    scope = {
      name: _substitute(value.scope[name], values)
      for name in _names_needed(value)
    }
    return _Closure(value.block, scope)
  if isinstance(value, tuple):
    return tuple(_substitute(element, values) for element in value)
  return value


def _names_needed(closure: _Closure) -> list[str]:
  """Returns the names around a closure that its body may refer to, sorted."""

  def references(block):
    if isinstance(block, tff.framework.Reference):
      yield block.name
    for child in block.children():
      yield from references(child)

  return sorted(set(references(closure.block)) & set(closure.scope))


class _Tracer(_Evaluator):
  """Evaluates on tensors, in the graph of the function being traced."""

  def __init__(self):
    self._intrinsics = {
      'sequence_map': self._sequence_map,
      'sequence_reduce': self._sequence_reduce,
      'sequence_sum': self._sequence_sum,
    }

  def select(self, value, index):
    return value[index]

  def literal(self, block):
    return tf.constant(block.value)

  def call(self, function, argument):
    if isinstance(function, tff.framework.CompiledComputation):
      return _inline(function, argument)
    if function.uri not in self._intrinsics:
      raise graphs.UnsupportedError(f'it calls {function.uri}')
    return self._intrinsics[function.uri](function.type_signature, argument)

  def _sequence_map(self, signature, argument):
    function, sequence = argument
    from_type = signature.parameter[1].element
    to_type = signature.result.element

    # `map` unpacks elements that are tuples.
    is_tuple = isinstance(_to_element(_specs(from_type), from_type), tuple)

    def map_element(*element):
      value = _from_element(element if is_tuple else element[0], from_type)
      return _to_element(self.apply(function, value), to_type)

    elements = to_dataset(sequence, from_type).map(map_element)
    return tf.data.experimental.to_variant(elements)

  def _sequence_reduce(self, signature, argument):
    sequence, zero, function = argument
    element_type = signature.parameter[0].element
    return to_dataset(sequence, element_type).reduce(
      zero,
      lambda total, element: self.apply(
        function, (total, _from_element(element, element_type))
      ),
    )

  def _sequence_sum(self, signature, sequence):
    element_type = signature.parameter.element
    return to_dataset(sequence, element_type).reduce(
      unflatten(
        element_type,
        (tf.zeros(t.shape, t.dtype) for t in leaf_types(element_type)),
      ),
      lambda total, element: tf.nest.map_structure(
        tf.add, total, _from_element(element, element_type)
      ),
    )


_TRACER = _Tracer()


def to_dataset(variant: tf.Tensor, element_type: tff.Type) -> tf.data.Dataset:
  """Returns the dataset of a variant tensor."""
  return tf.data.experimental.from_variant(
    variant, _to_element(_specs(element_type), element_type)
  )


def _to_element(value: Value, element_type: tff.Type) -> Any:
  """Returns a value in the form in which datasets have it."""
  if not isinstance(element_type, tff.StructType):
    return value
  elements = [
    _to_element(element, inner)
    for element, inner in zip(value, _element_types(element_type))
  ]
  names = tff.structure.name_list(element_type)
  return (
    collections.OrderedDict(zip(names, elements)) if names else tuple(elements)
  )


def _from_element(element: Any, element_type: tff.Type) -> Value:
  """Returns the value of a dataset's element."""
  if not isinstance(element_type, tff.StructType):
    return element
  values = element.values() if isinstance(element, dict) else element
  return tuple(map(_from_element, values, _element_types(element_type)))


def _inline(block: tff.framework.CompiledComputation, argument: Value) -> Value:
  """Puts the graph of a `tff.tensorflow.computation` into the current one."""
  if block.proto.WhichOneof('computation') != 'tensorflow':
    raise graphs.UnsupportedError('a part of it is not of TensorFlow')
  proto = block.proto.tensorflow
  inputs = {}
  if proto.HasField('parameter'):
    # Tensors of the graph around this one are captured by using them.
    tensors = map(tf.identity, flatten(argument))
    inputs = dict(zip(_tensor_names(proto.parameter), tensors))
  if proto.session_token_tensor_name:
    inputs[proto.session_token_tensor_name] = tf.constant('')
  outputs = list(_tensor_names(proto.result))

  graph = graphs.prepare(proto, inputs=inputs, outputs=outputs)
  names = {node.name for node in graph.node}
  results = tf.graph_util.import_graph_def(
    graph,
    {name: inputs[name] for name in inputs if graphs.op_name(name) in names},
    outputs,
    name='',
  )
  return unflatten(block.type_signature.result, iter(results))


def _tensor_names(binding: Any) -> Iterator[str]:
  """Yields the tensors of a `TensorFlow.Binding` message."""
  kind = binding.WhichOneof('binding')
  if kind == 'struct':
    for element in binding.struct.element:
      yield from _tensor_names(element)
  elif kind == 'tensor':
    yield binding.tensor.tensor_name
  else:
    yield binding.sequence.variant_tensor_name


def _spec(leaf_type: Union[tff.TensorType, tff.SequenceType]) -> tf.TensorSpec:
  if isinstance(leaf_type, tff.SequenceType):
    return tf.TensorSpec([], tf.variant)
  return tf.TensorSpec(leaf_type.shape, leaf_type.dtype)


def _specs(type_spec: tff.Type) -> Any:
  """Returns a type's `tf.TensorSpec`s, in tuples as its values have."""
  return unflatten(type_spec, map(_spec, leaf_types(type_spec)))


def _trace_stages(parameter: Any, result: Any, sums: Sequence[Sum]) -> Program:
  """Traces the function of every stage."""
  inputs = collections.defaultdict(dict)
  outputs = collections.defaultdict(dict)
  sum_of = {one.total: one for one in sums}
  stage_sums = collections.defaultdict(dict)
  seen = set()

  def need(node: Node, function: Any) -> None:
    """Records that a function, or the result, needs a node's value."""
    if (node, function) in seen:
      return
    seen.add((node, function))
    if node.trace is not None and node.function == function:
      for needed in node.inputs:
        need(needed, function)
      return
    inputs[function][node] = None
    if node.trace is not None:
      outputs[node.function][node] = None
      need(node, node.function)
    elif node in sum_of:
      one = sum_of[node]
      stage = one.summand.stage
      stage_sums[stage][one] = None
      need(one.zero, None)
      need(one.summand, (CLIENTS, stage))

  for node in _leaves(result):
    if not isinstance(node, Node):
      raise graphs.UnsupportedError('it has a result that is a function')
    need(node, None)

  num_stages = 1 + max(itertools.chain((node.stage for node, _ in seen), (0,)))
  servers, clients = [], []
  for stage in range(num_stages):
    function = SERVER, stage
    servers.append(
      _trace_server(list(inputs[function]), list(outputs[function]))
    )
    function = CLIENTS, stage
    clients.append(
      _trace_clients(
        list(stage_sums[stage]),
        list(inputs[function]),
        list(outputs[function]),
      )
    )
  return Program(parameter, result, servers, clients)


def _trace_server(
  inputs: Sequence[Node], outputs: Sequence[Node]
) -> ServerStage:
  def compute(tensors):
    values = _Values(inputs, tensors)
    return tuple(values[node] for node in outputs)

  types = [node.type for node in inputs]
  return ServerStage(inputs, outputs, _trace_function(types, compute))


def _trace_clients(
  sums: Sequence[Sum], inputs: Sequence[Node], outputs: Sequence[Node]
) -> ClientStage:
  shared = [node for node in inputs if node.where == SERVER]
  own = [node for node in inputs if node.where == CLIENTS]
  totals = [one.total.type for one in sums]

  def compute(tensors):
    before = [unflatten(total, tensors) for total in totals]
    values = _Values([*shared, *own], tensors)
    after = [
      one.accumulate((total, values[one.summand]))
      for one, total in zip(sums, before)
    ]
    return (*after, *(values[node] for node in outputs))

  def merge(tensors):
    left, right = (
      [unflatten(total, tensors) for total in totals] for _ in range(2)
    )
    return tuple(one.merge(pair) for one, pair in zip(sums, zip(left, right)))

  types = [*totals, *(node.type for node in (*shared, *own))]
  return ClientStage(
    sums,
    shared,
    own,
    outputs,
    run=_trace_function(types, compute),
    merge=_trace_function([*totals, *totals], merge),
  )


def _leaves(value: Any) -> Iterator[Any]:
  if isinstance(value, tuple) and not isinstance(value, _Closure):
    for element in value:
      yield from _leaves(element)
  else:
    yield value


class _Values(dict):
  """Values of a stage's nodes, computed when first asked for."""

  def __init__(self, inputs: Sequence[Node], tensors: Iterator[tf.Tensor]):
    super().__init__((node, unflatten(node.type, tensors)) for node in inputs)

  def __missing__(self, node: Node) -> Value:
    self[node] = node.trace(*(self[needed] for needed in node.inputs))
    return self[node]


def _trace_function(
  types: Sequence[tff.Type],
  compute: Callable[[Iterator[tf.Tensor]], Value],
) -> Function:
  """Traces a function of flat tensors of the given types to a flat value."""
  function = tf.function(
    lambda *tensors: [
      _returnable(tensor) for tensor in flatten(compute(iter(tensors)))
    ],
    autograph=False,
  )
  specs = (_spec(leaf) for type_spec in types for leaf in leaf_types(type_spec))
  return Function(function.get_concrete_function(*specs))


def _returnable(tensor: tf.Tensor) -> tf.Tensor:
  """Returns a tensor in a form in which a function can return it.

  The op that calls the function refuses integers that are known to be a shape.
  """
  is_integer = tensor.dtype == tf.int32
  return tf.raw_ops.Snapshot(input=tensor) if is_integer else tensor
