import gc

import pytest
from tensorflow.python.eager import context as eager


@pytest.fixture
def function_names():
  """Returns a function to the names of TensorFlow's functions in use."""

  def names():
    # Those of earlier tests would otherwise go at any time.
    gc.collect()
    return set(eager.context().list_function_names())

  return names
