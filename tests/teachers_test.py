"""Measures of teachers against NumPy, and the gate."""

import numpy as np
import pytest
import tensorflow as tf

from tff_codist import client_update
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import teachers
from tff_codist.testing import toys

_TYPE = client_update.examples_type(toys.make_examples(1))


@pytest.fixture(scope='module')
def linear():
  return models.Model('linear', toys.MODELS['small'])


@pytest.fixture(scope='module')
def setting():
  built = toys.make_setting()
  return built._replace(validation=toys.make_examples(300, seed=3))


def _probs(weights, x):
  z = x @ weights[0] + weights[1]
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_entropy(linear, context):
  weights, x = linear.initialize(0), toys.make_examples(450, seed=5)['x']
  entropy = teachers.build_entropy(linear, _TYPE['x'], toys.make_task())
  assert str(entropy.type_signature) == (
    '(<weights=<float32[4,3],float32[3]>@SERVER,x=float32[?,4]@SERVER> -> '
    'float32@SERVER)'
  )
  p = _probs(weights, x)
  np.testing.assert_allclose(
    entropy(weights, x), -np.mean(np.sum(p * np.log(p), -1)), rtol=1e-5
  )


def test_agreement_of_three_models(linear, context):
  weights = tuple(linear.initialize(seed) for seed in (0, 1, 2))
  x = toys.make_examples(450, seed=5)['x']
  agreement = teachers.build_agreement(
    [linear] * 3, _TYPE['x'], toys.make_task()
  )
  found = agreement(weights, x)
  probs = [_probs(w, x) for w in weights]
  pairs = [
    (p, q) for i, p in enumerate(probs) for q in probs[:i] + probs[i + 1 :]
  ]
  np.testing.assert_allclose(
    found['agreement_top1'],
    np.mean([np.mean(p.argmax(-1) == q.argmax(-1)) for p, q in pairs]),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    found['agreement_kl'],
    np.mean([np.mean(np.sum(p * np.log(p / q), -1)) for p, q in pairs]),
    rtol=1e-4,
  )


def test_validation(linear, context):
  weights, examples = linear.initialize(0), toys.make_examples(450, seed=6)
  validate = teachers.build_validation(linear, _TYPE, toys.make_task())
  found = validate(weights, examples)
  p, y = _probs(weights, examples['x']), examples['y']
  hits, confidence = p.argmax(-1) == y, p.max(-1)
  error = 0.0
  for low in range(15):
    here = (confidence >= low / 15) & (confidence < (low + 1) / 15)
    if here.any():
      gap = abs(hits[here].mean() - confidence[here].mean())
      error += here.mean() * gap
  assert found['validation_accuracy'] == pytest.approx(hits.mean())
  assert found['calibration_error'] == pytest.approx(error, rel=1e-4)
  assert found['validation_loss'] == pytest.approx(
    -np.log(p[np.arange(len(y)), y]).mean(), rel=1e-5
  )


def test_calibration_of_certainty(linear, context):
  # Certain and always right: no error; certain and always wrong: all of it.
  certain = (np.zeros((4, 3), np.float32), np.array([99, 0, 0], np.float32))
  validate = teachers.build_validation(linear, _TYPE, toys.make_task())
  examples = toys.make_examples(10)
  for label, expected in ((0, 0.0), (1, 1.0)):
    examples['y'] = np.full(10, label, np.int32)
    assert validate(certain, examples)['calibration_error'] == expected


def test_all_measures_of_a_setting(setting, context):
  pool_models = {
    pool.name: [pool.model.initialize(1)] for pool in setting.pools
  }
  metrics = teachers.Teachers(setting).measure(pool_models)
  own = ('entropy', 'validation_loss', 'validation_accuracy')
  assert set(metrics) == {
    'exchange/agreement_top1',
    'exchange/agreement_kl',
    *(f'exchange/{p}/{m}' for p in 'ab' for m in (*own, 'calibration_error')),
  }
  bare = setting._replace(unlabelled=None, validation=None)
  assert not teachers.Teachers(bare).measure(pool_models)


def _admits(setting, weights, **thresholds):
  config = config_lib.DistillationConfig(**thresholds)
  return teachers.Gate(setting, config).admits('a', weights)


def test_gate(setting, context):
  uniform = (np.zeros((4, 3), np.float32), np.zeros(3, np.float32))
  right = (100 * np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32))
  assert _admits(setting, uniform)
  assert not _admits(setting, uniform, max_teacher_entropy=0.99)
  assert _admits(setting, right, max_teacher_entropy=0.1)
  assert not _admits(setting, uniform, min_teacher_accuracy=0.9)
  assert _admits(
    setting, right, min_teacher_accuracy=0.99, max_teacher_entropy=0.1
  )
  broken = (np.full((4, 3), np.nan, np.float32), np.zeros(3, np.float32))
  assert not _admits(setting, broken, max_teacher_entropy=1.0)
  with pytest.raises(errors.ConfigError, match='without a validation set'):
    _admits(setting._replace(validation=None), right, min_teacher_accuracy=0.5)


@pytest.mark.parametrize(
  ('ends', 'counted'),
  [
    # By hand: the tokens of x after which something is predicted.
    ({'pad_id': 0, 'eos_id': 3}, [1, 2, 2, 1, 1, 1]),
    ({}, [1, 2, 3, 0, 2, 1, 1, 1, 0, 0, 0, 0]),
  ],
)
def test_positions_after_which_nothing_is_predicted_do_not_count(
  context, ends, counted
):
  # Logits depend on the token alone; 0 is padding and 3 ends a sentence.
  def keras_fn():
    layers = tf.keras.layers
    return tf.keras.Sequential(
      [layers.InputLayer((4,), dtype=tf.int32), layers.Embedding(4, 4)]
    )

  model = models.Model('tokens', keras_fn)
  task = toys.make_task()._replace(
    num_classes=4, preprocess=lambda x, seed=None: x, **ends
  )
  x = np.array([[1, 2, 3, 0], [2, 1, 1, 1], [0, 0, 0, 0]], np.int32)
  y = np.array([[2, 3, 0, 0], [1, 1, 1, 2], [0, 0, 0, 0]], np.int32)
  examples_type = client_update.examples_type({'x': x, 'y': y})
  (table,) = weights = model.initialize(0)
  p = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
  entropy = teachers.build_entropy(model, examples_type['x'], task)
  assert entropy(weights, x) == pytest.approx(
    np.mean([-(p[token] * np.log(p[token])).sum() for token in counted]),
    rel=1e-5,
  )
  other = (table[::-1].copy(),)
  q = p[::-1]
  agreement = teachers.build_agreement(
    [model, model], examples_type['x'], task
  )((weights, other), x)
  same = [p[token].argmax() == q[token].argmax() for token in counted]
  assert agreement['agreement_top1'] == pytest.approx(np.mean(same))
  validation = teachers.build_validation(model, examples_type, task)(
    weights, {'x': x, 'y': y}
  )
  labels = y[y != 0] if ends else y.ravel()
  assert validation['validation_loss'] == pytest.approx(
    -np.log(p[counted, labels]).mean(), rel=1e-5
  )
  hits = p[counted].argmax(-1) == labels
  assert validation['validation_accuracy'] == pytest.approx(hits.mean())
