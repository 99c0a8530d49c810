"""Graphs of `tff.tensorflow.computation`s, made fit to be part of a function.

TFF serializes a computation as the graph of a session, which runs what is asked
for and keeps variables between runs. In a TensorFlow function every op with a
side effect runs, several threads call it at once, and nothing may outlive the
call.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

_CALL = 'StatefulPartitionedCall'


class UnsupportedError(Exception):
  """A computation that cannot be compiled."""


def prepare(
  proto: Any, *, inputs: Iterable[str], outputs: Sequence[str]
) -> tf.compat.v1.GraphDef:
  """Returns the graph of a computation, to be imported into a function.

  Args:
    proto: The computation, a `TensorFlow` message of TFF.
    inputs: Names of the tensors that arguments will replace.
    outputs: Names of the tensors that it returns.

  Returns:
    A graph of what the outputs need. Its variables and tables live for one
    call, and its functions have names that no other graph has.

  Raises:
    UnsupportedError: If the graph keeps state of another kind.
  """
  graph = tf.compat.v1.GraphDef()
  proto.graph_def.Unpack(graph)
  _prune(graph, [*outputs, *filter(None, [proto.initialize_op])])
  _forget_control_inputs(graph, inputs)
  if proto.initialize_op:
    _run_first(graph, proto.initialize_op)
  _iterate_instead_of_reduce(graph)
  rename_functions(graph)
  for node in _all_nodes(graph):
    _forget_with_call(node)
    # It may want to be on the device of an op that is pruned.
    node.attr.pop('_class', None)
  return graph


def op_name(name: str) -> str:
  """Returns the op of a tensor's name, or of a node's input."""
  return name.lstrip('^').split(':')[0]


def _ancestors(graph: tf.compat.v1.GraphDef, names: Iterable[str]) -> set[str]:
  """Returns the names of all ops that some tensors or ops need."""
  nodes = {node.name: node for node in graph.node}
  found, pending = set(), [op_name(name) for name in names]
  while pending:
    name = pending.pop()
    if name not in found:
      found.add(name)
      pending.extend(map(op_name, nodes[name].input))
  return found


def _prune(graph: tf.compat.v1.GraphDef, wanted: Iterable[str]) -> None:
  """Removes the ops that the wanted tensors and ops do not need."""
  needed = _ancestors(graph, wanted)
  nodes = [node for node in graph.node if node.name in needed]
  del graph.node[:]
  graph.node.extend(nodes)


def _forget_control_inputs(
  graph: tf.compat.v1.GraphDef, inputs: Iterable[str]
) -> None:
  """Lets no op wait for placeholders that tensors replace."""
  replaced = {f'^{op_name(name)}' for name in inputs}
  for node in graph.node:
    for name in replaced.intersection(node.input):
      node.input.remove(name)


def _run_first(graph: tf.compat.v1.GraphDef, initialize_op: str) -> None:
  """Lets every op wait for the op that initializes variables and tables."""
  initializing = _ancestors(graph, [initialize_op])
  for node in graph.node:
    if node.name not in initializing:
      node.input.append(f'^{op_name(initialize_op)}')


# Makes names unique.
_serial = itertools.count()


def _all_nodes(graph: tf.compat.v1.GraphDef) -> Iterator[Any]:
  """Yields the nodes of a graph and of its functions."""
  yield from graph.node
  for function in graph.library.function:
    yield from function.node_def


def rename_functions(graph: tf.compat.v1.GraphDef) -> None:
  """Gives the functions of a graph names that no other graph has.

  TensorFlow forgets a function when the Python object that it was traced from
  is gone, also where an imported graph calls it by the same name.
  """
  names = {
    function.signature.name: f'{function.signature.name}_{next(_serial)}'
    for function in graph.library.function
  }
  for function in graph.library.function:
    function.signature.name = names[function.signature.name]
  for node in _all_nodes(graph):
    node.op = names.get(node.op, node.op)
    for value in node.attr.values():
      for function in (value.func, *value.list.func):
        if function.name in names:
          function.name = names[function.name]


def _iterate_instead_of_reduce(graph: tf.compat.v1.GraphDef) -> None:
  """Puts a loop in place of each op that reduces a dataset.

  The op prepares its function anew each time it runs, which takes longer than
  a small model trains on a client.
  """
  for function in list(graph.library.function):
    reduced = _replace_reductions(function.node_def, graph.library)
    # Between nodes of a function, outputs go by names that ops give them.
    renamed = {f'{name}:components': f'{name}:output' for name in reduced}
    for node in function.node_def:
      node.input[:] = [_rename_output(name, renamed) for name in node.input]
    for key, name in function.ret.items():
      function.ret[key] = _rename_output(name, renamed)
  _replace_reductions(graph.node, graph.library)


def _rename_output(name: str, renamed: Mapping[str, str]) -> str:
  output, _, index = name.rpartition(':')
  return f'{renamed[output]}:{index}' if output in renamed else name


def _replace_reductions(nodes: Iterable[Any], library: Any) -> list[str]:
  """Replaces reductions by calls of loops, which are added to the library.

  Returns:
    The names of the replaced nodes.
  """
  reductions = [node for node in nodes if node.op == 'ReduceDataset']
  for node in reductions:
    loop = _trace_loop(node, library)
    known = {function.signature.name for function in library.function}
    library.function.extend(
      function
      for function in (
        loop.function_def,
        *loop.graph.as_graph_def().library.function,
      )
      if function.signature.name not in known
    )
    node.CopyFrom(
      _call_node(
        node.name,
        loop.function_def.signature.name,
        node.input,
        inputs=[tensor.dtype for tensor in loop.inputs],
        outputs=[tensor.dtype for tensor in loop.outputs],
      )
    )
  return [node.name for node in reductions]


def _trace_loop(node: Any, library: Any) -> Any:
  """Returns a function that does what a `ReduceDataset` node does.

  Args:
    node: The node.
    library: The functions of its graph.
  """
  name = node.attr['f'].func.name
  (reduce,) = (f for f in library.function if f.signature.name == name)
  types = [tf.as_dtype(arg.type) for arg in reduce.signature.input_arg]
  num_state = len(node.attr['Tstate'].list.type)
  num_arguments = len(node.attr['Targuments'].list.type)
  end = len(types) - num_arguments
  state_types, element_types = types[:num_state], types[num_state:end]
  argument_types = types[end:]

  def call(tensors):
    graph = tf.compat.v1.GraphDef(library=library)
    graph.versions.producer = tf.version.GRAPH_DEF_VERSION
    places = [f'input_{i}' for i in range(len(types))]
    for place, dtype in zip(places, types):
      placeholder = graph.node.add(name=place, op='Placeholder')
      placeholder.attr['dtype'].type = dtype.as_datatype_enum
    graph.node.append(
      _call_node('call', name, places, inputs=types, outputs=state_types)
    )
    return tf.graph_util.import_graph_def(
      graph,
      # Tensors of the graph around this one are captured by using them.
      {f'{p}:0': tf.identity(tensor) for p, tensor in zip(places, tensors)},
      [f'call:{i}' for i in range(num_state)],
    )

  def loop(variant, *tensors):
    state, arguments = tensors[:num_state], tensors[num_state:]
    specs = tuple(tf.TensorSpec(None, dtype) for dtype in element_types)
    iterator = iter(tf.data.experimental.from_variant(variant, specs))

    def step(_, state):
      element = iterator.get_next_as_optional()
      return element.has_value(), tf.cond(
        element.has_value(),
        lambda: tuple(call([*state, *element.get_value(), *arguments])),
        lambda: tuple(map(tf.identity, state)),
      )

    _, state = tf.while_loop(
      lambda has_more, _: has_more, step, (tf.constant(True), state)
    )
    return list(state)

  return tf.function(loop, autograph=False).get_concrete_function(
    tf.TensorSpec([], tf.variant),
    *(tf.TensorSpec(None, t) for t in (*state_types, *argument_types)),
  )


def _call_node(
  name: str,
  function: str,
  tensors: Iterable[str],
  *,
  inputs: Iterable[tf.DType],
  outputs: Iterable[tf.DType],
) -> Any:
  """Returns a node that calls a function of the graph's library."""
  node = tf.compat.v1.NodeDef(name=name, op=_CALL, input=tensors)
  node.attr['f'].func.name = function
  node.attr['Tin'].list.type.extend(t.as_datatype_enum for t in inputs)
  node.attr['Tout'].list.type.extend(t.as_datatype_enum for t in outputs)
  return node


# With this name, an op that creates a variable creates one each time it runs.
_ANONYMOUS = b'cd2c89b7-88b7-44c8-ad83-06c2a9158347'


def _forget_with_call(node: Any) -> None:
  """Lets a node's variable or table live for one call.

  Raises:
    UnsupportedError: If the node has state of another kind.
  """
  if node.op == 'VarHandleOp':
    node.attr['shared_name'].s = _ANONYMOUS
  elif node.op.endswith(('HashTableV2', 'HashTableOfTensorsV2')):
    node.op = f'Anonymous{node.op[:-2]}'
    for name in ('container', 'shared_name', 'use_node_name_sharing'):
      node.attr.pop(name, None)
  elif 'shared_name' in node.attr:
    raise UnsupportedError(f'it keeps state in a {node.op}')
