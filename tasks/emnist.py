"""Tasks 'emnist' and 'emnist_digits': TFF's federated EMNIST, by writer.

The clients are those of `tff.simulation.datasets.emnist`, the writers of NIST's
Special Database 19 as LEAF has prepared it: 3,400 writers of 62 characters, or
3,383 of the 10 digits alone. Every writer is in the training and, with other
examples, in the test split.

There are two domains, groups of writers: the writers 2100 to 2599 (NIST's
partition hsf_4, whose forms have the numbers 50 to 99) are high-school
students, all others employees of the Census Bureau; see Yadav and Bottou, Cold
Case: The Lost MNIST Digits (arXiv 1905.10498).

MNIST comes from the same forms. Distillation data from `tfds:mnist` is thus
closer to this task than another data set would be, and may hold the very digits
of test clients.
"""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import models
from tff_codist import sql_clients
from tff_codist import task
from tff_codist import unlabelled

NUM_CLASSES = 62
NUM_DIGITS = 10
_INPUT_SHAPE = (28, 28, 1)
_MAX_PIXEL = 255.0

# One file has all characters and the digits alone.
_DATA_SET = sql_clients.DataSet(
  title="TFF's federated EMNIST",
  file_name='emnist_all.sqlite',
  sizes='0.17 GB compressed, several GB unpacked',
  splits=('all_train', 'all_test', 'digits_only_train', 'digits_only_test'),
  load_data=tff.simulation.datasets.emnist.load_data,
)

_FEATURES = {
  'pixels': tf.io.FixedLenFeature(_INPUT_SHAPE, tf.float32),
  'label': tf.io.FixedLenFeature((), tf.int64),
}

DOMAINS = ('census', 'students')
_STUDENTS = range(2100, 2600)


@task.tasks.register('emnist', 'task.data_dir')
def load_task(config: config_lib.Config) -> task.Task:
  """Opens the data set of all characters; downloads it at the first use.

  Args:
    config: Says where the data is. The seed is not read: the clients are
      writers.

  Returns:
    The task. Stored inputs are uint8 `[28, 28, 1]`, 255 the background; labels
    are 0-9, then A-Z, then a-z.

  Raises:
    DataNotFoundError: If the file is missing and cannot be downloaded.
    DataError: If the file is damaged.
  """
  return _load_task(config, 'emnist', NUM_CLASSES, splits='all')


@task.tasks.register('emnist_digits', 'task.data_dir')
def load_digits_task(config: config_lib.Config) -> task.Task:
  """Opens the data set of the digits alone; otherwise as `load_task`."""
  return _load_task(config, 'emnist_digits', NUM_DIGITS, splits='digits_only')


def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
  """Scales pixels to [0, 1]; a `task.Preprocess`.

  Args:
    x: Images `[batch, 28, 28, 1]`, uint8.
    seed: Not read: there is no augmentation.

  Returns:
    float32 images of the same shape, with the values that TFF's own loader
    gives: 1 is the background, 0 is ink.
  """
  del seed
  return tf.cast(x, tf.float32) / _MAX_PIXEL


@task.presets.register('emnist')
def preset(quick: bool) -> config_lib.Config:
  """MERGED CODIST on EMNIST, the large model on a tenth of the writers.

  Command: bin/train.py --preset emnist --run_dir runs/emnist
  Measured on 265 writers: small 61.9 %, large 70.5 % in round 100 (FedAvg
  61.8 %, 69.8 %), one seed, 8 minutes on two cores shared with two other runs.

  The learning rates are from the grid of Reddi et al. (arXiv 2003.00295,
  appendix D). A tenth of 238 writers is enough here for the large model to end
  above the small one. Distillation waits until the models have something to
  teach. See tasks/cifar100.py on `rescale`, tasks/digits.py on `match_norm`.

  Args:
    quick: Two rounds of two clients, distillation from the first round, in
      place of 100 rounds.
  """
  return config_lib.Config(
    task=config_lib.TaskConfig(name='emnist'),
    unlabelled=config_lib.UnlabelledConfig(
      clients_fraction=0.1, max_examples=256 if quick else 10000
    ),
    pools=config_lib.PoolsConfig(
      names=('small', 'large'),
      models=('small', 'large'),
      clients_fraction=(1.0, 0.1),
      cohort_size=(2,) if quick else (10,),
    ),
    algorithm=config_lib.AlgorithmConfig(name='merged_codist'),
    client=config_lib.ClientConfig(learning_rate=0.1, epochs=1, batch_size=20),
    server=config_lib.ServerConfig(
      optimizer='fedadam', learning_rate=10**-2.5, beta2=0.99, epsilon=1e-3
    ),
    distillation=config_lib.DistillationConfig(batch_size=128, epsilon=1e-2),
    periodic=config_lib.PeriodicConfig(
      period=1 if quick else 25, steps=5 if quick else 50, learning_rate=1e-3
    ),
    merged=config_lib.MergedConfig(
      distillation_weight=(0.1, 0.2),
      steps=1,
      learning_rate=1e-4,
      warmup_rounds=0 if quick else 25,
      match_norm=True,
      rescale=True,
    ),
    program=config_lib.ProgramConfig(
      rounds=2 if quick else 100,
      rounds_per_evaluation=2 if quick else 10,
      rounds_per_checkpoint=1 if quick else 10,
      evaluation_clients=4 if quick else None,
    ),
  )


@task.presets.register('emnist_domains')
def preset_domains(quick: bool) -> config_lib.Config:
  """MERGED CODIST on EMNIST between models of different writers.

  Command: bin/train.py --preset emnist_domains --run_dir runs/emnist_domains
  Measured on 265 writers: the small model on students, whom it never trains on,
  56.0 % in round 100 (FedAvg 54.4 %), the large one on employees 69.6 %
  (69.5 %), one seed, 8 minutes on two cores shared with two other runs.

  The small model trains on the employees, the large one on the students. The
  distillation data is from both.

  Args:
    quick: As for `emnist`.
  """
  return config_lib.change(
    preset(quick),
    pools={'clients_fraction': (1.0,), 'domains': DOMAINS},
    merged={'distillation_weight': (0.2, 0.2)},
  )


@task.presets.register('emnist_three_pools')
def preset_three_pools(quick: bool) -> config_lib.Config:
  """MERGED CODIST on EMNIST between three sizes of model.

  Command:
    bin/train.py --preset emnist_three_pools --run_dir runs/emnist_three_pools
  Measured on 265 writers: small 62.0 %, medium 62.7 %, large 69.9 % in round
  100, one seed, 12 minutes on two cores shared with two other runs.

  All clients can run the small model, 30 % the medium and 10 % the large one.

  Args:
    quick: As for `emnist`.
  """
  return config_lib.change(
    preset(quick),
    pools={
      'names': ('small', 'medium', 'large'),
      'models': ('small', 'medium', 'large'),
      'clients_fraction': (1.0, 0.3, 0.1),
    },
    merged={'distillation_weight': (0.1, 0.2, 0.2)},
  )


def _load_task(
  config: config_lib.Config, name: str, num_classes: int, *, splits: str
) -> task.Task:
  """Returns the task whose splits are `splits`_train and `splits`_test."""
  database = sql_clients.open_database(_DATA_SET, config.task.data_dir)
  return task.Task(
    name=name,
    num_classes=num_classes,
    train=database.clients(f'{splits}_train', _FEATURES, _to_examples),
    test=database.clients(f'{splits}_test', _FEATURES, _to_examples),
    preprocess=preprocess,
    models=_build_models(num_classes),
    domains=DOMAINS,
    client_domain=_client_domain,
    foreign=unlabelled.Images(_INPUT_SHAPE, invert=True),
    own_datasets=('emnist',),
  )


def _build_models(
  num_classes: int,
) -> Mapping[str, Callable[[], tf.keras.Model]]:
  """Returns the models by name; weights are counted for 62 and 10 classes."""
  cnn = functools.partial(models.cnn, _INPUT_SHAPE, num_classes)
  mlp = functools.partial(models.mlp, _INPUT_SHAPE, num_classes)
  return {
    # 109,246 and 105,866 weights.
    'small': functools.partial(cnn, widths=(16, 32), dense=(64,)),
    # 428,350 and 421,642 weights.
    'medium': functools.partial(cnn, widths=(32, 64), dense=(128,)),
    # 1,290,878 and 1,280,842 weights.
    'large': functools.partial(cnn, widths=(64, 128), dense=(192,)),
    # The networks of McMahan et al. (arXiv 1602.05629): 209,662 and 199,210,
    # 1,690,046 and 1,663,370 weights.
    '2nn': functools.partial(mlp, widths=(200, 200)),
    'fedavg_cnn': functools.partial(
      cnn, widths=(32, 64), dense=(512,), kernel_size=5
    ),
    # 58,430 and 55,050 weights.
    '2nn_small': functools.partial(mlp, widths=(64, 64)),
  }


def _to_examples(
  client_id: str, features: Mapping[str, np.ndarray]
) -> clients.Examples:
  """Returns the examples of a writer."""
  # The file's pixels are exactly k / 255.
  x = np.rint(features['pixels'] * _MAX_PIXEL).astype(np.uint8)
  y = features['label'].astype(np.int32)
  return collections.OrderedDict(
    x=x,
    y=y,
    domain=np.full(len(y), _client_domain(client_id), np.int32),
  )


def _client_domain(client_id: str) -> int:
  """Returns the domain of a writer with an id like 'f2109_75'."""
  is_student = int(client_id[1:5]) in _STUDENTS
  return DOMAINS.index('students' if is_student else 'census')
