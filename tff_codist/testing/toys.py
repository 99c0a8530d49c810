"""Tiny clients, tasks and settings on which an algorithm runs in seconds."""

import functools
from collections.abc import Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from tff_codist import algorithm
from tff_codist import client_store
from tff_codist import client_update
from tff_codist import clients
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import task as task_lib
from tff_codist import unlabelled as unlabelled_lib

NUM_CLASSES = 3
NUM_FEATURES = 4
# Clients that are in every pool of `make_setting`, more than any cohort has.
COMMON_CLIENTS = ('06', '07', '08', '09', '10', '11')

MODELS = {
  'small': functools.partial(
    models.mlp, (NUM_FEATURES,), NUM_CLASSES, widths=()
  ),
  'large': functools.partial(
    models.mlp, (NUM_FEATURES,), NUM_CLASSES, widths=(8,)
  ),
}


def make_examples(num_examples: int, *, seed: int = 0) -> clients.Examples:
  """Returns separable examples: the label is the largest of three features."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(num_examples, NUM_FEATURES)).astype(np.float32)
  y = np.argmax(x[:, :NUM_CLASSES], axis=1).astype(np.int32)
  return clients.Examples(x=x, y=y)


def seeded(
  examples: clients.Examples, seed: Sequence[int] = (1, 2)
) -> clients.SeededExamples:
  """Returns examples with a client's seed."""
  return clients.SeededExamples(examples, seed=np.array(seed, np.int32))


def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
  """Returns the features as they are; a `task.Preprocess`."""
  del seed
  return tf.cast(x, tf.float32)


def make_task() -> task_lib.Task:
  """Returns a task of twelve clients with 0 to 11 examples."""

  def load(client_id: str) -> clients.Examples:
    return make_examples(int(client_id), seed=int(client_id))

  data = clients.ClientData([f'{i:02}' for i in range(12)], load)
  return task_lib.Task(
    name='toy',
    num_classes=NUM_CLASSES,
    train=data,
    test=data,
    preprocess=preprocess,
    models=MODELS,
  )


def make_setting(
  model_names: Sequence[str] = ('small', 'large'), *, unlabelled: bool = True
) -> algorithm.Setting:
  """Returns a setting with one pool for each model, on the toy task.

  The first pool has all clients, the others the second half of them.

  Args:
    model_names: Models of the pools, which are named `a`, `b`, ...
    unlabelled: Whether there is distillation data, 50 examples.
  """
  task = make_task()
  ids = task.train.client_ids
  pools = [
    pools_lib.Pool(
      name=chr(ord('a') + i),
      model=models.Model(name, MODELS[name]),
      client_ids=ids if i == 0 else ids[6:],
      cohort_size=5 if i == 0 else 3,
    )
    for i, name in enumerate(model_names)
  ]
  return algorithm.Setting(
    pools=pools,
    task=task,
    examples_type=client_update.examples_type(make_examples(1)),
    unlabelled=(
      unlabelled_lib.UnlabelledData(make_examples(50, seed=99)['x'], seed=1)
      if unlabelled
      else None
    ),
    client_store=client_store.ClientStore(':memory:'),
  )


def load_cohorts(
  setting: algorithm.Setting, round_num: int, *, seed: int = 1
) -> dict[str, list[clients.SeededExamples]]:
  """Returns each pool's cohort of a round."""
  loader = clients.CohortLoader(
    setting.task.train, setting.pools, seed=seed, last_round=round_num
  )
  try:
    return loader.load(round_num)
  finally:
    loader.close()


def assert_same(left: object, right: object) -> None:
  """Asserts that two nested structures of arrays are equal bit for bit."""
  tf.nest.assert_same_structure(left, right)
  for a, b in zip(tf.nest.flatten(left), tf.nest.flatten(right)):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
