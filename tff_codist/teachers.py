"""Measuring the pools' models as teachers, before they teach.

What the server can know without the clients: how sure a model is on the
distillation data U, how much the models agree there, and, if it holds a small
labelled validation set, how often a model is right and whether its confidence
can be trusted.
"""

import collections
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import algorithm
from tff_codist import computations
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import evaluation
from tff_codist import losses
from tff_codist import models
from tff_codist import task as task_lib

# Unlabelled examples on which the models are measured.
_NUM_UNLABELLED = 500
_CALIBRATION_BINS = 15


def build_entropy(
  model: models.Model, x_type: tff.TensorType, task: task_lib.Task
) -> tff.Computation:
  """Builds the measurement of how sure a model is.

  Type signature:
    (<weights=W@SERVER, x=[?,...]@SERVER> -> float32@SERVER)

  Args:
    model: The model.
    x_type: TFF type of raw inputs, `[?, ...]`.
    task: Preprocessing and padding.

  Returns:
    The computation. Its result is the mean entropy of the model's answers in
    nats, between 0 and log C.
  """

  @tf.function
  def mean_entropy(weights, x):
    def sums_of(x):
      logits = model.logits(weights, task.preprocess(x))
      mask = losses.logits_mask(x, logits, task.last_tokens)
      return tf.reduce_sum(losses.entropy(logits) * mask), tf.reduce_sum(mask)

    total, positions = evaluation.sum_over_batches(
      sums_of, (tf.zeros([]), tf.zeros([])), x, num_logits=model.num_logits
    )
    return tf.math.divide_no_nan(total, positions)

  return computations.at_server(mean_entropy, model.weights_type, x_type)


def build_agreement(
  pool_models: Sequence[models.Model],
  x_type: tff.TensorType,
  task: task_lib.Task,
) -> tff.Computation:
  """Builds the comparison of the pools' models on unlabelled data.

  Type signature:
    (<weights=<W_1,...>@SERVER, x=[?,...]@SERVER> -> M@SERVER)

  Args:
    pool_models: The models of at least two pools.
    x_type: TFF type of raw inputs, `[?, ...]`.
    task: Preprocessing and padding.

  Returns:
    The computation. Its metrics are means over the examples and over all
    ordered pairs of models: `agreement_top1`, how often both have the same
    largest logit, and `agreement_kl`, KL(p ‖ q) in nats.
  """

  @tf.function
  def compare(weights, x):
    def sums_of(x):
      inputs = task.preprocess(x)
      logits = [m.logits(w, inputs) for m, w in zip(pool_models, weights)]
      mask = losses.logits_mask(x, logits[0], task.last_tokens)
      same, divergence = [], []
      for a, b in itertools.permutations(logits, 2):
        same.append(tf.equal(tf.argmax(a, -1), tf.argmax(b, -1)))
        divergence.append(losses.kl(b, a, 1.0))
      return (
        tf.reduce_sum(tf.cast(same, tf.float32) * mask) / len(same),
        tf.reduce_sum(tf.stack(divergence) * mask) / len(same),
        tf.reduce_sum(mask),
      )

    same, divergence, positions = evaluation.sum_over_batches(
      sums_of,
      (tf.zeros([]),) * 3,
      x,
      num_logits=sum(model.num_logits for model in pool_models),
    )
    return collections.OrderedDict(
      agreement_top1=tf.math.divide_no_nan(same, positions),
      agreement_kl=tf.math.divide_no_nan(divergence, positions),
    )

  weights_type = tff.StructWithPythonType(
    [model.weights_type for model in pool_models], tuple
  )
  return computations.at_server(compare, weights_type, x_type)


def build_validation(
  model: models.Model, examples_type: tff.Type, task: task_lib.Task
) -> tff.Computation:
  """Builds the measurement of a model on the server's validation set.

  Type signature:
    (<weights=W@SERVER, examples=<x,y>@SERVER> -> M@SERVER)

  Args:
    model: The model.
    examples_type: TFF type of a client's examples.
    task: Preprocessing, used without augmentation, and padding.

  Returns:
    The computation. Its metrics are `validation_loss` (nats),
    `validation_accuracy`, and `calibration_error`, the expected calibration
    error: the labels are put into 15 bins of equal width by the model's
    confidence, its largest probability, and the bins' differences between mean
    confidence and accuracy are averaged by their size. In [0, 1].

  References:
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. arXiv
    1706.04599.
  """

  @tf.function
  def validate(weights, examples):
    def sums_of(x, y):
      mask = losses.label_mask(y, task.padding)
      logits = model.logits(weights, task.preprocess(x))
      answers = tf.argmax(logits, axis=-1, output_type=y.dtype)
      hits = tf.cast(tf.equal(answers, y), tf.float32)
      confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
      # Confidence 1 belongs to the last bin.
      bins = tf.minimum(
        tf.cast(confidence * _CALIBRATION_BINS, tf.int32), _CALIBRATION_BINS - 1
      )

      def by_bin(values):
        return tf.math.unsorted_segment_sum(
          values * mask, bins, _CALIBRATION_BINS
        )

      return (
        tf.reduce_sum(losses.cross_entropy(y, logits) * mask),
        by_bin(tf.ones_like(mask)),
        by_bin(hits),
        by_bin(confidence),
      )

    loss, labels, hits, confidence = evaluation.sum_over_batches(
      sums_of,
      (tf.zeros([]), *[tf.zeros([_CALIBRATION_BINS])] * 3),
      examples['x'],
      examples['y'],
      num_logits=model.num_logits,
    )
    total = tf.reduce_sum(labels)
    gaps = tf.reduce_sum(tf.abs(hits - confidence))
    return collections.OrderedDict(
      validation_loss=tf.math.divide_no_nan(loss, total),
      validation_accuracy=tf.math.divide_no_nan(tf.reduce_sum(hits), total),
      calibration_error=tf.math.divide_no_nan(gaps, total),
    )

  validation_type = tff.StructWithPythonType(
    [('x', examples_type['x']), ('y', examples_type['y'])],
    collections.OrderedDict,
  )
  return computations.at_server(validate, model.weights_type, validation_type)


class Teachers:
  """Measures all pools' models on the server's data."""

  def __init__(self, setting: algorithm.Setting):
    """Builds the computations.

    Args:
      setting: The pools, the task, and what data the server has.
    """
    pools, task = setting.pools, setting.task
    x_type = setting.examples_type['x']
    self._entropy, self._validation, self._agreement = {}, {}, None
    if setting.unlabelled is not None:
      self._x = setting.unlabelled.sample(_NUM_UNLABELLED)
      self._entropy = {
        pool.name: build_entropy(pool.model, x_type, task) for pool in pools
      }
      if len(pools) > 1:
        self._agreement = build_agreement(
          [pool.model for pool in pools], x_type, task
        )
    if setting.validation is not None:
      self._examples = setting.validation
      self._validation = {
        pool.name: build_validation(pool.model, setting.examples_type, task)
        for pool in pools
      }

  def entropy(self, name: str, weights: models.Weights) -> float:
    """Returns the mean entropy of a pool's model on U in nats."""
    return float(self._entropy[name](weights, self._x))

  def validate(self, name: str, weights: models.Weights) -> dict[str, float]:
    """Returns the metrics of a pool's model on the validation set."""
    result = self._validation[name](weights, self._examples)
    return {metric: float(value) for metric, value in result.items()}

  def measure(
    self, pool_models: Mapping[str, Sequence[models.Weights]]
  ) -> dict[str, float]:
    """Returns the metrics of the pools' models as teachers.

    Args:
      pool_models: {pool: weights of each of its models}.

    Returns:
      On a fixed sample of U, `exchange/<pool>/entropy` (nats), and with two
      pools or more `exchange/agreement_top1` and `exchange/agreement_kl` of
      their first models. On the validation set, if there is one,
      `exchange/<pool>/validation_loss`, `/validation_accuracy` and
      `/calibration_error`. A pool of several models has the means of theirs.
    """
    metrics = {}
    for name, own in pool_models.items():
      of_models = [self._measure_one(name, weights) for weights in own]
      for metric in of_models[0]:
        metrics[f'exchange/{name}/{metric}'] = statistics.fmean(
          values[metric] for values in of_models
        )
    if self._agreement is not None:
      firsts = tuple(own[0] for own in pool_models.values())
      result = self._agreement(firsts, self._x)
      for metric, value in result.items():
        metrics[f'exchange/{metric}'] = float(value)
    return metrics

  def _measure_one(
    self, name: str, weights: models.Weights
  ) -> dict[str, float]:
    metrics = {}
    if name in self._entropy:
      metrics['entropy'] = self.entropy(name, weights)
    if name in self._validation:
      metrics |= self.validate(name, weights)
    return metrics


class Gate:
  """Decides before an exchange which models are good enough to teach.

  Attributes:
    is_set: Whether there is a threshold; without one, all are.
  """

  def __init__(
    self, setting: algorithm.Setting, config: config_lib.DistillationConfig
  ):
    """Builds the measurements.

    Args:
      setting: The pools, the task, and what data the server has.
      config: `min_teacher_accuracy` and `max_teacher_entropy`.

    Raises:
      ConfigError: If the accuracy is asked for without a validation set.
    """
    self._min_accuracy = config.min_teacher_accuracy
    self._max_entropy = config.max_teacher_entropy
    self._log_classes = math.log(setting.task.num_classes)
    if self._min_accuracy is not None and setting.validation is None:
      raise errors.ConfigError(
        f'distillation.min_teacher_accuracy = {self._min_accuracy} without a '
        'validation set',
        expected='labelled examples at the server',
        fix='set --task.validation_clients above 0',
      )
    self.is_set = (self._min_accuracy, self._max_entropy) != (None, None)
    if self.is_set:
      self._teachers = Teachers(setting)

  def admits(self, name: str, weights: models.Weights) -> bool:
    """Returns whether a pool's model may teach.

    Args:
      name: The pool.
      weights: Its weights before the exchange.
    """
    if self._max_entropy is not None:
      entropy = self._teachers.entropy(name, weights)
      # A model that is not finite has no entropy, and does not teach.
      if not entropy <= self._max_entropy * self._log_classes:
        return False
    if self._min_accuracy is not None:
      metrics = self._teachers.validate(name, weights)
      return metrics['validation_accuracy'] >= self._min_accuracy
    return True
