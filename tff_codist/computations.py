"""Functions of tensors as TFF computations at the server."""

from collections.abc import Callable

import tensorflow_federated as tff


def at_server(function: Callable, *types: tff.Type) -> tff.Computation:
  """Wraps a function of tensors as a computation at the server.

  Type signature:
    (<A@SERVER, ...> -> R@SERVER)

  Args:
    function: From tensors of the types to a structure of tensors, traced once.
    *types: TFF types of its arguments, A, ...
  """
  work = tff.tensorflow.computation(function, types)

  @tff.federated_computation([tff.FederatedType(t, tff.SERVER) for t in types])
  def compute(arguments):
    return tff.federated_map(work, arguments)

  return compute
