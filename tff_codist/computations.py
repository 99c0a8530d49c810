"""Functions of tensors as TFF computations at the server."""

import collections
from collections.abc import Callable

import tensorflow_federated as tff


def at_server(function: Callable, *types: tff.Type) -> tff.Computation:
  """Wraps a function of tensors as a computation at the server.

  Type signature:
    (A@SERVER -> R@SERVER), of several arguments
    (<a=A@SERVER, b=B@SERVER, ...> -> R@SERVER)

  Args:
    function: From tensors of the types to a structure of tensors, traced once.
      Its arguments' names are a, b, ...
    *types: TFF types of its arguments, A, B, ...; at least one.
  """
  work = tff.tensorflow.computation(function, *types)
  parameter = work.type_signature.parameter
  if len(types) > 1:
    placed = tff.StructWithPythonType(
      [
        (name, tff.FederatedType(member, tff.SERVER))
        for name, member in tff.structure.iter_elements(parameter)
      ],
      collections.OrderedDict,
    )
  else:
    placed = tff.FederatedType(parameter, tff.SERVER)

  @tff.federated_computation(placed)
  def compute(arguments):
    return tff.federated_map(work, arguments)

  return compute
