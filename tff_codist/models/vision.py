"""Image classifiers that return logits, in families with width and depth.

Where there is normalisation it is GroupNorm: batch normalisation's moving
statistics have no meaning when every client sees other data. All functions
build a new Keras model at each call; wrap them in `Model`.
"""

from collections.abc import Sequence

import tensorflow as tf

# Not among TFF's public names, although its baseline tasks are built on it.
from tensorflow_federated.python.simulation.models import resnet_models

_GROUP_SIZE = 8


def mlp(
  input_shape: Sequence[int],
  num_classes: int,
  *,
  widths: Sequence[int],
) -> tf.keras.Model:
  """Builds a dense network with ReLU.

  Args:
    input_shape: Shape of one input; it is flattened.
    num_classes: Length of the logits.
    widths: Units of each hidden layer; empty for a linear model.
  """
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      layers.InputLayer(tuple(input_shape)),
      layers.Flatten(),
      *(layers.Dense(width, activation='relu') for width in widths),
      layers.Dense(num_classes),
    ]
  )


def cnn(
  input_shape: Sequence[int],
  num_classes: int,
  *,
  widths: Sequence[int],
  dense: Sequence[int],
  depth: int = 1,
  kernel_size: int = 3,
) -> tf.keras.Model:
  """Builds a plain convolutional network with ReLU, without normalisation.

  Each stage is `depth` convolutions and a 2x2 max pooling; dense layers
  follow. In the first hundred rounds of federated averaging on clients with
  label skew it learns faster than networks with GroupNorm.

  Args:
    input_shape: `(height, width, channels)` of an image.
    num_classes: Length of the logits.
    widths: Channels of each stage.
    dense: Units of each hidden dense layer.
    depth: Convolutions in a stage, at least 1.
    kernel_size: Height and width of a convolution.
  """
  layers = tf.keras.layers
  keras_model = tf.keras.Sequential([layers.InputLayer(tuple(input_shape))])
  for width in widths:
    for _ in range(depth):
      keras_model.add(
        layers.Conv2D(width, kernel_size, padding='same', activation='relu')
      )
    keras_model.add(layers.MaxPool2D())
  keras_model.add(layers.Flatten())
  for units in dense:
    keras_model.add(layers.Dense(units, activation='relu'))
  keras_model.add(layers.Dense(num_classes))
  return keras_model


def resnet(
  input_shape: Sequence[int],
  num_classes: int,
  *,
  widths: Sequence[int],
  depth: int,
) -> tf.keras.Model:
  """Builds a residual network with GroupNorm for small images.

  He et al. (arXiv 1512.03385, section 4.2) with GroupNorm: a 3x3 stem, stages
  of `depth` basic blocks, the first block of every later stage with stride 2,
  global average pooling. `widths=(16, 32, 64), depth=3` is ResNet-20.

  Args:
    input_shape: `(height, width, channels)` of an image.
    num_classes: Length of the logits.
    widths: Channels of each stage, multiples of 8.
    depth: Basic blocks in a stage, at least 1.
  """
  layers = tf.keras.layers

  def conv(x, width, size, stride=1):
    return layers.Conv2D(
      width,
      size,
      strides=stride,
      padding='same',
      use_bias=False,
      kernel_initializer='he_normal',
    )(x)

  inputs = layers.Input(tuple(input_shape))
  x = _normalize(conv(inputs, widths[0], 3))
  for stage, width in enumerate(widths):
    for block in range(depth):
      stride = 2 if stage > 0 and block == 0 else 1
      shortcut = x
      if stride != 1 or x.shape[-1] != width:
        shortcut = conv(x, width, 1, stride)
      x = _normalize(conv(x, width, 3, stride))
      x = _normalize(conv(x, width, 3), activate=False)
      x = layers.ReLU()(layers.Add()([x, shortcut]))
  x = layers.GlobalAveragePooling2D()(x)
  return tf.keras.Model(inputs, layers.Dense(num_classes)(x))


def resnet18(input_shape: Sequence[int], num_classes: int) -> tf.keras.Model:
  """Builds TFF's ResNet-18 v2 with GroupNorm, ending in logits.

  The network of Reddi et al.'s CIFAR-100 task (11,227,812 weights for 24x24x3
  images and 100 classes), without the softmax at its end
  and without regularisation.
  """
  keras_model = resnet_models.create_resnet18(
    input_shape=tuple(input_shape), num_classes=num_classes
  )
  keras_model.layers[-1].activation = tf.keras.activations.linear
  return keras_model


def _normalize(x: tf.Tensor, activate: bool = True) -> tf.Tensor:
  """Applies GroupNorm with eight channels a group, then ReLU."""
  layers = tf.keras.layers
  x = layers.GroupNormalization(groups=max(1, x.shape[-1] // _GROUP_SIZE))(x)
  return layers.ReLU()(x) if activate else x
