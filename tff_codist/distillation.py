"""Distilling models into each other at the server.

One pass with student i and frozen teachers j on the unlabelled batches u_r
(CoDist, arXiv 2310.02549):

    φ_0 = θ_i
    φ_r = AdamStep(φ_{r−1}, ∇_φ mean_{x∈u_r} KD_T(f_i(φ_{r−1}, x); z(x)))
    d_i = θ_i − φ_s

where z(x) = Σ_j w_j · f_j(θ_j, x) is the weighted mean of the teachers' logits.
d_i is a pseudo-gradient: subtracting it from θ_i gives φ_s. Student and
teachers see the same x. With `augment` it is the raw input augmented anew in
each step, which makes much of little data (Beyer et al., Knowledge
Distillation: A Good Teacher Is Patient and Consistent, CVPR 2022, arXiv
2106.05237).
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import computations
from tff_codist import config as config_lib
from tff_codist import losses
from tff_codist import models
from tff_codist import task as task_lib

# Fields of the configuration that a single pass reads.
PASS_FIELDS = tuple(
  f'distillation.{name}'
  for name in (
    'loss',
    'temperature',
    'temperature_exponent',
    'batch_size',
    'beta1',
    'beta2',
    'epsilon',
    'clip_norm',
  )
)


# From the step r, an int32 scalar, and raw inputs u_r to the models' inputs x
# and z(x), the teachers' mean logits.
Lesson = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Distillation(NamedTuple):
  """The server computations of one student's distillation.

  Attributes:
    initialize: State of the distillation's Adam. Type signature: `(W_i@SERVER
      -> Q@SERVER)`.
    next: One pass over the batches. Type signature: `(<state=Q@SERVER,
      weights=W_i@SERVER, teachers=<W_j,...>@SERVER, shares=float32[M]@SERVER,
      seed=int32[2]@SERVER, batches=[steps, batch, ...]@SERVER> ->
      <state=Q@SERVER, pseudo_gradient=W_i@SERVER, metrics=M@SERVER>)`. The
      augmentation is a function of the seed and the step.
  """

  initialize: tff.Computation
  next: tff.Computation


def mean_logits(
  teachers: Sequence[models.Model],
  weights: Sequence[models.Weights],
  shares: tf.Tensor,
  x: tf.Tensor,
) -> tf.Tensor:
  """Returns the weighted mean of the teachers' logits, in inference mode.

  Args:
    teachers: The teachers' models.
    weights: θ_j of each teacher.
    shares: w_j of each teacher, `[M]`, adding up to 1; with 0 it has no say,
      whatever its logits are.
    x: Inputs of the models.
  """
  return tf.add_n(
    [
      tf.math.multiply_no_nan(model.logits(w, x), shares[j])
      for j, (model, w) in enumerate(zip(teachers, weights))
    ]
  )


def distil(
  student: models.Model,
  optimizer: tff.learning.optimizers.Optimizer,
  optimizer_state: collections.OrderedDict,
  weights: models.Weights,
  lesson: Lesson,
  batches: tf.Tensor,
  *,
  config: config_lib.DistillationConfig,
  uncounted: Sequence[int] = (),
) -> tuple:
  """Distils teachers into the student; call it in a `tf.function`.

  Costs what `lesson` costs and a forward and backward pass of the student over
  each batch.

  Args:
    student: The student's model.
    optimizer: The distillation's Adam.
    optimizer_state: Its state.
    weights: θ_i, where the student starts.
    lesson: What is taught in each step.
    batches: Raw inputs u_r, `[steps, batch, ...]`.
    config: Loss and temperature.
    uncounted: Input tokens after which nothing is predicted.

  Returns:
    The optimizer's state, d_i, and metrics: `distillation_loss`, the mean over
    the steps of KD_T before each step (nats for `kl`), and `teacher_entropy`,
    the mean entropy of the teachers' mean logits (nats).
  """
  trained = weights
  loss_sum, entropy_sum = tf.zeros([]), tf.zeros([])
  for step in tf.range(tf.shape(batches)[0]):
    batch = batches[step]
    x, teacher_logits = lesson(step, batch)
    mask = losses.logits_mask(batch, teacher_logits, uncounted)
    with tf.GradientTape() as tape:
      tape.watch(trained)
      loss = losses.distillation_loss(
        config.loss,
        student.logits(trained, x, training=True),
        teacher_logits,
        temperature=config.temperature,
        temperature_exponent=config.temperature_exponent,
        mask=mask,
      )
    gradient = tape.gradient(loss, trained)
    if config.clip_norm is not None:
      clipped, _ = tf.clip_by_global_norm(gradient, config.clip_norm)
      gradient = tuple(clipped)
    optimizer_state, trained = optimizer.next(
      optimizer_state, trained, gradient
    )
    loss_sum += loss
    entropy_sum += losses.masked_mean(losses.entropy(teacher_logits), mask)
  steps = tf.cast(tf.shape(batches)[0], tf.float32)
  metrics = collections.OrderedDict(
    distillation_loss=tf.math.divide_no_nan(loss_sum, steps),
    teacher_entropy=tf.math.divide_no_nan(entropy_sum, steps),
  )
  pseudo_gradient = tf.nest.map_structure(tf.subtract, weights, trained)
  return optimizer_state, pseudo_gradient, metrics


def build_distillation(
  student: models.Model,
  teachers: Sequence[models.Model],
  x_type: tff.TensorType,
  preprocess: task_lib.Preprocess,
  config: config_lib.DistillationConfig,
  *,
  learning_rate: float,
  uncounted: Sequence[int] = (),
) -> Distillation:
  """Builds the distillation of teachers into one student.

  Args:
    student: The student's model.
    teachers: The teachers' models, at least one.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the models' inputs.
    config: Loss, temperature and Adam.
    learning_rate: Learning rate of the distillation's Adam, above 0.
    uncounted: Input tokens after which nothing is predicted.

  Returns:
    The computations, with the type signatures of `Distillation`. With
    `config.keep_optimizer_state` false, every pass starts from a fresh Adam. A
    pass that is not finite is rejected: d_i is zero, Adam's state stays as it
    was and the metric `rejected` is 1. To the metrics of `distil` it adds
    `distillation_norm`, ‖d_i‖.

  Raises:
    UnknownNameError: If there is no such loss.
  """

  def lesson(step, batch, teacher_weights, shares, seed):
    if config.augment:
      step_seed = tf.random.experimental.stateless_fold_in(seed, step)
      x = preprocess(batch, step_seed)
    else:
      x = preprocess(batch)
    return x, mean_logits(teachers, teacher_weights, shares, x)

  return _build_pass(
    student,
    x_type,
    config,
    _adam(learning_rate, config),
    lesson,
    keeps_state=config.keep_optimizer_state,
    teachers=tff.StructWithPythonType(
      [teacher.weights_type for teacher in teachers], tuple
    ),
    shares=tff.TensorType(np.float32, (len(teachers),)),
    seed=tff.TensorType(np.int32, (2,)),
    uncounted=uncounted,
  )


def build_imitation(
  student: models.Model,
  x_type: tff.TensorType,
  preprocess: task_lib.Preprocess,
  config: config_lib.DistillationConfig,
  *,
  learning_rate: Union[float, Callable[[tf.Tensor], tf.Tensor]],
  uncounted: Sequence[int] = (),
) -> Distillation:
  """Builds the distillation of given logits into one student.

  For teachers whose mean logits z(x) are known: those of many clients' models,
  shared by several students.

  Args:
    student: The student's model.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the models' inputs.
    config: Loss, temperature and Adam.
    learning_rate: Learning rate of the distillation's Adam, above 0, or a
      function from the number of steps since `initialize` to it.
    uncounted: Input tokens after which nothing is predicted.

  Returns:
    As `build_distillation`, but `next` has `logits=float32[steps, batch, ...,
    C]@SERVER` in place of teachers, shares and seed: the logits are those of
    inputs without augmentation. Adam's state is always kept, so that a pass can
    be cut into several.

  Raises:
    UnknownNameError: If there is no such loss.
  """

  def lesson(step, batch, logits):
    return preprocess(batch), logits[step]

  return _build_pass(
    student,
    x_type,
    config,
    _adam(learning_rate, config),
    lesson,
    keeps_state=True,
    logits=tff.TensorType(np.float32, (None, None, *student.output_shape)),
    uncounted=uncounted,
  )


def _adam(
  learning_rate: Union[float, Callable[[tf.Tensor], tf.Tensor]],
  config: config_lib.DistillationConfig,
) -> tff.learning.optimizers.Optimizer:
  is_constant = isinstance(learning_rate, (int, float))
  adam = tff.learning.optimizers.build_adam(
    learning_rate if is_constant else 1.0,
    config.beta1,
    config.beta2,
    config.epsilon,
  )
  if is_constant:
    return adam
  return tff.learning.optimizers.schedule_learning_rate(adam, learning_rate)


def _build_pass(
  student: models.Model,
  x_type: tff.TensorType,
  config: config_lib.DistillationConfig,
  optimizer: tff.learning.optimizers.Optimizer,
  lesson: Callable[..., tuple[tf.Tensor, tf.Tensor]],
  *,
  keeps_state: bool,
  uncounted: Sequence[int],
  **teaching: tff.Type,
) -> Distillation:
  """Builds passes whose teachers are a function of further arguments.

  Args:
    student, x_type, config, uncounted: As `build_distillation`.
    optimizer: The distillation's Adam.
    lesson: A `Lesson` that takes the further arguments as well.
    keeps_state: Whether Adam goes on from pass to pass.
    **teaching: TFF types of the further arguments.
  """
  losses.distillation_losses[config.loss]

  def fresh(weights):
    return models.fresh_optimizer_state(optimizer, weights)

  initialize = computations.at_server(fresh, student.weights_type)
  types = collections.OrderedDict(
    state=initialize.type_signature.result.member,
    weights=student.weights_type,
    **teaching,
    batches=tff.TensorType(x_type.dtype, (None, *x_type.shape)),
  )

  @tff.tensorflow.computation(types)
  def run(arguments):
    state, weights = arguments['state'], arguments['weights']
    if not keeps_state:
      state = fresh(weights)

    def of_step(step, batch):
      return lesson(step, batch, *(arguments[name] for name in teaching))

    @tf.function
    def teach_and_learn():
      return distil(
        student,
        optimizer,
        state,
        weights,
        of_step,
        arguments['batches'],
        config=config,
        uncounted=uncounted,
      )

    return _reject_if_not_finite(state, *teach_and_learn())

  @tff.federated_computation(
    collections.OrderedDict(
      (name, tff.FederatedType(type_, tff.SERVER))
      for name, type_ in types.items()
    )
  )
  def next_fn(arguments):
    return tff.federated_map(run, tff.federated_zip(arguments))

  return Distillation(initialize=initialize, next=next_fn)


def _reject_if_not_finite(
  state: Any,
  new_state: Any,
  pseudo_gradient: tuple,
  metrics: collections.OrderedDict,
) -> collections.OrderedDict:
  """Returns the result of a pass, or of none if it is not finite."""
  is_finite = models.all_finite(pseudo_gradient)
  state, pseudo_gradient = tf.cond(
    is_finite,
    lambda: (new_state, pseudo_gradient),
    lambda: (state, tf.nest.map_structure(tf.zeros_like, pseudo_gradient)),
  )
  metrics['distillation_norm'] = tf.linalg.global_norm(pseudo_gradient)
  metrics['rejected'] = 1 - tf.cast(is_finite, tf.float32)
  return collections.OrderedDict(
    state=state, pseudo_gradient=pseudo_gradient, metrics=metrics
  )


def build_apply(model: models.Model) -> tff.Computation:
  """Builds PERIODIC CODIST's step θ_i ← θ_i − d_i, which gives φ_s.

  Type signature:
    (<weights=W@SERVER, pseudo_gradient=W@SERVER> -> W@SERVER)

  Args:
    model: The pool's model.

  Returns:
    The computation.
  """

  def subtract(weights, pseudo_gradient):
    return tf.nest.map_structure(tf.subtract, weights, pseudo_gradient)

  return computations.at_server(
    subtract, model.weights_type, model.weights_type
  )


class Merged(NamedTuple):
  """A merged pseudo-gradient and how its parts relate.

  Attributes:
    pseudo_gradient: h_i.
    metrics: `federated_norm` ‖g_i‖ and `cosine` of its angle with d_i, in
      [-1, 1].
  """

  pseudo_gradient: tuple
  metrics: collections.OrderedDict


def merge(
  federated: tuple,
  distilled: tuple,
  distillation_weight: tf.Tensor,
  *,
  match_norm: bool,
  rescale: bool,
) -> Merged:
  """Interpolates the two pseudo-gradients of MERGED CODIST.

  h_i = (1 − α_i)·g_i + α_i·d_i. α = 0 is the federated pseudo-gradient alone,
  α = 1 distillation only.

  Args:
    federated: g_i.
    distilled: d_i, the same structure.
    distillation_weight: The paper's interpolation factor α_i, in [0, 1].
    match_norm: First give d_i the norm of g_i.
    rescale: Divide the result by 1 − α, so h_i = g_i + α/(1 − α)·d_i.

  Returns:
    The merged pseudo-gradient and its metrics.
  """
  g_norm, d_norm = (
    tf.linalg.global_norm(federated),
    tf.linalg.global_norm(distilled),
  )
  product = tf.add_n(
    [tf.reduce_sum(g * d) for g, d in zip(federated, distilled)]
  )
  metrics = collections.OrderedDict(
    federated_norm=g_norm,
    cosine=tf.math.divide_no_nan(product, g_norm * d_norm),
  )
  alpha = tf.convert_to_tensor(distillation_weight, tf.float32)
  scale = alpha * (g_norm / (d_norm + 1e-12) if match_norm else 1.0)
  keep = 1.0 - alpha
  if rescale:
    scale, keep = scale / keep, 1.0
  merged = tf.nest.map_structure(
    lambda g, d: keep * g + scale * d, federated, distilled
  )
  return Merged(merged, metrics)


def build_merge(
  model: models.Model, config: config_lib.MergedConfig
) -> tff.Computation:
  """Builds the merging of one pool's two pseudo-gradients.

  Type signature:
    (<federated=W@SERVER, distilled=W@SERVER, distillation_weight=
    float32@SERVER> -> <pseudo_gradient=W, metrics=M>@SERVER)

  Args:
    model: The pool's model.
    config: `match_norm` and `rescale`.

  Returns:
    The computation; see `merge` for its result.
  """

  def run(federated, distilled, distillation_weight):
    return merge(
      federated,
      distilled,
      distillation_weight,
      match_norm=config.match_norm,
      rescale=config.rescale,
    )

  return computations.at_server(
    run,
    model.weights_type,
    model.weights_type,
    tff.TensorType(np.float32),
  )
