"""Models as functions of weights, and their Keras form."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tff_codist import errors
from tff_codist import models

_FAMILIES = {
  'mlp': functools.partial(models.mlp, (8, 8, 1), 10, widths=(32,)),
  'cnn': functools.partial(
    models.cnn, (8, 8, 3), 10, widths=(8, 16), dense=(16,), depth=2
  ),
  # Shortcuts make Keras list the weights in another order than they are made.
  'resnet': functools.partial(
    models.resnet, (8, 8, 3), 10, widths=(8, 16), depth=1
  ),
  'resnet18': functools.partial(models.resnet18, (24, 24, 3), 100),
}


@pytest.fixture(scope='module', params=sorted(_FAMILIES))
def model(request):
  return models.Model(request.param, _FAMILIES[request.param])


def test_logits_are_those_of_keras(model, tmp_path):
  weights = model.initialize(3)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, *model.input_shape)).astype(np.float32)
  found = tf.function(model.logits)(weights, x)
  assert found.shape == (3, model.num_classes)
  keras_model = model.to_keras(weights)
  np.testing.assert_allclose(found, keras_model(x), atol=1e-5)
  path = tmp_path / 'model.keras'
  keras_model.save(path)
  np.testing.assert_allclose(
    found, tf.keras.models.load_model(path)(x), atol=1e-5
  )


def test_weights_depend_on_the_seed_only(model):
  state = np.random.get_state()[1].copy()
  first, second, other = (model.initialize(seed) for seed in (1, 1, 2))
  for a, b in zip(first, second):
    np.testing.assert_array_equal(a, b)
  assert any(not np.array_equal(a, b) for a, b in zip(first, other))
  np.testing.assert_array_equal(np.random.get_state()[1], state)
  shapes = [tuple(t.shape) for t in model.weights_type]
  assert shapes == [w.shape for w in first]


def test_gradients_reach_every_weight(model):
  @tf.function
  def gradient(weights, x):
    weights = tuple(tf.identity(w) for w in weights)
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = tf.reduce_sum(tf.nn.softmax(model.logits(weights, x, True))[:, 0])
    return tape.gradient(loss, weights)

  x = np.random.default_rng(0).normal(size=(2, *model.input_shape))
  gradients = gradient(model.initialize(0), x.astype(np.float32))
  assert all(np.any(g) for g in gradients)


@pytest.mark.parametrize(
  ('keras_fn', 'expected'),
  [
    # TFF's ResNet-18 for CIFAR-100.
    (functools.partial(models.resnet18, (24, 24, 3), 100), 11_227_812),
    # The CNN of McMahan et al. (arXiv 1602.05629).
    (
      functools.partial(
        models.cnn,
        (28, 28, 1),
        10,
        widths=(32, 64),
        dense=(512,),
        kernel_size=5,
      ),
      1_663_370,
    ),
    # 64·32 + 32 + 32·10 + 10.
    (functools.partial(models.mlp, (8, 8, 1), 10, widths=(32,)), 2_410),
  ],
)
def test_published_numbers_of_parameters(keras_fn, expected):
  assert models.Model('m', keras_fn).num_parameters == expected


def _sequential(*layers):
  return tf.keras.Sequential([tf.keras.layers.InputLayer((4,)), *layers])


@pytest.mark.parametrize(
  ('keras_fn', 'message'),
  [
    (
      lambda: _sequential(
        tf.keras.layers.BatchNormalization(), tf.keras.layers.Dense(3)
      ),
      'stateful layers',
    ),
    (
      lambda: _sequential(
        tf.keras.layers.Dropout(0.5), tf.keras.layers.Dense(3)
      ),
      'stateful layers',
    ),
    (
      lambda: _sequential(
        tf.keras.layers.GaussianNoise(0.5), tf.keras.layers.Dense(3)
      ),
      'stateful layers',
    ),
    (
      lambda: tf.keras.Sequential([tf.keras.layers.Dense(3)]),
      'begin it with an InputLayer',
    ),
    (
      lambda: _sequential(tf.keras.layers.Dense(3, activation='softmax')),
      'with an activation',
    ),
    (
      lambda: _sequential(tf.keras.layers.Dense(3), tf.keras.layers.Softmax()),
      'with an activation',
    ),
  ],
)
def test_models_with_state_or_softmax_are_refused(keras_fn, message):
  with pytest.raises(errors.ConfigError, match=message):
    models.Model('bad', keras_fn)
