"""Measuring the pools' models on the test clients, overall and by domain."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import algorithm
from tff_codist import clients
from tff_codist import losses
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import task as task_lib

# Examples in one forward pass, and logits: whichever is reached first. Bounds
# memory, changes no result.
_BATCH_SIZE = 200
_LOGITS_AT_ONCE = 2**23
# Test clients that are sent in one call.
_CLIENTS_AT_ONCE = 50
_QUANTILES = (0.1, 0.5, 0.9)


def sum_over_batches(
  sums_of: Callable[..., Any],
  zeros: Any,
  *arrays: tf.Tensor,
  num_logits: int,
) -> Any:
  """Adds up what a function returns for batches of examples, in a graph.

  Args:
    sums_of: From slices of `arrays` to a structure of sums over them.
    zeros: The same structure, of zeros.
    *arrays: Tensors `[examples, ...]`.
    num_logits: Logits that one example takes.

  Returns:
    The sums over all examples.
  """
  batch_size = max(1, min(_BATCH_SIZE, _LOGITS_AT_ONCE // num_logits))
  sums = zeros
  for start in tf.range(0, tf.shape(arrays[0])[0], batch_size):
    batch = [array[start : start + batch_size] for array in arrays]
    sums = tf.nest.map_structure(tf.add, sums, sums_of(*batch))
  return sums


def evaluation_type(examples_type: tff.Type) -> tff.StructWithPythonType:
  """Returns the TFF type `<x,y,domain>` of test clients' examples."""
  return tff.StructWithPythonType(
    [
      ('x', examples_type['x']),
      ('y', examples_type['y']),
      ('domain', tff.TensorType(np.int32, (None,))),
    ],
    collections.OrderedDict,
  )


def build_evaluation(
  model: models.Model,
  examples_type: tff.Type,
  task: task_lib.Task,
) -> tff.Computation:
  """Builds the federated evaluation of one model.

  Type signature:
    (<weights=W@SERVER, examples={<x,y,domain>}@CLIENTS> -> {S}@CLIENTS)

  Args:
    model: The model.
    examples_type: TFF type of a training client's examples.
    task: Preprocessing, used without augmentation, padding, domains, and the
      further accuracies.

  Returns:
    The computation. S is each client's sums, float32 with an entry for each
    domain (one if the task has none): `loss` (nats) and `labels` over the
    labels that are not padding; `correct` and `counted`, each by accuracy:
    `accuracy` counts the same labels, those of `task.uncounted_labels` fewer.
  """
  num_domains = max(1, len(task.domains))
  uncounted = {'accuracy': (), **task.uncounted_labels}

  def zeros():
    none = tf.zeros([num_domains])
    return collections.OrderedDict(
      loss=none,
      labels=none,
      correct=collections.OrderedDict.fromkeys(uncounted, none),
      counted=collections.OrderedDict.fromkeys(uncounted, none),
    )

  @tf.function
  def evaluate_on_client(weights, examples):
    def sums_of(x, domain, y):
      logits = model.logits(weights, task.preprocess(x))
      answers = tf.argmax(logits, axis=-1, output_type=y.dtype)
      hits = tf.cast(tf.equal(answers, y), tf.float32)
      mask = losses.label_mask(y, task.padding)

      def by_domain(values):
        per_example = tf.reduce_sum(
          tf.reshape(values, [tf.shape(y)[0], -1]), axis=1
        )
        return tf.math.unsorted_segment_sum(per_example, domain, num_domains)

      masks = collections.OrderedDict(
        (name, mask * losses.label_mask(y, labels))
        for name, labels in uncounted.items()
      )
      return collections.OrderedDict(
        loss=by_domain(losses.cross_entropy(y, logits) * mask),
        labels=by_domain(mask),
        correct=collections.OrderedDict(
          (name, by_domain(hits * mask)) for name, mask in masks.items()
        ),
        counted=collections.OrderedDict(
          (name, by_domain(mask)) for name, mask in masks.items()
        ),
      )

    return sum_over_batches(
      sums_of,
      zeros(),
      examples['x'],
      examples['domain'],
      examples['y'],
      num_logits=model.num_logits,
    )

  @tff.tensorflow.computation(
    model.weights_type, evaluation_type(examples_type)
  )
  def work(weights, examples):
    return evaluate_on_client(weights, examples)

  @tff.federated_computation(
    tff.FederatedType(model.weights_type, tff.SERVER),
    tff.FederatedType(evaluation_type(examples_type), tff.CLIENTS),
  )
  def evaluate(weights, examples):
    return tff.federated_map(work, (tff.federated_broadcast(weights), examples))

  return evaluate


class Evaluator:
  """Evaluates the models of all pools on the test clients.

  The clients are loaded and sent a few at a time; of each, only its sums are
  kept.
  """

  def __init__(self, setting: algorithm.Setting, test: clients.ClientData):
    """Builds the computations.

    Args:
      setting: The pools and the task.
      test: The clients to evaluate on.
    """
    self._task = setting.task
    self._test = test
    self._pools = setting.pools
    self._evaluations = {
      pool.name: build_evaluation(
        pool.model, setting.examples_type, setting.task
      )
      for pool in setting.pools
    }

  def evaluate(
    self, pool_models: Mapping[str, Sequence[models.Weights]]
  ) -> dict[str, float]:
    """Returns the metrics of the pools' models.

    Args:
      pool_models: {pool: weights of each of its models}.

    Returns:
      For each pool under `eval/<pool>/`: `loss` (nats), `accuracy`, the task's
      further accuracies, and for language tasks `perplexity`, e^loss; all over
      the labels of all clients. The same by domain under
      `eval/<pool>/<domain>/`, and, if the pool trains on some domains only,
      under `in_domain/` and `out_of_domain/`. `accuracy_p10`, `_p50` and
      `_p90` are quantiles over the clients. A pool of several models has the
      means of theirs.
    """
    chunks = {name: [[] for _ in own] for name, own in pool_models.items()}
    ids = self._test.client_ids
    for start in range(0, len(ids), _CLIENTS_AT_ONCE):
      examples = [
        self._with_domain(self._test.load(client_id))
        for client_id in ids[start : start + _CLIENTS_AT_ONCE]
      ]
      for name, evaluate in self._evaluations.items():
        for weights, parts in zip(pool_models[name], chunks[name]):
          results = evaluate(weights, examples)
          parts.append(tf.nest.map_structure(_stack, *results))
    metrics = {}
    for pool in self._pools:
      summaries = [
        self._summarize(pool, tf.nest.map_structure(_concatenate, *parts))
        for parts in chunks[pool.name]
      ]
      for name in summaries[0]:
        metrics[f'eval/{pool.name}/{name}'] = float(
          np.mean([summary[name] for summary in summaries])
        )
    return metrics

  def _with_domain(self, examples: clients.Examples) -> clients.Examples:
    y = examples['y']
    domain = examples.get('domain', np.zeros(len(y), np.int32))
    return clients.Examples(x=examples['x'], y=y, domain=domain)

  def _summarize(self, pool: pools_lib.Pool, sums: Any) -> dict[str, float]:
    domains = self._task.domains
    groups = {'': range(max(1, len(domains)))}
    groups.update({f'{d}/': [i] for i, d in enumerate(domains)})
    if pool.domains:
      own = self._task.domain_indices(pool.domains)
      groups['in_domain/'] = own
      groups['out_of_domain/'] = sorted(set(groups['']) - set(own))
    metrics = {}
    for prefix, indices in groups.items():
      totals = tf.nest.map_structure(lambda s: s[:, indices].sum(), sums)  # noqa: B023
      for name, value in _means(totals, self._task.pad_id).items():
        metrics[f'{prefix}{name}'] = value
    counted = sums['counted']['accuracy'].sum(axis=1)
    correct = sums['correct']['accuracy'].sum(axis=1)
    if counted.any():
      accuracies = correct[counted > 0] / counted[counted > 0]
      for q, value in zip(_QUANTILES, np.quantile(accuracies, _QUANTILES)):
        metrics[f'accuracy_p{100 * q:.0f}'] = float(value)
    return metrics


def _stack(*clients: np.ndarray) -> np.ndarray:
  """Returns `[clients, domains]` from each client's `[domains]`."""
  return np.array(clients, np.float64)


def _concatenate(*parts: np.ndarray) -> np.ndarray:
  return np.concatenate(parts)


def _means(totals: Mapping[str, Any], pad_id: Optional[int]) -> dict:
  """Returns a group's metrics; none for a group without a label."""
  if not totals['labels']:
    return {}
  loss = totals['loss'] / totals['labels']
  metrics = {'loss': float(loss)}
  if pad_id is not None:
    metrics['perplexity'] = float(np.exp(loss))
  for name, counted in totals['counted'].items():
    if counted:
      metrics[name] = float(totals['correct'][name] / counted)
  return metrics
