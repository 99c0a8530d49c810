"""Python values of TFF types as flat lists of tensors, and back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import errors
from tff_codist.runtime import graphs
from tff_codist.runtime import staging


def to_tensors(
  value: Any, type_spec: tff.Type, place: str
) -> Iterator[tf.Tensor]:
  """Yields the tensors of a value, in the order of `staging.leaf_types`.

  Args:
    value: What TFF accepts for the type: structures of arrays, Python numbers
      and strings, eager tensors, datasets or lists of their elements.
    type_spec: The type, without placement.
    place: Where the value is, for the error, such as `arg[0].weights`.

  Raises:
    ArgumentError: If the value is not of the type.
    UnsupportedError: If it is something that TFF's executors load themselves.
  """
  if isinstance(type_spec, tff.StructType):
    for element, element_type, inner in elements(value, type_spec, place):
      yield from to_tensors(element, element_type, inner)
  elif isinstance(type_spec, tff.SequenceType):
    yield tf.data.experimental.to_variant(_to_dataset(value, type_spec, place))
  else:
    yield _to_tensor(value, type_spec, place)


def elements(
  value: Any, type_spec: tff.StructType, place: str
) -> Iterator[tuple[Any, tff.Type, str]]:
  """Yields the elements of a container, each with its type and its place.

  In the order of the type's elements; arguments and errors as `to_tensors`.
  """
  ordered = _in_order(value, type_spec, place)
  types = tff.structure.iter_elements(type_spec)
  for index, (element, (name, element_type)) in enumerate(zip(ordered, types)):
    inner = f'{place}.{name}' if name else f'{place}[{index}]'
    yield element, element_type, inner


def _in_order(value: Any, type_spec: tff.StructType, place: str) -> Sequence:
  """Returns the elements of a container, in the order of the type's."""
  if type(value) is tuple and len(value) == len(type_spec):
    return value
  names = tff.structure.name_list_with_nones(type_spec)
  if isinstance(value, Mapping):
    if set(value) == set(names):
      return [value[name] for name in names]
    found = f'the keys {", ".join(map(str, value))}'
  else:
    try:
      pairs = tff.structure.to_elements(
        tff.structure.from_container(value, recursive=False)
      )
    except TypeError:
      found = type(value).__name__
    else:
      if len(pairs) == len(names) and all(
        found in (None, name) for (found, _), name in zip(pairs, names)
      ):
        return [element for _, element in pairs]
      found = f'the elements {", ".join(str(name) for name, _ in pairs)}'
  raise _argument_error(found, type_spec, place)


def _to_tensor(value: Any, type_spec: tff.TensorType, place: str) -> tf.Tensor:
  if (
    isinstance(value, (np.ndarray, np.generic))
    and value.dtype == type_spec.dtype
    and _fits(value.shape, type_spec.shape)
  ):
    return tf.constant(value)
  if isinstance(value, tff.framework.Ingestable):
    raise graphs.UnsupportedError('TFF loads its argument by itself')
  if isinstance(value, (tf.Tensor, tf.Variable)):
    value = value.numpy()
  # Numbers, strings, and arrays of another type, as TFF converts them.
  try:
    given = _encode(value) if type_spec.dtype.type is np.str_ else value
    proto, _ = tff.framework.serialize_value(given, type_spec)
  except (TypeError, ValueError, NotImplementedError) as error:
    raise _argument_error(describe(value), type_spec, place) from error
  value, _ = tff.framework.deserialize_value(proto, type_spec)
  return tf.constant(value, type_spec.dtype)


def _encode(value: Any) -> Any:
  """Returns strings as UTF-8, which is all that TFF can send."""
  array = np.asarray(value)
  return np.char.encode(array, 'utf-8') if array.dtype.kind == 'U' else value


def _fits(shape: Sequence[int], expected: Optional[Sequence]) -> bool:
  """Returns whether a shape is one that a type allows."""
  return expected is None or (
    len(shape) == len(expected)
    and all(wanted in (None, size) for size, wanted in zip(shape, expected))
  )


def _to_dataset(
  value: Any, type_spec: tff.SequenceType, place: str
) -> tf.data.Dataset:
  if isinstance(value, list):
    try:
      proto, _ = tff.framework.serialize_value(value, type_spec)
    except (TypeError, ValueError) as error:
      raise _argument_error('another list', type_spec, place) from error
    value, _ = tff.framework.deserialize_value(proto, type_spec)
  if isinstance(value, tff.framework.Ingestable):
    raise graphs.UnsupportedError('TFF loads its argument by itself')
  if not isinstance(value, tf.data.Dataset):
    raise _argument_error(describe(value), type_spec, place)
  found = tff.SequenceType(tff.types.tensorflow_to_type(value.element_spec))
  if not type_spec.is_assignable_from(found):
    raise _argument_error(str(found), type_spec, place)
  return value


def describe(value: Any) -> str:
  """Returns an array's type and shape, or another value's class."""
  if isinstance(value, (np.ndarray, np.generic, tf.Tensor)):
    shape = ','.join(map(str, value.shape))
    name = getattr(value.dtype, 'name', value.dtype)
    return f'{name}[{shape}]' if shape else str(name)
  return type(value).__name__


def _argument_error(
  found: str, type_spec: tff.Type, place: str
) -> errors.ArgumentError:
  return errors.ArgumentError(
    f'{found} as {place}',
    expected=f'a value of type {type_spec}',
    fix='convert the value, or build the computation for its type',
  )


def from_tensors(type_spec: tff.Type, tensors: Iterator[tf.Tensor]) -> Any:
  """Returns the next value of a type: arrays, in a `tff.structure.Struct`."""
  if isinstance(type_spec, tff.StructType):
    return tff.structure.Struct(
      (name, from_tensors(element, tensors))
      for name, element in tff.structure.iter_elements(type_spec)
    )
  if isinstance(type_spec, tff.SequenceType):
    return staging.to_dataset(next(tensors), type_spec.element)
  return next(tensors).numpy()
