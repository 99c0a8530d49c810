"""Passes over a client's examples: the loop of all local training."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import models

# From weights, the rows of a batch, int32 `[batch]`, and the batch's seed,
# int32 `[2]`, to the loss, a scalar, and a structure of sums over the batch.
LossFn = Callable[[models.Weights, tf.Tensor, tf.Tensor], tuple]


def descend(
  loss_fn: LossFn,
  weights: models.Weights,
  optimizer: tff.learning.optimizers.Optimizer,
  optimizer_state: Any,
  *,
  num_examples: tf.Tensor,
  epochs: int,
  batch_size: int,
  seed: tf.Tensor,
  zeros: Any,
) -> tuple[Any, models.Weights, Any]:
  """Takes an optimizer's steps over shuffled batches; in a `tf.function`.

  Every epoch is a new order of the rows, cut into batches, the last of which
  may be smaller. Orders and seeds of batches depend on `seed` only.

  Args:
    loss_fn: The loss of a batch, and what is to be added up.
    weights: Where to start.
    optimizer: The optimizer.
    optimizer_state: Its state for these weights.
    num_examples: Number of rows n, an int32 scalar.
    epochs: Passes over the rows, at least 0; a number or an int32 scalar.
    batch_size: Rows in a step, at least 1.
    seed: int32 `[2]`.
    zeros: The structure of the sums, of zeros.

  Returns:
    The optimizer's state, the weights, and the sums over all steps.
  """
  steps_per_epoch = -(-num_examples // batch_size)
  sums = zeros
  for epoch in tf.range(epochs):
    epoch_seed = tf.random.experimental.stateless_fold_in(seed, epoch)
    order = tf.random.experimental.stateless_shuffle(
      tf.range(num_examples), epoch_seed
    )
    for step in tf.range(steps_per_epoch):
      rows = order[step * batch_size : (step + 1) * batch_size]
      batch_seed = tf.random.experimental.stateless_fold_in(
        epoch_seed, step + 1
      )
      with tf.GradientTape() as tape:
        tape.watch(weights)
        loss, batch_sums = loss_fn(weights, rows, batch_seed)
      gradient = tape.gradient(loss, weights)
      optimizer_state, weights = optimizer.next(
        optimizer_state, weights, gradient
      )
      sums = tf.nest.map_structure(tf.add, sums, batch_sums)
  return optimizer_state, weights, sums
