"""A model as a pure function from weights and inputs to logits.

The layers are Keras's. Where a layer asks for a variable it is handed a tensor
instead (as TFF's functional models do), so that one model serves as the trained
one on clients and as the student or the frozen teacher at the server, with
whatever weights are passed in.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import errors
from tff_codist import randomness

Weights = tuple  # of arrays or tensors, in Keras's order.
KerasFn = Callable[[], tf.keras.Model]


class Model:
  """A Keras model that maps inputs to logits, without its weights.

  Attributes:
    name: Name for messages and reports.
    input_shape: Shape of one input, without the batch dimension.
    input_dtype: Type of the inputs.
    num_classes: Length C of a logits vector.
    output_shape: Shape of one output, `(C,)` or, for sequences, `(length, C)`,
      where an open length is `None`.
    num_logits: Logits of one example: C, for sequences C times their length.
    num_parameters: Number of trainable weights, |θ|.
    weights_type: TFF type of the weights, a tuple of float32 tensors.
  """

  def __init__(self, name: str, keras_fn: KerasFn):
    """Wraps a Keras model.

    Args:
      name: Name for messages and reports.
      keras_fn: Function without arguments that builds the model. Its inputs
        have shape `[batch, ...]`, its outputs are logits, not probabilities,
        `[batch, num_classes]` or, for sequences, `[batch, length,
        num_classes]`. It must be built, and stateless: no batch normalisation,
        no dropout or noise (which keep a hidden generator). Regularisation
        losses of its layers are not added to the loss.

    Raises:
      ConfigError: If the model is not built, keeps state, or does not end in
        logits.
    """
    self.name = name
    self._keras_fn = keras_fn
    created = []

    def record(next_creator, **kwargs):
      created.append(next_creator(**kwargs))
      return created[-1]

    with tf.variable_creator_scope(record):
      keras_model = keras_fn()
    _check_layers(name, keras_model)
    inputs, outputs = keras_model.inputs[0], keras_model.outputs[0]
    self.input_shape = tuple(inputs.shape[1:])
    self.input_dtype = inputs.dtype
    self.num_classes = int(outputs.shape[-1])
    self.output_shape = tuple(outputs.shape[1:])
    self.num_logits = math.prod(size or 1 for size in outputs.shape[1:])
    self.num_parameters = keras_model.count_params()
    self.weights_type = tff.StructWithPythonType(
      [
        tff.TensorType(np.float32, tuple(variable.shape))
        for variable in keras_model.weights
      ],
      tuple,
    )
    # Layers may be created in another order than Keras lists their weights;
    # Keras also creates counters that are no weights.
    position = {id(v): i for i, v in enumerate(keras_model.weights)}
    self._creation_order = tuple(
      position[id(v)] for v in created if id(v) in position
    )

  def initialize(self, seed: int, pool: str = '') -> Weights:
    """Returns freshly drawn weights, a function of the arguments and layers.

    Keras draws from global generators. They are seeded for the call; Python's
    and NumPy's are put back afterwards, TensorFlow's cannot be.

    Args:
      seed: The run's seed.
      pool: Name of the pool: pools with the same model start differently.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
      keras_seed = randomness.derive_sequence(seed, 'weights', pool)
      tf.keras.utils.set_random_seed(int(keras_seed.generate_state(1)[0]))
      return tuple(self._keras_fn().get_weights())
    finally:
      random.setstate(python_state)
      np.random.set_state(numpy_state)

  def logits(
    self, weights: Weights, x: tf.Tensor, training: bool = False
  ) -> tf.Tensor:
    """Returns the logits of inputs `x`; call it in a graph.

    Args:
      weights: One tensor for each weight, as in `weights_type`.
      x: Inputs, shape `[batch, *input_shape]`.
      training: Whether layers run in training mode.
    """
    remaining = iter(self._creation_order)

    def take_weight(next_creator, **kwargs):
      is_weight = kwargs.get('trainable') is not None
      return weights[next(remaining)] if is_weight else next_creator(**kwargs)

    with tf.variable_creator_scope(take_weight):
      keras_model = self._keras_fn()
    return keras_model(x, training=training)

  def to_keras(self, weights: Weights) -> tf.keras.Model:
    """Returns a plain Keras model that holds `weights`."""
    keras_model = self._keras_fn()
    keras_model.set_weights(weights)
    return keras_model


def fresh_optimizer_state(
  optimizer: tff.learning.optimizers.Optimizer, weights: Weights
) -> Any:
  """Returns the state of an optimizer before its first step on weights."""
  return optimizer.initialize(
    tf.nest.map_structure(tf.TensorSpec.from_tensor, weights)
  )


def all_finite(weights: Weights) -> tf.Tensor:
  """Returns whether weights, or their change, have a finite norm.

  One pass over the weights. False if an entry is not finite, and if squares of
  entries overflow, above 1e19.
  """
  return tf.math.is_finite(tf.add_n([tf.nn.l2_loss(w) for w in weights]))


def _is_random(layer: tf.keras.layers.Layer) -> bool:
  if not isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer):
    return False
  # Attention and recurrent layers can drop inputs, but do not unless told so.
  rates = [
    getattr(layer, name)
    for name in ('rate', 'dropout', 'recurrent_dropout')
    if hasattr(layer, name)
  ]
  return not rates or any(rates)


def _check_layers(name: str, keras_model: tf.keras.Model) -> None:
  if not keras_model.built:
    raise errors.ConfigError(
      f'model {name!r} that does not know the shape of its inputs',
      expected='a model that is built',
      fix='begin it with an InputLayer',
    )
  layers = list(keras_model._flatten_layers(include_self=False))
  stateful = [
    layer.name
    for layer in layers
    if layer.non_trainable_weights or _is_random(layer)
  ]
  if stateful:
    raise errors.ConfigError(
      f'model {name!r} with stateful layers {", ".join(stateful)}',
      expected='layers without moving statistics or hidden generators',
      fix='use GroupNormalization or LayerNormalization, and no Dropout',
    )
  last = layers[-1]
  activation = getattr(last, 'activation', None)
  if isinstance(last, tf.keras.layers.Softmax) or (
    activation is not None and activation is not tf.keras.activations.linear
  ):
    raise errors.ConfigError(
      f'model {name!r} that ends in {last.name} with an activation',
      expected='logits, which the losses put through softmax themselves',
      fix='leave out the activation of the last layer',
    )
