"""KD_T against hand-made values and its limits."""

import numpy as np
import pytest
import tensorflow as tf

from tff_codist import errors
from tff_codist import losses


@pytest.fixture
def logits():
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(5, 10)).astype(np.float64),
    rng.normal(size=(5, 10)).astype(np.float64),
  )


def _softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _kd(student, teacher, **kwargs):
  return losses.distillation_loss(
    'kl', tf.constant(student), tf.constant(teacher), **kwargs
  ).numpy()


def test_kl_of_two_classes_by_hand():
  # Teacher (3/4, 1/4), student (1/2, 1/2): 0.75 ln 1.5 + 0.25 ln 0.5.
  teacher = np.log([[3.0, 1.0]])
  student = np.zeros((1, 2))
  expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  np.testing.assert_allclose(_kd(student, teacher), expected, rtol=1e-12)


def test_teacher_is_the_first_argument_of_the_divergence():
  teacher, student = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
  forward = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
  backward = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
  found = _kd(student, teacher)
  np.testing.assert_allclose(found, forward, rtol=1e-12)
  assert abs(found - backward) > 0.1


@pytest.mark.parametrize('exponent', [0, 2])
@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_gradient_is_difference_of_softmaxes(logits, temperature, exponent):
  student, teacher = (tf.constant(z) for z in logits)
  with tf.GradientTape() as tape:
    tape.watch([student, teacher])
    loss = losses.distillation_loss(
      'kl',
      student,
      teacher,
      temperature=temperature,
      temperature_exponent=exponent,
    )
  d_student, d_teacher = tape.gradient(loss, [student, teacher])
  expected = (
    temperature ** (exponent - 1)
    * (_softmax(logits[0] / temperature) - _softmax(logits[1] / temperature))
    / len(logits[0])
  )
  np.testing.assert_allclose(d_student, expected, atol=1e-12)
  assert d_teacher is None


def test_limit_of_large_temperature(logits):
  student, teacher = (z - z.mean(-1, keepdims=True) for z in logits)
  limit = np.mean(np.sum((student - teacher) ** 2, -1) / (2 * 10))
  np.testing.assert_allclose(
    _kd(*logits, temperature=10001.0), limit, rtol=1e-3
  )


def test_invariant_to_constants_and_zero_for_equal(logits):
  student, teacher = logits
  np.testing.assert_allclose(
    _kd(student + 7.0, teacher - 3.0), _kd(student, teacher), rtol=1e-10
  )
  assert _kd(teacher + 1.0, teacher) == pytest.approx(0.0, abs=1e-12)
  assert _kd(student, teacher) > 0


def test_underflowed_softmax_stays_finite():
  found = _kd(np.array([[0.0, 1000.0]]), np.array([[1000.0, 0.0]]))
  np.testing.assert_allclose(found, 1000.0)


def test_cross_entropy_is_kl_plus_teacher_entropy(logits):
  student, teacher = (tf.constant(z) for z in logits)
  soft = losses.distillation_loss('cross_entropy', student, teacher)
  entropy = losses.masked_mean(losses.entropy(teacher))
  np.testing.assert_allclose(soft, _kd(*logits) + entropy, rtol=1e-12)


def test_l2_by_hand_and_its_temperature_cancels():
  student, teacher = tf.constant([[1.0, 3.0]]), tf.constant([[0.0, 1.0]])
  for temperature in (1.0, 5.0):
    # (1 + 4) / 2 classes / 2.
    np.testing.assert_allclose(
      losses.distillation_loss('l2', student, teacher, temperature=temperature),
      1.25,
      rtol=1e-6,
    )


@pytest.mark.parametrize('name', losses.distillation_losses.names())
def test_masked_positions_do_not_count(logits, name):
  student, teacher = (tf.constant(z) for z in logits)
  mask = tf.constant([1, 0, 1, 0, 0])
  found = losses.distillation_loss(name, student, teacher, mask=mask)
  kept = losses.distillation_loss(
    name, tf.gather(student, [0, 2]), tf.gather(teacher, [0, 2])
  )
  np.testing.assert_allclose(found, kept, rtol=1e-12)
  nothing = losses.distillation_loss(name, student, teacher, mask=tf.zeros([5]))
  assert nothing.numpy() == 0


def test_unknown_loss_names_the_nearest():
  with pytest.raises(errors.UnknownNameError, match="use 'kl'"):
    losses.distillation_losses['kll']
