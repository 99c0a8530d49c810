"""Measuring the pools' models: on test clients, and against each other."""

import collections
import itertools
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import client_update
from tff_codist import losses
from tff_codist import models
from tff_codist import task as task_lib

# Examples in one forward pass; bounds memory, changes no result.
_BATCH_SIZE = 200


def build_evaluation(
  model: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  *,
  pad_id: Optional[int] = None,
) -> tff.Computation:
  """Builds the federated evaluation of one model.

  Type signature:
    (<weights=W@SERVER, examples={<x,y,seed>}@CLIENTS> -> M@SERVER)

  Args:
    model: The model.
    examples_type: TFF type of a client's examples.
    preprocess: From raw `x` to the model's inputs; used without augmentation.
    pad_id: Label that does not count, or `None`.

  Returns:
    The computation. Its metrics are means over all labels of all clients:
    `loss` (nats) and `accuracy` (a fraction).
  """

  @tf.function
  def evaluate_on_client(weights, examples):
    num_examples = tf.shape(examples['y'])[0]
    loss_sum, correct, labels = (tf.zeros([]) for _ in range(3))
    for start in tf.range(0, num_examples, _BATCH_SIZE):
      y = examples['y'][start : start + _BATCH_SIZE]
      mask = client_update.label_mask(y, pad_id)
      x = preprocess(examples['x'][start : start + _BATCH_SIZE])
      logits = model.logits(weights, x)
      loss_sum += tf.reduce_sum(losses.cross_entropy(y, logits) * mask)
      correct += client_update.num_correct(y, logits, mask)
      labels += tf.reduce_sum(mask)
    return collections.OrderedDict(
      loss=loss_sum, correct=correct, labels=labels
    )

  @tff.tensorflow.computation(model.weights_type, examples_type)
  def work(weights, examples):
    return evaluate_on_client(weights, examples)

  @tff.tensorflow.computation(work.type_signature.result)
  def summarize(sums):
    return collections.OrderedDict(
      loss=tf.math.divide_no_nan(sums['loss'], sums['labels']),
      accuracy=tf.math.divide_no_nan(sums['correct'], sums['labels']),
    )

  @tff.federated_computation(
    tff.FederatedType(model.weights_type, tff.SERVER),
    tff.FederatedType(examples_type, tff.CLIENTS),
  )
  def evaluate(weights, examples):
    sums = tff.federated_map(work, (tff.federated_broadcast(weights), examples))
    return tff.federated_map(summarize, tff.federated_sum(sums))

  return evaluate


def build_agreement(
  pool_models: Sequence[models.Model],
  x_type: tff.TensorType,
  preprocess: task_lib.Preprocess,
  *,
  pad_id: Optional[int] = None,
) -> tff.Computation:
  """Builds the comparison of the pools' models on unlabelled data.

  Type signature:
    (<weights=<W_1,...>@SERVER, x=[?,...]@SERVER> -> M@SERVER)

  Args:
    pool_models: The models of at least two pools.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the models' inputs.
    pad_id: Input token that does not count, or `None`.

  Returns:
    The computation. Its metrics are means over the examples and over all
    ordered pairs of models: `agreement_top1`, how often both have the same
    largest logit, and `agreement_kl`, KL(p ‖ q) in nats; and `entropy`, a
    tuple with the mean entropy of each model's answers in nats.
  """

  @tf.function
  def sums_on(weights, x, mask):
    logits = [
      model.logits(w, preprocess(x)) for model, w in zip(pool_models, weights)
    ]
    pairs = list(itertools.permutations(logits, 2))
    same = tf.add_n(
      [
        tf.cast(tf.equal(tf.argmax(a, -1), tf.argmax(b, -1)), tf.float32)
        for a, b in pairs
      ]
    )
    divergence = tf.add_n([losses.kl(b, a, 1.0) for a, b in pairs])
    return collections.OrderedDict(
      agreement_top1=tf.reduce_sum(same * mask) / len(pairs),
      agreement_kl=tf.reduce_sum(divergence * mask) / len(pairs),
      entropy=tuple(
        tf.reduce_sum(losses.entropy(z) * mask) for z in logits
      ),
    )

  weights_type = tff.StructWithPythonType(
    [model.weights_type for model in pool_models], tuple
  )

  @tf.function
  def compare(weights, x):
    total = tf.zeros([])
    sums = sums_on(weights, x[:0], tf.zeros_like(_mask(x[:0], pad_id)))
    for start in tf.range(0, tf.shape(x)[0], _BATCH_SIZE):
      batch = x[start : start + _BATCH_SIZE]
      mask = _mask(batch, pad_id)
      sums = tf.nest.map_structure(
        tf.add, sums, sums_on(weights, batch, mask)
      )
      total += tf.reduce_sum(mask)
    return tf.nest.map_structure(
      lambda value: tf.math.divide_no_nan(value, total), sums
    )

  @tff.tensorflow.computation(weights_type, x_type)
  def work(weights, x):
    return compare(weights, x)

  @tff.federated_computation(
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(x_type, tff.SERVER),
  )
  def agreement(weights, x):
    return tff.federated_map(work, (weights, x))

  return agreement


def _mask(x: tf.Tensor, pad_id: Optional[int]) -> tf.Tensor:
  """Returns 1 for each position of raw inputs that is compared."""
  if pad_id is None:
    return tf.ones([tf.shape(x)[0]])
  return client_update.label_mask(x, pad_id)
