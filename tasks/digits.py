"""Task 'digits': 1,797 small images of digits that come with scikit-learn.

It needs no download and a round takes a fraction of a second, so it is the task
of the quickstart and of the tests. A test set of 20 %, stratified by label, is
split evenly over test clients. The other images go to training clients of
different sizes with label skew: every client has its own distribution over the
labels, drawn from a Dirichlet distribution, and the clients take images by it
in turns, without replacement, as in TFF's federated CIFAR-100.
"""

import collections
import functools
from typing import Optional

import numpy as np
import tensorflow as tf
from sklearn import datasets
from sklearn import model_selection

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import models
from tff_codist import randomness
from tff_codist import task
from tff_codist import unlabelled

NUM_CLASSES = 10
NUM_CLIENTS = 40
NUM_TEST_CLIENTS = 8
# Dirichlet parameter of the clients' label distributions; smaller is more
# skewed. At 0.3 a client's commonest label is about 45 % of its images.
CONCENTRATION = 0.3
# Dirichlet parameter of the clients' sizes.
_SIZE_CONCENTRATION = 4.0
_MIN_EXAMPLES = 10
_TEST_FRACTION = 0.2
_INPUT_SHAPE = (8, 8, 1)
_MAX_PIXEL = 16.0

_MODELS = {
  # 2,410 weights.
  'small': functools.partial(
    models.mlp, _INPUT_SHAPE, NUM_CLASSES, widths=(32,)
  ),
  # 8,970 weights.
  'medium': functools.partial(
    models.mlp, _INPUT_SHAPE, NUM_CLASSES, widths=(64, 64)
  ),
  # 50,826 weights.
  'large': functools.partial(
    models.mlp, _INPUT_SHAPE, NUM_CLASSES, widths=(256, 128)
  ),
}


@task.tasks.register('digits')
def load_task(config: config_lib.Config) -> task.Task:
  """Loads the images and splits them over the clients.

  Args:
    config: Only the seed is read; every seed is another split.

  Returns:
    The task. Stored inputs are uint8 `[8, 8, 1]` in [0, 16].
  """
  digits = datasets.load_digits()
  x = digits.images.astype(np.uint8)[..., np.newaxis]
  y = digits.target.astype(np.int32)
  rng = randomness.derive_rng(config.seed, 'digits', 'split')
  train, test = model_selection.train_test_split(
    np.arange(len(y)),
    test_size=_TEST_FRACTION,
    stratify=y,
    random_state=int(rng.integers(2**32)),
  )
  return task.Task(
    name='digits',
    num_classes=NUM_CLASSES,
    train=_in_memory(x, y, 'train', _split_with_skew(train, y[train], rng)),
    test=_in_memory(x, y, 'test', np.array_split(test, NUM_TEST_CLIENTS)),
    preprocess=preprocess,
    models=_MODELS,
    foreign=unlabelled.Images(_INPUT_SHAPE, high=int(_MAX_PIXEL)),
  )


def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
  """Scales pixels to [0, 1]; a `task.Preprocess`.

  Args:
    x: Images `[batch, 8, 8, 1]`, uint8 in [0, 16].
    seed: Not read: the digits fill their 8x8 pixels, shifting would cut them.

  Returns:
    float32 images of the same shape.
  """
  del seed
  return tf.cast(x, tf.float32) / _MAX_PIXEL


@task.presets.register('digits')
def preset(quick: bool) -> config_lib.Config:
  """MERGED CODIST between two dense networks, the larger on four clients.

  Command: bin/train.py --preset digits --run_dir runs/digits
  Measured: bin/quickstart runs it with three seeds, see docs/results.md.

  Eight of the forty clients give their images, without labels, to the server.
  The large model sees a tenth of the others, always the same four, and so ends
  below the small one. Distillation starts when the small model has become the
  better teacher. The large model soon fits its four clients, whose pseudo-
  gradient then vanishes; `match_norm` lets the distillation's shrink with it,
  or the server optimizer would make large steps of it. See tasks/cifar100.py
  on `rescale`.

  Args:
    quick: Four rounds in place of 120.
  """
  return config_lib.Config(
    task=config_lib.TaskConfig(name='digits'),
    unlabelled=config_lib.UnlabelledConfig(clients_fraction=0.2),
    pools=config_lib.PoolsConfig(
      names=('small', 'large'),
      models=('small', 'large'),
      clients_fraction=(1.0, 0.1),
      cohort_size=(10, 4),
    ),
    algorithm=config_lib.AlgorithmConfig(name='merged_codist'),
    distillation=config_lib.DistillationConfig(batch_size=64),
    periodic=config_lib.PeriodicConfig(
      period=2 if quick else 40, steps=20, learning_rate=1e-3
    ),
    merged=config_lib.MergedConfig(
      distillation_weight=(0.05, 0.33),
      steps=1,
      learning_rate=1e-3,
      warmup_rounds=2 if quick else 30,
      match_norm=True,
      rescale=True,
    ),
    program=config_lib.ProgramConfig(
      rounds=4 if quick else 120,
      rounds_per_evaluation=2 if quick else 10,
      rounds_per_checkpoint=2 if quick else 20,
    ),
  )


def _split_with_skew(
  indices: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
  """Splits examples over the training clients, with label skew.

  Args:
    indices: The examples.
    labels: Their labels.
    rng: The source of randomness.

  Returns:
    For each client its examples, at least `_MIN_EXAMPLES`.
  """
  spare = len(indices) - NUM_CLIENTS * _MIN_EXAMPLES
  sizes = _MIN_EXAMPLES + rng.multinomial(
    spare, rng.dirichlet(np.full(NUM_CLIENTS, _SIZE_CONCENTRATION))
  )
  preferences = rng.dirichlet(
    np.full(NUM_CLASSES, CONCENTRATION), size=NUM_CLIENTS
  )
  # A label that a client never prefers is left for when all others are gone.
  preferences += 1e-9
  left = [
    list(rng.permutation(indices[labels == label]))
    for label in range(NUM_CLASSES)
  ]
  chosen = [[] for _ in range(NUM_CLIENTS)]
  for client in rng.permutation(np.repeat(np.arange(NUM_CLIENTS), sizes)):
    weights = preferences[client] * [bool(examples) for examples in left]
    label = rng.choice(NUM_CLASSES, p=weights / weights.sum())
    chosen[client].append(left[label].pop())
  return [np.array(examples) for examples in chosen]


def _in_memory(
  x: np.ndarray, y: np.ndarray, prefix: str, parts: list[np.ndarray]
) -> clients.ClientData:
  examples = {
    f'{prefix}_{i:02d}': collections.OrderedDict(x=x[part], y=y[part])
    for i, part in enumerate(parts)
  }
  return clients.ClientData(examples, examples.__getitem__)
