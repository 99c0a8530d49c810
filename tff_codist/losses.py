"""Losses on logits, by name, with masks.

A mask has one value for each label; where it is 0 the position counts neither
in the numerator nor in the denominator. An all-masked batch has loss 0.
"""

from collections.abc import Sequence
from typing import Optional, Protocol

import tensorflow as tf

from tff_codist import registry


class DistillationLoss(Protocol):
  """Distance of a student's logits to a teacher's, one value an example."""

  def __call__(
    self,
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float,
  ) -> tf.Tensor:
    """Returns `[...]` for logits `[..., num_classes]`."""


distillation_losses: registry.Registry[DistillationLoss] = registry.Registry(
  'distillation loss'
)


def label_mask(labels: tf.Tensor, uncounted: Sequence[int] = ()) -> tf.Tensor:
  """Returns 1 for each label that counts and 0 for the others, float32.

  Args:
    labels: Labels, of any shape.
    uncounted: The labels that do not count, as padding.
  """
  mask = tf.ones_like(labels, tf.float32)
  for label in uncounted:
    # Inside a TFF computation `==` and `!=` on tensors compare identity.
    mask *= tf.cast(tf.not_equal(labels, label), tf.float32)
  return mask


def num_counted(labels: tf.Tensor, mask: Optional[tf.Tensor]) -> tf.Tensor:
  """Returns how many labels count, float32: those in the mask, or all."""
  if mask is None:
    return tf.cast(tf.size(labels), tf.float32)
  return tf.reduce_sum(mask)


def logits_mask(
  x: tf.Tensor, logits: tf.Tensor, uncounted: Sequence[int] = ()
) -> tf.Tensor:
  """Returns 1 for each logits vector of raw inputs that counts, float32.

  Args:
    x: Raw inputs `[batch, ...]`; tokens `[batch, length]` if some do not count.
    logits: A model's answers to them, `[batch, num_classes]` or `[batch,
      length, num_classes]`.
    uncounted: The tokens after which nothing is predicted.

  Returns:
    Shape of the logits without the last dimension.
  """
  if uncounted:
    return label_mask(x, uncounted)
  return tf.ones(tf.shape(logits)[:-1])


def masked_mean(
  values: tf.Tensor, mask: Optional[tf.Tensor] = None
) -> tf.Tensor:
  """Returns the mean of the values whose mask is 1; 0 if there are none.

  The mask carries no gradient, which saves a dozen small operations a step.
  """
  if mask is None:
    return tf.reduce_mean(values)
  mask = tf.cast(mask, values.dtype)
  shares = tf.math.divide_no_nan(mask, tf.reduce_sum(mask))
  return tf.reduce_sum(values * tf.stop_gradient(shares))


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
  """Returns the cross-entropy of each label in nats, shape of `labels`."""
  return tf.nn.sparse_softmax_cross_entropy_with_logits(
    labels=labels, logits=logits
  )


def entropy(logits: tf.Tensor) -> tf.Tensor:
  """Returns the entropy of softmax(logits) in nats, `[...]`."""
  log_probs = tf.nn.log_softmax(logits)
  return -tf.reduce_sum(tf.exp(log_probs) * log_probs, axis=-1)


@distillation_losses.register('kl')
def kl(
  student_logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float
) -> tf.Tensor:
  """Forward divergence KL(σ_T(teacher) ‖ σ_T(student)) in nats."""
  return _divergence(student_logits / temperature, teacher_logits / temperature)


@distillation_losses.register('cross_entropy')
def soft_cross_entropy(
  student_logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float
) -> tf.Tensor:
  """Cross-entropy with soft labels: `kl` plus the teacher's entropy."""
  return kl(student_logits, teacher_logits, temperature) + entropy(
    teacher_logits / temperature
  )


@tf.custom_gradient
def _divergence(student_logits: tf.Tensor, teacher_logits: tf.Tensor):
  """Returns KL(σ(teacher) ‖ σ(student)) with the student's gradient only.

  The gradient is written as the difference of two softmaxes, so that it is
  exactly zero for equal logits; Adam would turn the rounding errors of the
  derived one into steps of full size.
  """
  log_teacher = tf.nn.log_softmax(teacher_logits)
  log_student = tf.nn.log_softmax(student_logits)
  teacher = tf.nn.softmax(teacher_logits)

  def gradient(upstream):
    difference = tf.nn.softmax(student_logits) - teacher
    return upstream[..., tf.newaxis] * difference, None

  value = tf.reduce_sum(teacher * (log_teacher - log_student), axis=-1)
  return value, gradient


@distillation_losses.register('l2')
def l2(
  student_logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float
) -> tf.Tensor:
  """Half the mean squared difference of the logits over T, per class."""
  difference = (student_logits - teacher_logits) / temperature
  return 0.5 * tf.reduce_mean(tf.square(difference), axis=-1)


def distillation_loss(
  name: str,
  student_logits: tf.Tensor,
  teacher_logits: tf.Tensor,
  *,
  temperature: float = 1.0,
  temperature_exponent: int = 2,
  mask: Optional[tf.Tensor] = None,
) -> tf.Tensor:
  """Returns KD_T = T^a · mean over examples of the named distance.

  Teacher logits carry no gradient. With `kl`, the gradient of one example with
  respect to the student's logits is T^(a-1) · (σ_T(z_s) - σ_T(z_t)).

  Args:
    name: A name in `distillation_losses`.
    student_logits: `[..., num_classes]`.
    teacher_logits: Same shape.
    temperature: T, above 0.
    temperature_exponent: a, 2 (Hinton et al.) or 0.
    mask: Shape of the logits without the last dimension, or `None` for all.

  Returns:
    A scalar.

  Raises:
    UnknownNameError: If there is no such loss.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    arXiv 1503.02531.
  """
  values = distillation_losses[name](
    student_logits, tf.stop_gradient(teacher_logits), temperature
  )
  return temperature**temperature_exponent * masked_mean(values, mask)
