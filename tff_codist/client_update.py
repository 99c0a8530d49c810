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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import local_training
from tff_codist import losses
from tff_codist import models
from tff_codist import registry
from tff_codist import task as task_lib

AggregationFactory = Union[
  tff.aggregators.WeightedAggregationFactory,
  tff.aggregators.UnweightedAggregationFactory,
]

# Fields of the configuration that only local training by SGD reads, and those
# that only means of clients' models do.
SGD_FIELDS = ('client.learning_rate', 'client.momentum')
MEAN_FIELDS = ('client.weighting', *SGD_FIELDS)

aggregators: registry.Registry = registry.Registry('aggregator')
aggregators.register('mean')(
  lambda: tff.aggregators.MeanFactory(no_nan_division=True)
)
aggregators.register('robust')(tff.learning.robust_aggregator)
# Rounds to the nearest: by default TFF rounds at random, without a seed.
aggregators.register('compressed')(
  lambda: tff.learning.compression_aggregator(stochastic=False)
)


class ClientResult(NamedTuple):
  """What one client sends up.

  Attributes:
    pseudo_gradient: θ − θ_k, the structure of the weights.
    weight: w_k before normalisation, float32 scalar.
    metrics: Sums over the client's training labels: `loss` (nats), `correct`,
      `labels`, and the counts `examples`, one for each epoch, `clients` and
      `clients_dropped`.
  """

  pseudo_gradient: tuple
  weight: tf.Tensor
  metrics: collections.OrderedDict


class MetricsRelease(NamedTuple):
  """How the metrics of clients' training leave the clients.

  Attributes:
    report: What a client sends, from its sums, see `ClientResult.metrics`.
    aggregator: Combines the reports, an unweighted factory.
    summarize: The cohort's metrics, from what the aggregator gives.
  """

  report: Callable[[collections.OrderedDict], Any]
  aggregator: tff.aggregators.UnweightedAggregationFactory
  summarize: Callable[[Any], collections.OrderedDict]


def _means(sums: collections.OrderedDict) -> collections.OrderedDict:
  return collections.OrderedDict(
    loss=tf.math.divide_no_nan(sums['loss'], sums['labels']),
    accuracy=tf.math.divide_no_nan(sums['correct'], sums['labels']),
    examples=sums['examples'],
    clients=sums['clients'],
    clients_dropped=sums['clients_dropped'],
  )


# Exact sums over the cohort: means over its training labels, `loss` (nats) and
# `accuracy`, and the counts `examples`, `clients` and `clients_dropped`.
SUMMED_METRICS = MetricsRelease(
  report=lambda sums: sums,
  aggregator=tff.aggregators.SumFactory(),
  summarize=_means,
)


class ClientUpdate(NamedTuple):
  """The federated computations of one pool's client update.

  Attributes:
    initialize: State A of the aggregations, `<updates, metrics>`. Type
      signature: `( -> A@SERVER)`.
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

  def loss_of(trained, rows, seed):
    x = preprocess(tf.gather(examples['x'], rows), seed)
    y = tf.gather(examples['y'], rows)
    mask = losses.label_mask(y, uncounted) if uncounted else None
    logits = model.logits(trained, x, training=True)
    loss = losses.masked_mean(losses.cross_entropy(y, logits), mask)
    return loss, training_sums(loss, y, logits, mask)

  _, trained, sums = local_training.descend(
    loss_of,
    weights,
    optimizer,
    models.fresh_optimizer_state(optimizer, weights),
    num_examples=num_examples,
    epochs=epochs,
    batch_size=batch_size,
    seed=examples['seed'],
    zeros=zero_sums(),
  )
  pseudo_gradient = tf.nest.map_structure(tf.subtract, weights, trained)
  has_examples = tf.cast(num_examples > 0, tf.float32)
  weight = (
    tf.cast(num_examples, tf.float32)
    if weighting == 'examples'
    else has_examples
  )
  metrics = collections.OrderedDict(
    **sums,
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


def _build_train(
  model: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  config: config_lib.ClientConfig,
  *,
  uncounted: Sequence[int],
) -> tff.Computation:
  """Builds the work of one client: `(<W, <x,y,seed>> -> ClientResult)`."""
  optimizer = build_client_optimizer(config)

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

  return train


def build_client_optimizer(
  config: config_lib.ClientConfig,
) -> tff.learning.optimizers.Optimizer:
  """Returns the optimizer of local training, SGD."""
  return tff.learning.optimizers.build_sgdm(
    learning_rate=config.learning_rate, momentum=config.momentum or None
  )


class ClientModel(NamedTuple):
  """One client's model after local training.

  Attributes:
    weights: θ_k.
    share: w_k before normalisation, float32 scalar; 0 if the client has no
      examples, or its training was not finite: then θ_k = θ.
  """

  weights: tuple
  share: tf.Tensor


def build_client_models(
  model: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  config: config_lib.ClientConfig,
  *,
  uncounted: Sequence[int] = (),
) -> tff.Computation:
  """Builds local training whose models the server sees one by one.

  For methods that need each client's model. No aggregator can protect it.

  Type signature:
    (<weights=W@SERVER, examples={<x,y,seed>}@CLIENTS> ->
    <models={<weights=W, share=float32>}@CLIENTS, metrics=M@SERVER>)

  Args:
    model: The pool's model.
    examples_type: TFF type of a client's examples, see `examples_type`.
    preprocess: From raw `x` to the model's inputs.
    config: Local training.
    uncounted: Labels that do not count, as padding.

  Returns:
    The computation. Its models are `ClientModel`s, its metrics those of
    `SUMMED_METRICS`.
  """
  train = _build_train(
    model, examples_type, preprocess, config, uncounted=uncounted
  )
  release = build_metrics_release(
    SUMMED_METRICS, train.type_signature.result.metrics
  )

  @tff.tensorflow.computation(model.weights_type, train.type_signature.result)
  def to_model(weights, result):
    return ClientModel(
      tf.nest.map_structure(tf.subtract, weights, result.pseudo_gradient),
      result.weight,
    )

  @tff.federated_computation(
    tff.FederatedType(model.weights_type, tff.SERVER),
    tff.FederatedType(examples_type, tff.CLIENTS),
  )
  def train_clients(weights, examples):
    at_clients = tff.federated_broadcast(weights)
    results = tff.federated_map(train, (at_clients, examples))
    metrics = release.next(release.initialize(), results.metrics)
    return collections.OrderedDict(
      models=tff.federated_map(to_model, (at_clients, results)),
      metrics=metrics.result,
    )

  return train_clients


def build_client_update(
  model: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  config: config_lib.ClientConfig,
  *,
  aggregator: Optional[AggregationFactory] = None,
  metrics: Optional[MetricsRelease] = SUMMED_METRICS,
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
    metrics: What is released of the clients' metrics; `None` is nothing.
    uncounted: Labels that do not count, as padding.

  Returns:
    The computations, with the type signatures of `ClientUpdate`. Without
    `metrics` theirs are an empty struct.

  Raises:
    UnknownNameError: If there is no such aggregator.
  """
  train = _build_train(
    model, examples_type, preprocess, config, uncounted=uncounted
  )
  factory = aggregator or aggregators[config.aggregator]()
  is_weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  process = (
    factory.create(model.weights_type, tff.TensorType(np.float32))
    if is_weighted
    else factory.create(model.weights_type)
  )

  release = build_metrics_release(metrics, train.type_signature.result.metrics)

  @tff.federated_computation
  def initialize():
    return tff.federated_zip(
      collections.OrderedDict(
        updates=process.initialize(), metrics=release.initialize()
      )
    )

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(model.weights_type, tff.SERVER),
    tff.FederatedType(examples_type, tff.CLIENTS),
  )
  def next_fn(state, weights, examples):
    results = tff.federated_map(
      train, (tff.federated_broadcast(weights), examples)
    )
    aggregated = (
      process.next(state.updates, results.pseudo_gradient, results.weight)
      if is_weighted
      else process.next(state.updates, results.pseudo_gradient)
    )
    released = release.next(state.metrics, results.metrics)
    return collections.OrderedDict(
      state=tff.federated_zip(
        collections.OrderedDict(
          updates=aggregated.state, metrics=released.state
        )
      ),
      pseudo_gradient=aggregated.result,
      metrics=released.result,
    )

  return ClientUpdate(initialize=initialize, next=next_fn)


def build_metrics_release(
  metrics: Optional[MetricsRelease], sums_type: tff.Type
) -> tff.templates.AggregationProcess:
  """Builds the process from the clients' sums to the cohort's metrics.

  Args:
    metrics: What is released; `None` is nothing, an empty struct.
    sums_type: TFF type of the sums S, see `ClientResult.metrics`.

  Returns:
    The process, with the type signature of `next` `(<state=A@SERVER,
    sums={S}@CLIENTS> -> <state=A@SERVER, result=M@SERVER,
    measurements=@SERVER>)`.
  """
  if metrics is None:

    @tff.federated_computation
    def nothing():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      tff.FederatedType((), tff.SERVER),
      tff.FederatedType(sums_type, tff.CLIENTS),
    )
    def release_nothing(state, sums):
      del sums
      return tff.templates.MeasuredProcessOutput(
        state=state,
        result=tff.federated_value(collections.OrderedDict(), tff.SERVER),
        measurements=tff.federated_value((), tff.SERVER),
      )

    return tff.templates.AggregationProcess(nothing, release_nothing)

  report = tff.tensorflow.computation(metrics.report, sums_type)
  process = metrics.aggregator.create(report.type_signature.result)
  summarize = tff.tensorflow.computation(
    metrics.summarize, process.next.type_signature.result.result.member
  )

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType(sums_type, tff.CLIENTS),
  )
  def release(state, sums):
    aggregated = process.next(state, tff.federated_map(report, sums))
    return tff.templates.MeasuredProcessOutput(
      state=aggregated.state,
      result=tff.federated_map(summarize, aggregated.result),
      measurements=aggregated.measurements,
    )

  return tff.templates.AggregationProcess(process.initialize, release)


def zero_sums() -> collections.OrderedDict:
  """Returns the structure of `training_sums`, of zeros."""
  return collections.OrderedDict(
    (name, tf.zeros([])) for name in ('loss', 'correct', 'labels')
  )


def training_sums(
  loss: tf.Tensor,
  labels: tf.Tensor,
  logits: tf.Tensor,
  mask: Optional[tf.Tensor],
) -> collections.OrderedDict:
  """Returns a batch's sums over the labels that count.

  Args:
    loss: Their mean loss.
    labels: int32 `[batch, ...]`.
    logits: `[batch, ..., C]`.
    mask: 1 for the labels that count, else 0; `None` if all count.

  Returns:
    `loss`, `correct` and `labels`, float32 scalars.
  """
  num_labels = losses.num_counted(labels, mask)
  return collections.OrderedDict(
    loss=loss * num_labels,
    correct=num_correct(labels, logits, mask),
    labels=num_labels,
  )


def num_correct(
  labels: tf.Tensor, logits: tf.Tensor, mask: Optional[tf.Tensor]
) -> tf.Tensor:
  """Returns how many labels, of those that count, have the largest logit."""
  answers = tf.argmax(logits, axis=-1, output_type=labels.dtype)
  hits = tf.cast(tf.equal(answers, labels), tf.float32)
  return tf.reduce_sum(hits if mask is None else hits * mask)
