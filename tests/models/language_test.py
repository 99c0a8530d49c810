"""Next-word models: causal, without a view of padding, as TFF's and Keras's."""

import functools

import numpy as np
import pytest
import tensorflow as tf

# Not among TFF's public names.
from tensorflow_federated.python.simulation.baselines.stackoverflow import (
  word_prediction_models,
)

from tff_codist import client_update
from tff_codist import config
from tff_codist import errors
from tff_codist import losses
from tff_codist import models
from tff_codist.testing import toys

_NUM_TOKENS = 30
_LENGTH = 6
_FAMILIES = {
  'lstm': functools.partial(
    models.lstm, _NUM_TOKENS, _LENGTH, embedding=8, units=12
  ),
  'transformer': functools.partial(
    models.transformer, _NUM_TOKENS, _LENGTH, width=16, heads=2, depth=1
  ),
}
# Two sentences, the second of which ends after three tokens.
_TOKENS = np.array([[5, 9, 2, 7, 3, 8], [4, 6, 1, 0, 0, 0]], np.int32)


@pytest.fixture(scope='module', params=sorted(_FAMILIES))
def model(request):
  return models.Model(request.param, _FAMILIES[request.param])


@pytest.fixture(scope='module')
def weights(model):
  # All of them random: Keras starts biases at 0.
  rng = np.random.default_rng(1)
  return tuple(
    w + rng.normal(scale=0.3, size=w.shape).astype(np.float32)
    for w in model.initialize(0)
  )


@pytest.fixture(scope='module')
def logits(model, weights):
  """The model's logits as a function of tokens."""
  return functools.partial(
    tf.function(model.logits), tuple(map(tf.constant, weights))
  )


def _change(tokens, position):
  """Returns the sentences with another token at one position."""
  changed = tokens.copy()
  changed[:, position] = (changed[:, position] + 11) % _NUM_TOKENS
  return changed


def _loss(logits):
  """Mean cross-entropy of every token but padding, as language tasks have it.

  The labels are arbitrary.
  """
  labels = np.where(_TOKENS, (_TOKENS * 7) % (_NUM_TOKENS - 1) + 1, 0)
  mask = losses.label_mask(tf.constant(labels), (0,))
  return losses.masked_mean(losses.cross_entropy(labels, logits), mask)


@pytest.mark.parametrize(
  ('keras_fn', 'expected'),
  [
    # TFF's network for Stack Overflow.
    (functools.partial(models.lstm, embedding=96, units=670), 4_050_748),
    # Embedding 64, four gates of 256, projection, logits.
    (
      functools.partial(models.lstm, embedding=64, units=256),
      10_004 * 64 + 4 * 256 * (64 + 256 + 1) + 257 * 64 + 65 * 10_004,
    ),
    # Tokens, positions, logits, last LayerNorm; in a block four projections,
    # two LayerNorms and two dense layers.
    (
      functools.partial(models.transformer, width=128, heads=4, depth=4),
      (10_004 + 20) * 128
      + 129 * 10_004
      + 2 * 128
      + 4 * (4 * 129 * 128 + 4 * 128 + 129 * 512 + 513 * 128),
    ),
  ],
)
def test_numbers_of_parameters(keras_fn, expected):
  model = models.Model('m', functools.partial(keras_fn, 10_004, 20))
  assert model.num_parameters == expected
  assert model.input_shape == (20,)
  assert model.input_dtype == tf.int32
  assert model.num_classes == 10_004


def test_logits_are_those_of_keras_and_of_the_saved_model(
  model, weights, logits, tmp_path
):
  found = logits(_TOKENS)
  assert found.shape == (2, _LENGTH, _NUM_TOKENS)
  keras_model = model.to_keras(weights)
  np.testing.assert_allclose(found, keras_model(_TOKENS), atol=1e-5)
  keras_model.save(tmp_path / 'model.keras')
  saved = tf.keras.models.load_model(tmp_path / 'model.keras')
  np.testing.assert_allclose(found, saved(_TOKENS), atol=1e-5)


def test_gradients_are_those_of_keras(model, weights):
  @tf.function
  def gradient(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = _loss(model.logits(weights, _TOKENS, training=True))
    return [tf.convert_to_tensor(g) for g in tape.gradient(loss, weights)]

  keras_model = model.to_keras(weights)
  with tf.GradientTape() as tape:
    loss = _loss(keras_model(_TOKENS, training=True))
  expected = tape.gradient(loss, keras_model.weights)
  found = gradient(tuple(map(tf.constant, weights)))
  assert len(found) == len(expected)
  for f, e in zip(found, expected):
    np.testing.assert_allclose(f, tf.convert_to_tensor(e), atol=1e-5)
  # The key's bias shifts all scores of a query alike.
  still = [
    v.name for v, g in zip(keras_model.weights, found) if np.allclose(g, 0)
  ]
  assert all('key/bias' in name for name in still)


@pytest.mark.parametrize('position', range(1, _LENGTH))
def test_no_logits_depend_on_later_tokens(logits, position):
  before, after = logits(_TOKENS), logits(_change(_TOKENS, position))
  np.testing.assert_array_equal(before[:, :position], after[:, :position])
  assert np.abs(before - after)[:, position:].max(axis=-1).min() > 1e-4


def test_padding_changes_no_earlier_logits(logits):
  # The same three tokens with others in place of padding.
  padded, full = logits(_TOKENS), logits(np.maximum(_TOKENS, 1))
  np.testing.assert_array_equal(padded[1, :3], full[1, :3])


def test_order_of_the_tokens_matters(logits):
  # Without positions, attention would not know the order.
  one, other = logits(_TOKENS), logits(_TOKENS[:, [1, 0, 2, 3, 4, 5]])
  assert np.abs(one - other)[0, -1].max() > 1e-4


def test_lstm_counts_like_the_baseline_of_tff():
  # Its mask changes only logits at padding, and no gradient.
  reference = word_prediction_models.create_recurrent_model(
    _NUM_TOKENS, embedding_size=8, lstm_size=12
  )
  keras_model = _FAMILIES['lstm']()
  keras_model.set_weights(reference.get_weights())
  gradients = []
  for network in (keras_model, reference):
    with tf.GradientTape() as tape:
      loss = _loss(network(_TOKENS))
    gradients.append(tape.gradient(loss, network.weights))
  found, expected = keras_model(_TOKENS), reference(_TOKENS)
  counts = _TOKENS != 0
  np.testing.assert_allclose(found[counts], expected[counts], atol=1e-6)
  for f, e in zip(*gradients):
    np.testing.assert_allclose(
      tf.convert_to_tensor(f), tf.convert_to_tensor(e), atol=1e-6
    )


def test_attention_of_rate_0_draws_nothing():
  model = models.Model('transformer', _FAMILIES['transformer'])
  specs = [tf.TensorSpec(w.shape) for w in model.initialize(0)]
  graph = (
    tf.function(lambda *w: model.logits(w, _TOKENS, training=True))
    .get_concrete_function(*specs)
    .graph
  )
  assert not [op.type for op in graph.get_operations() if 'Random' in op.type]


@pytest.mark.parametrize(
  'layer_fn',
  [
    functools.partial(tf.keras.layers.LSTM, 3, dropout=0.1),
    functools.partial(tf.keras.layers.LSTM, 3, recurrent_dropout=0.1),
    functools.partial(tf.keras.layers.Dropout, 0.1),
  ],
)
def test_real_dropout_is_refused(layer_fn):
  def keras_fn():
    return tf.keras.Sequential(
      [tf.keras.layers.InputLayer((5, 4)), layer_fn(), tf.keras.layers.Dense(3)]
    )

  with pytest.raises(errors.ConfigError, match='stateful layers'):
    models.Model('bad', keras_fn)


def test_attention_with_dropout_is_refused():
  def keras_fn():
    x = tf.keras.layers.Input((5, 4))
    y = tf.keras.layers.MultiHeadAttention(2, 2, dropout=0.1)(x, x)
    return tf.keras.Model(x, tf.keras.layers.Dense(3)(y))

  with pytest.raises(errors.ConfigError, match='stateful layers'):
    models.Model('bad', keras_fn)


def test_models_train_on_the_worker(model, context):
  # Client work builds the model in a graph of TensorFlow 1.
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, _NUM_TOKENS, size=(9, _LENGTH + 1), dtype=np.int32)
  examples = toys.seeded({'x': tokens[:, :-1], 'y': tokens[:, 1:]})
  update = client_update.build_client_update(
    model,
    client_update.examples_type(examples),
    lambda x, seed=None: x,
    config.ClientConfig(batch_size=4),
    uncounted=(0,),
  )
  result = update.next(update.initialize(), model.initialize(0), [examples])
  assert result['metrics']['loss'] == pytest.approx(np.log(_NUM_TOKENS), 0.2)
  assert all(np.isfinite(g).all() for g in result['pseudo_gradient'])
