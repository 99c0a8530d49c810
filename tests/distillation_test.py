"""Distillation passes and merging: methods with one student and teacher."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import config
from tff_codist import distillation
from tff_codist import models
from tff_codist.testing import toys

_ONE = np.array([1.0], np.float32)
_HALVES = np.array([0.5, 0.5], np.float32)
_SEED = np.array([1, 2], np.int32)


@pytest.fixture(scope='module')
def linear():
  return models.Model('linear', lambda: models.mlp((4,), 3, widths=()))


@pytest.fixture(scope='module')
def dense():
  return models.Model('dense', lambda: models.mlp((4,), 3, widths=(8,)))


def _build(student, teachers, *, learning_rate=0.05, **fields):
  return distillation.build_distillation(
    student,
    teachers,
    tff.TensorType(np.float32, (None, 4)),
    toys.preprocess,
    config.DistillationConfig(**fields),
    learning_rate=learning_rate,
  )


def _batches(steps, batch=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(steps, batch, 4)).astype(np.float32)


def test_type_signature(linear, dense):
  next_fn = _build(linear, [dense]).next
  parameter = next_fn.type_signature.parameter
  assert str(parameter.weights) == '<float32[4,3],float32[3]>@SERVER'
  assert str(parameter.teachers) == (
    '<<float32[4,8],float32[8],float32[8,3],float32[3]>>@SERVER'
  )
  assert str(parameter.shares) == 'float32[1]@SERVER'
  assert str(parameter.seed) == 'int32[2]@SERVER'
  assert str(parameter.batches) == 'float32[?,?,4]@SERVER'
  result = next_fn.type_signature.result
  assert str(result.member.pseudo_gradient) == '<float32[4,3],float32[3]>'
  assert result.member.state == parameter.state.member
  assert str(result.member.metrics) == (
    '<distillation_loss=float32,teacher_entropy=float32,'
    'distillation_norm=float32,rejected=float32>'
  )


def test_teacher_equal_to_student_changes_nothing(dense, context):
  weights = dense.initialize(0)
  for loss in ('kl', 'l2'):
    computation = _build(dense, [dense], loss=loss)
    result = computation.next(
      computation.initialize(weights),
      weights,
      (weights,),
      _ONE,
      _SEED,
      _batches(5),
    )
    for d in result['pseudo_gradient']:
      np.testing.assert_array_equal(d, np.zeros_like(d))
    assert result['metrics']['distillation_loss'] == 0


def test_one_step_by_hand(linear, context):
  # Adam's first step is rate · g / (|g| + ε'), with g = x^T (p_s - p_t) / n.
  student, teacher = linear.initialize(0), linear.initialize(1)
  (batch,) = batches = _batches(1)
  computation = _build(linear, [linear], epsilon=1.0, learning_rate=0.5)
  result = computation.next(
    computation.initialize(student), student, (teacher,), _ONE, _SEED, batches
  )
  probs = [
    tf.nn.softmax(batch @ kernel + bias).numpy()
    for kernel, bias in (student, teacher)
  ]
  g = batch.T @ (probs[0] - probs[1]) / len(batch)
  # Bias correction folds into the rate: η√(1-β2)/(1-β1)·(1-β1)g/(√((1-β2)g²)+ε)
  root = np.sqrt(1 - 0.999)
  expected = 0.5 * root * g / (root * np.abs(g) + 1.0)
  np.testing.assert_allclose(
    result['pseudo_gradient'][0], expected, rtol=1e-3, atol=1e-7
  )
  np.testing.assert_allclose(
    result['metrics']['teacher_entropy'],
    -np.mean(np.sum(probs[1] * np.log(probs[1]), -1)),
    rtol=1e-5,
  )


def test_gradient_is_clipped_over_all_tensors(linear, in_process):
  # As in the step by hand; with so large an epsilon Adam is nearly linear.
  student, teacher = linear.initialize(0), linear.initialize(1)
  steps = []
  for clip_norm in (None, 1e9, 1e-3):
    computation = _build(
      linear, [linear], learning_rate=1e6, epsilon=1e3, clip_norm=clip_norm
    )
    result = computation.next(
      computation.initialize(student),
      student,
      (teacher,),
      _ONE,
      _SEED,
      _batches(1),
    )
    steps.append(np.concatenate([d.ravel() for d in result['pseudo_gradient']]))
  free, wide, clipped = steps
  np.testing.assert_array_equal(free, wide)
  np.testing.assert_allclose(
    clipped / np.linalg.norm(clipped), free / np.linalg.norm(free), atol=1e-4
  )
  expected = 1e6 * np.sqrt(1 - 0.999) * 1e-3 / 1e3
  np.testing.assert_allclose(np.linalg.norm(clipped), expected, rtol=1e-3)


def test_distillation_brings_the_student_to_the_teacher(linear, dense, context):
  student, teacher = linear.initialize(0), dense.initialize(1)
  computation = _build(linear, [dense])
  state = computation.initialize(student)
  losses = []
  for i in range(5):
    result = computation.next(
      state, student, (teacher,), _ONE, _SEED, _batches(10, seed=i)
    )
    state = result['state']
    student = tuple(w - d for w, d in zip(student, result['pseudo_gradient']))
    losses.append(result['metrics']['distillation_loss'])
  # Fresh data in every pass: this is held-out loss.
  assert losses[-1] < 0.5 * losses[0]


def test_two_passes_equal_one_when_adam_is_kept(linear, dense, context):
  student, teacher = linear.initialize(0), dense.initialize(1)
  batches = _batches(6)
  for keep, is_equal in ((True, True), (False, False)):
    computation = _build(linear, [dense], keep_optimizer_state=keep)
    state = computation.initialize(student)
    whole = computation.next(state, student, (teacher,), _ONE, _SEED, batches)
    first = computation.next(
      state, student, (teacher,), _ONE, _SEED, batches[:3]
    )
    middle = tuple(w - d for w, d in zip(student, first['pseudo_gradient']))
    second = computation.next(
      first['state'], middle, (teacher,), _ONE, _SEED, batches[3:]
    )
    total = first['pseudo_gradient'][0] + second['pseudo_gradient'][0]
    equal = np.allclose(total, whole['pseudo_gradient'][0], atol=1e-6)
    assert equal == is_equal


def test_augmentation_depends_on_the_seed_and_the_step(linear, in_process):
  # Inputs are turned into noise of their seed, so that d tells the seeds apart.
  def preprocess(x, seed=None):
    if seed is None:
      return x
    return tf.random.stateless_normal(tf.shape(x), seed)

  def run(augment, seed, batches):
    computation = distillation.build_distillation(
      linear,
      [linear],
      tff.TensorType(np.float32, (None, 4)),
      preprocess,
      config.DistillationConfig(augment=augment),
      learning_rate=0.05,
    )
    result = computation.next(
      computation.initialize(student),
      student,
      (linear.initialize(1),),
      _ONE,
      np.array([seed, 0], np.int32),
      batches,
    )
    return result['pseudo_gradient'][0]

  student = linear.initialize(0)
  batches, others = _batches(2, seed=0), _batches(2, seed=1)
  plain = run(False, 1, batches)
  np.testing.assert_array_equal(plain, run(False, 2, batches))
  assert not np.allclose(plain, run(False, 1, others))
  augmented = run(True, 1, batches)
  np.testing.assert_array_equal(augmented, run(True, 1, others))
  assert not np.allclose(augmented, run(True, 2, batches))
  # Were both steps to see the same inputs, half the steps would be the first.
  one, two = run(True, 1, batches[:1]), augmented
  assert not np.allclose(two, 2 * one, rtol=1e-2)


def test_teachers_are_averaged_as_logits(linear, context):
  # The mean of two linear models' logits is the linear model of their mean.
  student, a, b = (linear.initialize(seed) for seed in (0, 1, 2))
  mean = tuple((x + y) / 2 for x, y in zip(a, b))
  both, one = _build(linear, [linear, linear]), _build(linear, [linear])
  batches = _batches(3)
  left = both.next(
    both.initialize(student), student, (a, b), _HALVES, _SEED, batches
  )
  right = one.next(
    one.initialize(student), student, (mean,), _ONE, _SEED, batches
  )
  for d, e in zip(left['pseudo_gradient'], right['pseudo_gradient']):
    np.testing.assert_allclose(d, e, atol=1e-5)


def _of_tokens(**fields):
  """Returns a model with a row of logits for each token, and its pass."""

  def keras_fn():
    layers = tf.keras.layers
    return tf.keras.Sequential(
      [layers.InputLayer((2,), dtype=tf.int32), layers.Embedding(5, 3)]
    )

  tokens = models.Model('tokens', keras_fn)
  return tokens, distillation.build_distillation(
    tokens,
    [tokens],
    tff.TensorType(np.int32, (None, 2)),
    lambda x, seed=None: x,
    learning_rate=0.1,
    **fields,
  )


def test_padding_rows_change_nothing(context):
  # Tokens: 0 is padding. A batch with padded rows equals one without them.
  tokens, computation = _of_tokens(
    config=config.DistillationConfig(), uncounted=(0,)
  )
  student, teacher = tokens.initialize(0), tokens.initialize(1)
  state = computation.initialize(student)
  rows = np.array([[[1, 2], [3, 4], [2, 0]]], np.int32)
  padded = np.concatenate([rows, np.zeros((1, 4, 2), np.int32)], axis=1)
  found, expected = (
    computation.next(state, student, (teacher,), _ONE, _SEED, batch)[
      'pseudo_gradient'
    ]
    for batch in (padded, rows)
  )
  np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
  nothing = computation.next(
    state, student, (teacher,), _ONE, _SEED, np.zeros((1, 4, 2), np.int32)
  )
  assert not np.any(nothing['pseudo_gradient'][0])


def _merge(alpha, match_norm=False, rescale=False):
  g = (np.array([3.0, 0.0], np.float32), np.array([4.0], np.float32))
  d = (np.array([0.0, 0.5], np.float32), np.array([0.0], np.float32))
  merged = distillation.merge(
    g, d, alpha, match_norm=match_norm, rescale=rescale
  )
  return np.concatenate(merged.pseudo_gradient), merged.metrics


@pytest.mark.parametrize(
  ('alpha', 'options', 'expected'),
  [
    (0.0, {}, [3, 0, 4]),
    (1.0, {}, [0, 0.5, 0]),
    (0.2, {}, [2.4, 0.1, 3.2]),
    # ‖g‖ = 5 and ‖d‖ = 0.5: d becomes ten times as long.
    (0.2, {'match_norm': True}, [2.4, 1.0, 3.2]),
    (0.2, {'rescale': True}, [3, 0.125, 4]),
    (0.2, {'match_norm': True, 'rescale': True}, [3, 1.25, 4]),
  ],
)
def test_merging_by_hand(alpha, options, expected):
  merged, metrics = _merge(alpha, **options)
  np.testing.assert_allclose(merged, expected, rtol=1e-6)
  assert metrics['federated_norm'] == 5
  assert metrics['cosine'] == 0


def test_type_signature_of_merge(linear):
  merge = distillation.build_merge(linear, config.MergedConfig())
  weights = '<float32[4,3],float32[3]>'
  assert str(merge.type_signature) == (
    f'(<federated={weights}@SERVER,distilled={weights}@SERVER,'
    'distillation_weight=float32@SERVER> -> '
    f'<pseudo_gradient={weights},metrics=<federated_norm=float32,'
    'cosine=float32>>@SERVER)'
  )


def test_teacher_without_a_share_has_no_say(linear, dense, context):
  student, good, broken = (
    m.initialize(i) for i, m in enumerate((linear, dense, linear))
  )
  broken = tuple(np.full_like(w, np.nan) for w in broken)
  both, one = _build(linear, [dense, linear]), _build(linear, [dense])
  state, batches = one.initialize(student), _batches(3)
  shares = np.array([1.0, 0.0], np.float32)
  left = both.next(state, student, (good, broken), shares, _SEED, batches)
  right = one.next(state, student, (good,), _ONE, _SEED, batches)
  toys.assert_same(left['pseudo_gradient'], right['pseudo_gradient'])


def test_every_position_counts_where_nothing_is_left_out(context):
  # By hand: the logits of token t are t three times, and the teacher's zero.
  _, computation = _of_tokens(config=config.DistillationConfig(loss='l2'))
  student = (np.tile(np.arange(5, dtype=np.float32)[:, None], 3),)
  teacher = (np.zeros((5, 3), np.float32),)
  batches = np.array([[[1, 2], [2, 3]]], np.int32)
  result = computation.next(
    computation.initialize(student), student, (teacher,), _ONE, _SEED, batches
  )
  expected = np.mean([1, 4, 4, 9]) / 2
  assert result['metrics']['distillation_loss'] == pytest.approx(expected)


def test_pass_that_is_not_finite_is_rejected(linear, dense, context):
  student, teacher = linear.initialize(0), list(dense.initialize(1))
  computation = _build(linear, [dense])
  state = computation.initialize(student)
  teacher[0] = np.full_like(teacher[0], np.inf)
  result = computation.next(
    state, student, (tuple(teacher),), _ONE, _SEED, _batches(2)
  )
  assert result['metrics']['rejected'] == 1
  assert result['metrics']['distillation_norm'] == 0
  assert not any(np.any(d) for d in result['pseudo_gradient'])
  toys.assert_same(result['state'], state)


def test_applying_a_pass_gives_the_trained_student(linear, dense, context):
  student, teacher = linear.initialize(0), dense.initialize(1)
  apply = distillation.build_apply(linear)
  weights = '<float32[4,3],float32[3]>@SERVER'
  assert str(apply.type_signature) == (
    f'(<weights={weights},pseudo_gradient={weights}> -> {weights})'
  )
  computation = _build(linear, [dense])
  result = computation.next(
    computation.initialize(student),
    student,
    (teacher,),
    _ONE,
    _SEED,
    _batches(20),
  )
  trained = apply(student, result['pseudo_gradient'])
  for x, d, y in zip(student, result['pseudo_gradient'], trained):
    np.testing.assert_array_equal(y, x - d)
