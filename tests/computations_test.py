"""Functions of tensors as computations at the server."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import computations

_PAIR = tff.StructWithPythonType(
  [tff.TensorType(np.float32), tff.TensorType(np.float32, (2,))], tuple
)


@pytest.mark.parametrize('wrap', [lambda function: function, tf.function])
def test_single_argument_is_handed_over_as_it_is(context, wrap):
  def double(pair):
    assert isinstance(pair, tuple)
    return tf.nest.map_structure(lambda leaf: 2 * leaf, pair)

  compute = computations.at_server(wrap(double), _PAIR)
  pair = '<float32,float32[2]>@SERVER'
  assert str(compute.type_signature) == f'({pair} -> {pair})'
  scalar, vector = compute((np.float32(1), np.array([2, 3], np.float32)))
  assert scalar == 2
  np.testing.assert_array_equal(vector, [4, 6])


def test_several_arguments_have_the_names_of_the_function(context):
  def weigh(pair, share):
    return collections.OrderedDict(scaled=share * pair[1], scalar=pair[0])

  compute = computations.at_server(weigh, _PAIR, tff.TensorType(np.float32))
  assert str(compute.type_signature) == (
    '(<pair=<float32,float32[2]>@SERVER,share=float32@SERVER> -> '
    '<scaled=float32[2],scalar=float32>@SERVER)'
  )
  pair = (np.float32(1), np.array([2, 3], np.float32))
  by_position = compute(pair, np.float32(0.5))
  by_name = compute(share=np.float32(0.5), pair=pair)
  for result in (by_position, by_name):
    np.testing.assert_array_equal(result['scaled'], [1, 1.5])
    assert result['scalar'] == 1
