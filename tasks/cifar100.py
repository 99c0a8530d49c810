"""Task 'cifar100': TFF's federated CIFAR-100, 500 clients with 100 images.

The clients are those of `tff.simulation.datasets.cifar100`: Pachinko allocation
over the coarse and the fine labels. Preprocessing is that of Reddi et al.
(arXiv 2003.00295, appendix C.2) and of TFF's baseline task: random 24x24 crop
and horizontal flip for training, central crop for evaluation, then each image
standardised.

There are two domains, each of 10 of the 20 superclasses: animals (people among
them) and things (plants among them). They stand for the kinds of data on which
the paper's pools differ.
"""

import collections
import functools
from collections.abc import Mapping
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

NUM_CLASSES = 100
IMAGE_SIZE = 32
CROP_SIZE = 24
_INPUT_SHAPE = (CROP_SIZE, CROP_SIZE, 3)

_DATA_SET = sql_clients.DataSet(
  title="TFF's federated CIFAR-100",
  file_name='cifar100.sqlite',
  sizes='0.15 GB compressed, 0.3 GB unpacked',
  splits=('train', 'test'),
  load_data=tff.simulation.datasets.cifar100.load_data,
)

_FEATURES = {
  'image': tf.io.FixedLenFeature((IMAGE_SIZE, IMAGE_SIZE, 3), tf.int64),
  'label': tf.io.FixedLenFeature((), tf.int64),
  'coarse_label': tf.io.FixedLenFeature((), tf.int64),
}

DOMAINS = ('animals', 'things')
# The domains of the coarse labels, in their order.
_DOMAINS_OF_COARSE_LABELS = {
  'aquatic mammals': 'animals',
  'fish': 'animals',
  'flowers': 'things',
  'food containers': 'things',
  'fruit and vegetables': 'things',
  'household electrical devices': 'things',
  'household furniture': 'things',
  'insects': 'animals',
  'large carnivores': 'animals',
  'large man-made outdoor things': 'things',
  'large natural outdoor scenes': 'things',
  'large omnivores and herbivores': 'animals',
  'medium-sized mammals': 'animals',
  'non-insect invertebrates': 'animals',
  'people': 'animals',
  'reptiles': 'animals',
  'small mammals': 'animals',
  'trees': 'things',
  'vehicles 1': 'things',
  'vehicles 2': 'things',
}
_DOMAIN_INDICES = np.array(
  [DOMAINS.index(domain) for domain in _DOMAINS_OF_COARSE_LABELS.values()],
  np.int32,
)

_MODELS = {
  # 327,332 weights.
  'small': functools.partial(
    models.cnn, _INPUT_SHAPE, NUM_CLASSES, widths=(32, 64), dense=(128,)
  ),
  # 612,132 weights.
  'medium': functools.partial(
    models.cnn, _INPUT_SHAPE, NUM_CLASSES, widths=(48, 96), dense=(160,)
  ),
  # 979,876 weights.
  'large': functools.partial(
    models.cnn, _INPUT_SHAPE, NUM_CLASSES, widths=(64, 128), dense=(192,)
  ),
  # 278,132 weights.
  'resnet20': functools.partial(
    models.resnet, _INPUT_SHAPE, NUM_CLASSES, widths=(16, 32, 64), depth=3
  ),
  # 11,227,812 weights.
  'resnet18': functools.partial(models.resnet18, _INPUT_SHAPE, NUM_CLASSES),
}


@task.tasks.register('cifar100', 'task.data_dir')
def load_task(config: config_lib.Config) -> task.Task:
  """Opens the data set; downloads it at the first use.

  Args:
    config: Says where the data is. The seed is not read: the split over clients
      is part of the data set.

  Returns:
    The task. Stored inputs are uint8 `[32, 32, 3]`, labels the 100 fine ones.

  Raises:
    DataNotFoundError: If the file is missing and cannot be downloaded.
    DataError: If the file is damaged.
  """
  database = sql_clients.open_database(_DATA_SET, config.task.data_dir)
  return task.Task(
    name='cifar100',
    num_classes=NUM_CLASSES,
    train=database.clients('train', _FEATURES, _to_examples),
    test=database.clients('test', _FEATURES, _to_examples),
    preprocess=preprocess,
    augments=True,
    models=_MODELS,
    domains=DOMAINS,
    foreign=unlabelled.Images((IMAGE_SIZE, IMAGE_SIZE, 3)),
    own_datasets=('cifar100', 'cifar100_n'),
  )


def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
  """Crops, flips and standardises images; a `task.Preprocess`.

  Args:
    x: Images `[batch, 32, 32, 3]`, uint8.
    seed: int32 `[2]`: every image gets its own random crop, and is flipped with
      probability 1/2; image i depends on the seed and i only. `None`: the
      central crop, no flip.

  Returns:
    float32 images `[batch, 24, 24, 3]`, each of mean 0 and variance 1.
  """
  x = tf.cast(x, tf.float32)
  if seed is None:
    edge = (IMAGE_SIZE - CROP_SIZE) // 2
    x = x[:, edge : edge + CROP_SIZE, edge : edge + CROP_SIZE]
  else:
    x = _crop_and_flip(x, seed)
  return tf.image.per_image_standardization(x)


@task.presets.register('cifar100')
def preset(quick: bool) -> config_lib.Config:
  """MERGED CODIST on CIFAR-100, the large model on a few of the clients.

  Command: bin/train.py --preset cifar100 --run_dir runs/cifar100
  Measured: small 33.6 %, large 31.0 % (FedAvg 33.5 %, 27.9 %), means of the
  last five evaluations of three seeds, 14 minutes a run on two cores shared
  with other programs; bin/reproduce.py codist_cifar100, docs/results.md.

  The federated part is that of Reddi et al. (client SGD, FedAdam, cohorts and
  batches) with rates of our own; the server's decays after 300 rounds. Of 450
  clients, 68 can run the large model: so few that alone it ends below the small
  one, as in the paper.

  FedAdam multiplies every pseudo-gradient by eta / (sqrt(v) + epsilon): by up
  to 10 before the decay and 3 after it, because the entries of the federated
  one are below epsilon. What this adds to a distillation pseudo-gradient d is
  blind extrapolation. So distillation starts with the decay, goes far in steps
  of its own, and has a weight at which the server takes at most 1.3 of the
  large model's d in a round; `rescale` keeps the federated step whole. Before,
  both models are too young to teach. The large model, which learns its clients
  by heart, listens to the small one; the small one, which does not, has little
  to learn.

  Args:
    quick: Two rounds of two clients, distillation from the first round, in
      place of 500 rounds.
  """
  return config_lib.Config(
    task=config_lib.TaskConfig(name='cifar100'),
    unlabelled=config_lib.UnlabelledConfig(
      clients_fraction=0.1, max_examples=256 if quick else 10000
    ),
    pools=config_lib.PoolsConfig(
      names=('small', 'large'),
      models=('small', 'large'),
      clients_fraction=(1.0, 0.15),
      cohort_size=(2,) if quick else (10,),
    ),
    algorithm=config_lib.AlgorithmConfig(name='merged_codist'),
    client=config_lib.ClientConfig(learning_rate=0.1, epochs=1, batch_size=20),
    server=config_lib.ServerConfig(
      optimizer='fedadam',
      learning_rate=0.01,
      rounds_per_decay=300,
      learning_rate_decay=0.3,
      beta2=0.99,
      epsilon=1e-3,
    ),
    distillation=config_lib.DistillationConfig(batch_size=64, augment=True),
    periodic=config_lib.PeriodicConfig(
      period=1 if quick else 100, steps=5 if quick else 200, learning_rate=1e-3
    ),
    merged=config_lib.MergedConfig(
      distillation_weight=(0.02, 0.3),
      steps=1 if quick else 20,
      learning_rate=1e-3,
      warmup_rounds=0 if quick else 300,
      rescale=True,
    ),
    program=config_lib.ProgramConfig(
      rounds=2 if quick else 500,
      rounds_per_evaluation=2 if quick else 20,
      rounds_per_checkpoint=1 if quick else 10,
      evaluation_clients=4 if quick else None,
    ),
  )


@task.presets.register('cifar100_domains')
def preset_domains(quick: bool) -> config_lib.Config:
  """MERGED CODIST on CIFAR-100 between models of different domains.

  Command:
    bin/train.py --preset cifar100_domains --run_dir runs/cifar100_domains
  Measured: nothing moves outside a model's domain, where both have 0.0 %, as by
  FedAvg. Inside, in round 300, the small model has 19.0 % (FedAvg 20.2 %), the
  large one 35.8 % (39.3 %); one seed, 22 minutes on two cores shared with four
  other runs.

  The small model trains on the animals of all clients, the large one on their
  things, as in the paper's Stack Overflow experiment the small model trains on
  answers and the large one on questions. The distillation data has both, so
  each model can teach the other the classes that the other never sees, although
  it has no good answer to the images of the other's. `match_norm` keeps the
  distillation as large as the federated training; with Adam's usual epsilon
  that would be mostly noise, as every weight then moves equally far.

  Args:
    quick: As for `cifar100`, in place of 300 rounds.
  """
  return config_lib.change(
    preset(quick),
    pools={'clients_fraction': (1.0,), 'domains': DOMAINS},
    server={'rounds_per_decay': None, 'learning_rate_decay': 0.1},
    distillation={'batch_size': 128, 'epsilon': 1e-2, 'augment': False},
    periodic={} if quick else {'period': 50, 'steps': 50},
    merged={
      'distillation_weight': (0.1, 0.1),
      'steps': 1 if quick else 4,
      'learning_rate': 1e-5,
      'warmup_rounds': 0 if quick else 150,
      'match_norm': True,
    },
    program={} if quick else {'rounds': 300},
  )


@task.presets.register('cifar100_out_of_domain')
def preset_out_of_domain(quick: bool) -> config_lib.Config:
  """Preset `cifar100` with the images of CIFAR-10 as distillation data.

  Command: bin/train.py --preset cifar100_out_of_domain --run_dir runs/cifar10
  Measured: small 33.3 %, large 30.0 % (FedAvg 33.3 %, 28.1 %), means of the
  last five evaluations of two seeds; bin/reproduce.py codist_distillation_data,
  docs/results.md.

  CIFAR-10 has other images, of other classes; it is read from a prepared TFDS
  set. The same clients are set aside as in `cifar100`, though not used, so that
  the pools are the same.

  Args:
    quick: As for `cifar100`.
  """
  return config_lib.change(
    preset(quick),
    unlabelled={'sources': ('clients', 'tfds:cifar10'), 'weights': (0.0, 1.0)},
  )


@task.presets.register('cifar100_limited')
def preset_limited(quick: bool) -> config_lib.Config:
  """Preset `cifar100` with 1 % of its distillation data: 50 of 5,000 images.

  Command: bin/train.py --preset cifar100_limited --run_dir runs/limited
  Measured: small 33.6 %, large 23.9 % (FedAvg 33.3 %, 28.1 %), means of the
  last five evaluations of two seeds: too few images for the large model;
  bin/reproduce.py codist_distillation_data, docs/results.md.

  The same clients are set aside as in `cifar100`, so that the pools are the
  same. A batch of 64 passes over the images more than once.

  Args:
    quick: As for `cifar100`.
  """
  return config_lib.change(preset(quick), unlabelled={'max_examples': 50})


@task.presets.register('three_pools')
def preset_three_pools(quick: bool) -> config_lib.Config:
  """MERGED CODIST on CIFAR-100 between three sizes of model.

  Command: bin/train.py --preset three_pools --run_dir runs/three_pools
  Measured: small 33.3 %, medium 33.2 %, large 32.3 % (FedAvg 33.1 %, 32.0 %,
  28.8 %), means of the last five evaluations of one seed, 17 minutes on two
  cores; bin/reproduce.py pools, docs/results.md.

  All clients can run the small model, 30 % the medium and 15 % the large one.
  Each model learns from the mean of the other two.

  Args:
    quick: As for `cifar100`.
  """
  return config_lib.change(
    preset(quick),
    pools={
      'names': ('small', 'medium', 'large'),
      'models': ('small', 'medium', 'large'),
      'clients_fraction': (1.0, 0.3, 0.15),
    },
    merged={'distillation_weight': (0.02, 0.1, 0.3)},
  )


def _to_examples(
  unused_client_id: str, features: Mapping[str, np.ndarray]
) -> clients.Examples:
  return collections.OrderedDict(
    x=features['image'].astype(np.uint8),
    y=features['label'].astype(np.int32),
    domain=_DOMAIN_INDICES[features['coarse_label']],
  )


def _crop_and_flip(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns a random crop of each image, mirrored with probability 1/2."""
  # A row for each image, so that it does not depend on the size of the batch.
  draws = tf.random.stateless_uniform([tf.shape(x)[0], 3], seed)
  offsets = tf.cast(draws[:, :2] * (IMAGE_SIZE - CROP_SIZE + 1), tf.int32)
  span = tf.range(CROP_SIZE)
  rows = offsets[:, :1] + span
  columns = offsets[:, 1:] + tf.where(draws[:, 2:] < 0.5, span[::-1], span)
  # In float32: TensorFlow gathers uint8 on CPU only.
  x = tf.gather(x, rows, axis=1, batch_dims=1)
  return tf.gather(x, columns, axis=2, batch_dims=1)
