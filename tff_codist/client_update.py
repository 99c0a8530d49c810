"""Clients' local training, aggregated to the federated pseudo-gradient.

FedAvg's client update (McMahan et al., arXiv 1602.05629, Algorithm 1): every
client of the cohort starts from the pool's weights θ, trains on its own
examples, and the server receives

    g = Σ_k w_k · (θ − θ_k),   w_k = n_k / Σ n_j  or uniform.

g points uphill, as a gradient does; what happens with it is the server's
matter. A client whose update is not finite, or which has no examples, has
weight zero.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import losses
from tff_codist import models
from tff_codist import registry
from tff_codist import task as task_lib

AggregationFactory = Union[
  tff.aggregators.WeightedAggregationFactory,
  tff.aggregators.UnweightedAggregationFactory,
]

aggregators: registry.Registry = registry.Registry('aggregator')
aggregators.register('mean')(
  lambda: tff.aggregators.MeanFactory(no_nan_division=True)
)
aggregators.register('robust')(tff.learning.robust_aggregator)
aggregators.register('compressed')(tff.learning.compression_aggregator)


class ClientResult(NamedTuple):
  """What one client sends up.

  Attributes:
    pseudo_gradient: θ − θ_k, the structure of the weights.
    weight: w_k before normalisation, float32 scalar.
    metrics: Sums over the client's training labels: `loss` (nats), `correct`,
      `labels`, and the counts `examples`, `clients`, `clients_dropped`.
  """

  pseudo_gradient: tuple
  weight: tf.Tensor
  metrics: collections.OrderedDict


class ClientUpdate(NamedTuple):
  """The federated computations of one pool's client update.

  Attributes:
    initialize: State of the aggregator. Type signature: `( -> A@SERVER)`.
    next: One cohort's pseudo-gradient. Type signature: `(<state=A@SERVER,
      weights=W@SERVER, examples={<x,y,seed>}@CLIENTS> -> <state=A@SERVER,
      pseudo_gradient=W@SERVER, metrics=M@SERVER>)`.
  """

  initialize: tff.Computation
  next: tff.Computation


def examples_type(examples: clients.Examples) -> tff.StructWithPythonType:
  """Returns the TFF type `<x,y,seed>` of clients like the given one."""
  x, y = examples['x'], examples['y']
  return tff.StructWithPythonType(
    [
      ('x', tff.TensorType(x.dtype.type, (None, *x.shape[1:]))),
      ('y', tff.TensorType(y.dtype.type, (None, *y.shape[1:]))),
      ('seed', tff.TensorType(np.int32, (2,))),
    ],
    collections.OrderedDict,
  )


def train_on_client(
  model: models.Model,
  weights: models.Weights,
  examples: clients.SeededExamples,
  *,
  preprocess: task_lib.Preprocess,
  optimizer: tff.learning.optimizers.Optimizer,
  epochs: int,
  batch_size: int,
  weighting: str,
  uncounted: Sequence[int] = (),
) -> ClientResult:
  """Trains a copy of the weights on one client; call it in a `tf.function`.

  E epochs over the shuffled examples in batches of B, the last of which may be
  smaller. The shuffle and the augmentation depend on the client's seed only.

  Args:
    model: The pool's model.
    weights: θ, tensors as in `model.weights_type`.
    examples: `<x=[n, ...], y=[n, ...], seed=int32[2]>`.
    preprocess: From raw `x` to the model's inputs.
    optimizer: The client optimizer.
    epochs: E, at least 1.
    batch_size: B, at least 1.
    weighting: `'examples'` or `'uniform'`.
    uncounted: Labels that do not count, as padding.

  Returns:
    The client's result; all zeros if the update is not finite.
  """
  num_examples = tf.shape(examples['y'])[0]
  steps_per_epoch = -(-num_examples // batch_size)
  trained = weights
  optimizer_state = optimizer.initialize(
    tf.nest.map_structure(tf.TensorSpec.from_tensor, weights)
  )
  loss_sum, correct, labels = (tf.zeros([]) for _ in range(3))

  for epoch in tf.range(epochs):
    epoch_seed = tf.random.experimental.stateless_fold_in(
      examples['seed'], epoch
    )
    order = tf.random.experimental.stateless_shuffle(
      tf.range(num_examples), epoch_seed
    )
    for step in tf.range(steps_per_epoch):
      batch = order[step * batch_size : (step + 1) * batch_size]
      x = preprocess(
        tf.gather(examples['x'], batch),
        tf.random.experimental.stateless_fold_in(epoch_seed, step + 1),
      )
      y = tf.gather(examples['y'], batch)
      mask = losses.label_mask(y, uncounted) if uncounted else None
      with tf.GradientTape() as tape:
        tape.watch(trained)
        logits = model.logits(trained, x, training=True)
        loss = losses.masked_mean(losses.cross_entropy(y, logits), mask)
      gradient = tape.gradient(loss, trained)
      optimizer_state, trained = optimizer.next(
        optimizer_state, trained, gradient
      )
      num_labels = losses.num_counted(y, mask)
      loss_sum += loss * num_labels
      correct += num_correct(y, logits, mask)
      labels += num_labels

  pseudo_gradient = tf.nest.map_structure(tf.subtract, weights, trained)
  has_examples = tf.cast(num_examples > 0, tf.float32)
  weight = (
    tf.cast(num_examples, tf.float32)
    if weighting == 'examples'
    else has_examples
  )
  metrics = collections.OrderedDict(
    loss=loss_sum,
    correct=correct,
    labels=labels,
    examples=tf.cast(num_examples * epochs, tf.float32),
    clients=has_examples,
  )
  result = pseudo_gradient, weight, metrics
  is_finite = models.all_finite(pseudo_gradient)
  pseudo_gradient, weight, metrics = tf.cond(
    is_finite,
    lambda: result,
    lambda: tf.nest.map_structure(tf.zeros_like, result),
  )
  metrics['clients_dropped'] = 1 - tf.cast(is_finite, tf.float32)
  return ClientResult(pseudo_gradient, weight, metrics)


def build_client_update(
  model: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  config: config_lib.ClientConfig,
  *,
  aggregator: Optional[AggregationFactory] = None,
  releases_metrics: bool = True,
  uncounted: Sequence[int] = (),
) -> ClientUpdate:
  """Builds the client update of one pool.

  Args:
    model: The pool's model.
    examples_type: TFF type of a client's examples, see `examples_type`.
    preprocess: From raw `x` to the model's inputs.
    config: Local training.
    aggregator: Any `tff.aggregators` factory; `None` takes the one that
      `config.aggregator` names. An unweighted factory, as those with
      differential privacy, sees dropped clients as zero updates.
    releases_metrics: Whether the clients' metrics are summed. Sums without
      noise are releases that no analysis of the pseudo-gradient's covers.
    uncounted: Labels that do not count, as padding.

  Returns:
    The computations, with the type signatures of `ClientUpdate`. The metrics
    are means over the cohort's training labels, `loss` (nats) and `accuracy`,
    and the counts `examples`, `clients` and `clients_dropped`; an empty struct
    without `releases_metrics`.

  Raises:
    UnknownNameError: If there is no such aggregator.
  """
  optimizer = tff.learning.optimizers.build_sgdm(
    learning_rate=config.learning_rate, momentum=config.momentum or None
  )

  @tff.tensorflow.computation(model.weights_type, examples_type)
  def train(weights, examples):
    return tf.function(train_on_client)(
      model,
      weights,
      examples,
      preprocess=preprocess,
      optimizer=optimizer,
      epochs=config.epochs,
      batch_size=config.batch_size,
      weighting=config.weighting,
      uncounted=uncounted,
    )

  @tff.tensorflow.computation(train.type_signature.result.metrics)
  def summarize(sums):
    return collections.OrderedDict(
      loss=tf.math.divide_no_nan(sums['loss'], sums['labels']),
      accuracy=tf.math.divide_no_nan(sums['correct'], sums['labels']),
      examples=sums['examples'],
      clients=sums['clients'],
      clients_dropped=sums['clients_dropped'],
    )

  factory = aggregator or aggregators[config.aggregator]()
  is_weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  process = (
    factory.create(model.weights_type, tff.TensorType(np.float32))
    if is_weighted
    else factory.create(model.weights_type)
  )

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType(model.weights_type, tff.SERVER),
    tff.FederatedType(examples_type, tff.CLIENTS),
  )
  def next_fn(state, weights, examples):
    results = tff.federated_map(
      train, (tff.federated_broadcast(weights), examples)
    )
    aggregated = (
      process.next(state, results.pseudo_gradient, results.weight)
      if is_weighted
      else process.next(state, results.pseudo_gradient)
    )
    metrics = (
      tff.federated_map(summarize, tff.federated_sum(results.metrics))
      if releases_metrics
      else tff.federated_value(collections.OrderedDict(), tff.SERVER)
    )
    return collections.OrderedDict(
      state=aggregated.state,
      pseudo_gradient=aggregated.result,
      metrics=metrics,
    )

  return ClientUpdate(initialize=process.initialize, next=next_fn)


def num_correct(
  labels: tf.Tensor, logits: tf.Tensor, mask: Optional[tf.Tensor]
) -> tf.Tensor:
  """Returns how many labels, of those that count, have the largest logit."""
  answers = tf.argmax(logits, axis=-1, output_type=labels.dtype)
  hits = tf.cast(tf.equal(answers, labels), tf.float32)
  return tf.reduce_sum(hits if mask is None else hits * mask)
