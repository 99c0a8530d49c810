"""Measuring the pools' models: on test clients, and against each other."""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Optional

import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import client_update
from tff_codist import clients
from tff_codist import losses
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import task as task_lib

# Examples in one forward pass; bounds memory, changes no result.
_BATCH_SIZE = 200
# Test clients that are sent in one call.
_CLIENTS_AT_ONCE = 50
# Unlabelled examples on which the models are compared.
_AGREEMENT_EXAMPLES = 1000


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
    The computation. Its metrics are means over all labels of all clients,
    `loss` (nats) and `accuracy` (a fraction), and the number of `labels`.
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
      labels=sums['labels'],
    )

  @tff.federated_computation(
    tff.FederatedType(model.weights_type, tff.SERVER),
    tff.FederatedType(examples_type, tff.CLIENTS),
  )
  def evaluate(weights, examples):
    sums = tff.federated_map(work, (tff.federated_broadcast(weights), examples))
    return tff.federated_map(summarize, tff.federated_sum(sums))

  return evaluate


class Evaluator:
  """Evaluates all models of an algorithm on the test clients.

  The clients are loaded and sent a few at a time, so that memory does not grow
  with their number.
  """

  def __init__(
    self,
    pools: Sequence[pools_lib.Pool],
    task: task_lib.Task,
    examples_type: tff.Type,
    *,
    unlabelled: Optional[clients.UnlabelledData] = None,
  ):
    """Builds the computations.

    Args:
      pools: The pools.
      task: The task with the test clients.
      examples_type: TFF type of a client's examples.
      unlabelled: Data on which the models are compared with each other;
        without it, or with one pool, they are not.
    """
    self._test = task.test
    self._evaluations = {
      pool.name: build_evaluation(
        pool.model, examples_type, task.preprocess, pad_id=task.pad_id
      )
      for pool in pools
    }
    self._agreement = None
    if unlabelled is not None and len(pools) > 1:
      self._x = unlabelled.x[:_AGREEMENT_EXAMPLES]
      self._agreement = build_agreement(
        [pool.model for pool in pools],
        examples_type['x'],
        task.preprocess,
        pad_id=task.pad_id,
      )

  def evaluate(
    self, models_weights: Mapping[str, models.Weights]
  ) -> dict[str, float]:
    """Returns the metrics of the pools' models.

    Args:
      models_weights: {pool: weights}.

    Returns:
      `eval/<pool>/loss` (nats) and `eval/<pool>/accuracy`, means over all test
      labels; `exchange/agreement_top1`, `exchange/agreement_kl` and
      `exchange/<pool>/entropy` on the first 1,000 unlabelled examples.
    """
    labels = 0.0
    sums = collections.Counter()
    ids = self._test.client_ids
    for start in range(0, len(ids), _CLIENTS_AT_ONCE):
      examples = clients.load_cohort(
        self._test,
        ids[start : start + _CLIENTS_AT_ONCE],
        seed=0,
        round_num=0,
        pool='test',
      )
      for name, evaluate in self._evaluations.items():
        result = evaluate(models_weights[name], examples)
        for metric in ('loss', 'accuracy'):
          sums[f'eval/{name}/{metric}'] += float(result[metric]) * float(
            result['labels']
          )
      labels += float(result['labels'])
    metrics = {name: value / labels for name, value in sums.items()}
    if self._agreement is not None:
      names = tuple(self._evaluations)
      result = self._agreement(
        tuple(models_weights[name] for name in names), self._x
      )
      for metric in ('agreement_top1', 'agreement_kl'):
        metrics[f'exchange/{metric}'] = float(result[metric])
      for name, entropy in zip(names, result['entropy']):
        metrics[f'exchange/{name}/entropy'] = float(entropy)
    return metrics


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
    inputs = preprocess(x)
    logits = [model.logits(w, inputs) for model, w in zip(pool_models, weights)]
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
      entropy=tuple(tf.reduce_sum(losses.entropy(z) * mask) for z in logits),
    )

  weights_type = tff.StructWithPythonType(
    [model.weights_type for model in pool_models], tuple
  )

  @tf.function
  def compare(weights, x):
    total = tf.zeros([])
    sums = collections.OrderedDict(
      agreement_top1=tf.zeros([]),
      agreement_kl=tf.zeros([]),
      entropy=tuple(tf.zeros([]) for _ in pool_models),
    )
    for start in tf.range(0, tf.shape(x)[0], _BATCH_SIZE):
      batch = x[start : start + _BATCH_SIZE]
      mask = _mask(batch, pad_id)
      sums = tf.nest.map_structure(tf.add, sums, sums_on(weights, batch, mask))
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
