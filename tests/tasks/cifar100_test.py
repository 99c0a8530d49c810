"""CIFAR-100: preprocessing, models, clients, domains and presets.

Most run on random images in a small database of TFF's form. Those on the real
data need TFF_CODIST_DATA_DIR.
"""

import functools
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tasks  # noqa: F401 - registers the tasks.
from tasks import cifar100
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import task

_FILE_NAME = 'cifar100.sqlite'
_REAL_DIR = os.environ.get('TFF_CODIST_DATA_DIR', '')
_real_data = pytest.mark.skipif(
  not os.path.exists(os.path.join(_REAL_DIR, _FILE_NAME)),
  reason=f'TFF_CODIST_DATA_DIR names no directory with {_FILE_NAME}',
)

# The 20 coarse labels of the 100 fine ones, as the authors of the data set give
# them (fine_label_names and coarse_label_names are both in alphabetical order).
_COARSE_LABELS = (
  4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
  6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
  5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
  10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
  16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip
_ANIMALS = {0, 1, 7, 8, 11, 12, 13, 14, 15, 16}

# {split: {client id: its labels}}
_CLIENTS = {
  'train': {'0': [3, 0, 99], '1': [51, 53]},
  'test': {'2': [20, 21, 22, 23]},
}


def _load(data_dir):
  config = config_lib.Config(task=config_lib.TaskConfig(data_dir=str(data_dir)))
  return task.tasks['cifar100'](config)


def _random_images(num_images, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(256, size=(num_images, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  """A directory with a database of three clients, written by TFF."""
  path = tmp_path_factory.mktemp('data') / _FILE_NAME
  labels = {c: y for split in _CLIENTS.values() for c, y in split.items()}
  tff.simulation.datasets.save_to_sql_client_data(
    list(labels),
    lambda client_id: tf.data.Dataset.from_tensor_slices(
      {
        'coarse_label': np.array(_COARSE_LABELS)[labels[client_id]],
        'image': _random_images(len(labels[client_id]), int(client_id)),
        'label': labels[client_id],
      }
    ),
    str(path),
    split_names_by_client_id={
      client_id: split for split, ids in _CLIENTS.items() for client_id in ids
    },
  )
  return path.parent


def _standardize(images):
  """Returns images `[..., height, width, 3]` of mean 0 and variance 1."""
  images = images.astype(np.float64)
  axes = (-3, -2, -1)
  mean = images.mean(axis=axes, keepdims=True)
  return (images - mean) / images.std(axis=axes, keepdims=True)


@functools.cache
def _find_augmentation(num_images=200):
  """Finds out what preprocessing did to random images, by trying everything.

  Returns:
    For each image its top and left offset and whether it was flipped,
    `[images, 3]`.
  """
  images = _random_images(num_images)
  results = cifar100.preprocess(
    tf.constant(images), tf.constant([3, 4])
  ).numpy()
  found = []
  for image, result in zip(images, results):
    windows = np.lib.stride_tricks.sliding_window_view(image, (24, 24), (0, 1))
    crops = np.moveaxis(windows, 2, -1)  # [9, 9, 24, 24, 3]
    candidates = _standardize(np.stack([crops, crops[..., ::-1, :]], axis=2))
    distances = np.abs(candidates - result).max(axis=(-3, -2, -1))
    matches = np.argwhere(distances < 1e-4)
    assert len(matches) == 1
    found.append(matches[0])
  return np.array(found)


def test_training_image_is_one_standardized_crop_perhaps_flipped():
  # Every image matches exactly one of the 9 * 9 * 2 references.
  assert _find_augmentation().shape == (200, 3)


def test_every_offset_occurs():
  # The seed is fixed. A sound generator would miss an offset with probability
  # 2 * 9 * (8 / 9)**200 < 2e-9.
  top, left, _ = _find_augmentation().T
  assert set(top) == set(left) == set(range(9))


def test_about_half_of_the_images_are_flipped():
  # 200 fair coins: outside six standard deviations with probability 2e-9.
  flipped = _find_augmentation()[:, 2].sum()
  assert abs(flipped - 100) < 6 * np.sqrt(200 * 0.25)


def test_images_of_a_batch_are_augmented_differently():
  # 200 draws out of 162 leave at least 80 different ones but for 1e-9.
  assert len(set(map(tuple, _find_augmentation()))) > 80


def test_evaluation_takes_the_central_crop():
  images = _random_images(5)
  np.testing.assert_allclose(
    cifar100.preprocess(tf.constant(images)),
    _standardize(images[:, 4:28, 4:28]),
    atol=1e-5,
  )


def test_augmentation_is_a_function_of_the_seed():
  images = tf.constant(_random_images(20))
  preprocess = tf.function(cifar100.preprocess)
  first = cifar100.preprocess(images, tf.constant([1, 2]))
  np.testing.assert_allclose(
    preprocess(images, tf.constant([1, 2])), first, atol=1e-5
  )
  assert np.abs(preprocess(images, tf.constant([1, 3])) - first).max() > 0.1


def test_augmentation_of_an_image_does_not_depend_on_the_batch_size():
  images, seed = tf.constant(_random_images(20)), tf.constant([1, 2])
  np.testing.assert_array_equal(
    cifar100.preprocess(images[:7], seed),
    cifar100.preprocess(images, seed)[:7],
  )


@pytest.mark.parametrize('seed', [None, (1, 2)])
def test_preprocess_handles_an_empty_batch_and_an_image_of_one_color(seed):
  seed = seed and tf.constant(seed)
  empty = cifar100.preprocess(tf.zeros([0, 32, 32, 3], tf.uint8), seed)
  assert empty.shape == (0, 24, 24, 3)
  plain = cifar100.preprocess(tf.fill([1, 32, 32, 3], tf.constant(7, tf.uint8)))
  np.testing.assert_array_equal(plain, np.zeros([1, 24, 24, 3]))


def test_models_take_the_crop_and_know_all_classes(data_dir):
  loaded = _load(data_dir)
  sizes = {}
  for name in ('small', 'medium', 'large', 'resnet20'):
    model = models.Model(name, loaded.models[name])
    assert model.input_shape == (24, 24, 3)
    assert model.num_classes == loaded.num_classes == 100
    sizes[name] = model.num_parameters
  assert sizes == {
    'small': 327_332,
    'medium': 612_132,
    'large': 979_876,
    'resnet20': 278_132,
  }
  assert 'resnet18' in loaded.models


@pytest.mark.parametrize('split', ['train', 'test'])
def test_clients_hold_the_images_of_the_database(data_dir, split):
  data = getattr(_load(data_dir), split)
  assert data.client_ids == tuple(sorted(_CLIENTS[split]))
  for client_id, labels in _CLIENTS[split].items():
    examples = data.load(client_id)
    assert list(examples) == ['x', 'y', 'domain']
    assert examples['x'].dtype == np.uint8
    assert examples['y'].dtype == examples['domain'].dtype == np.int32
    np.testing.assert_array_equal(
      examples['x'], _random_images(len(labels), int(client_id))
    )
    np.testing.assert_array_equal(examples['y'], labels)


def test_domains_are_animals_and_things(data_dir):
  loaded = _load(data_dir)
  assert loaded.domains == ('animals', 'things')
  # bear, apple, worm; mushroom, orange; chair, chimpanzee, clock, cloud.
  assert loaded.train.load('0')['domain'].tolist() == [0, 1, 0]
  assert loaded.train.load('1')['domain'].tolist() == [1, 1]
  assert loaded.test.load('2')['domain'].tolist() == [1, 0, 1, 1]


def test_images_of_other_sets_and_noise_are_inputs(data_dir):
  loaded = _load(data_dir)
  images = _random_images(2)
  np.testing.assert_array_equal(loaded.foreign.convert(list(images)), images)
  noise = loaded.foreign.noise(np.random.default_rng(0), 3)
  assert noise.shape == (3, 32, 32, 3)
  assert noise.dtype == np.uint8
  assert 'cifar100' in loaded.own_datasets


def test_missing_client_is_a_data_error(data_dir):
  with pytest.raises(errors.DataError, match="client id '2'"):
    _load(data_dir).train.load('2')


@pytest.mark.parametrize('quick', [True, False])
@pytest.mark.parametrize(
  'name',
  [
    'cifar100',
    'cifar100_domains',
    'cifar100_out_of_domain',
    'cifar100_limited',
    'three_pools',
  ],
)
def test_presets_name_models_and_domains_of_the_task(data_dir, name, quick):
  config = task.presets[name](quick)
  loaded = _load(data_dir)
  assert config.task.name == 'cifar100'
  assert set(config.pools.models) <= set(loaded.models)
  assert set(config.pools.domains) <= {'all', *loaded.domains}
  assert config.program.rounds == 2 or not quick


def test_presets_differ_where_they_should():
  base = task.presets['cifar100'](False)

  def differences(name):
    return set(config_lib.differences(base, task.presets[name](False)))

  assert differences('cifar100_domains') == {
    'pools.clients_fraction',
    'pools.domains',
    'server.rounds_per_decay',
    'server.learning_rate_decay',
    'distillation.batch_size',
    'distillation.augment',
    'distillation.epsilon',
    'periodic.period',
    'periodic.steps',
    'merged.distillation_weight',
    'merged.steps',
    'merged.learning_rate',
    'merged.match_norm',
    'merged.warmup_rounds',
    'program.rounds',
  }
  assert differences('cifar100_out_of_domain') == {
    'unlabelled.sources',
    'unlabelled.weights',
  }
  assert differences('cifar100_limited') == {'unlabelled.max_examples'}
  assert differences('three_pools') == {
    'pools.names',
    'pools.models',
    'pools.clients_fraction',
    'merged.distillation_weight',
  }


@_real_data
def test_real_training_clients_have_100_images_of_100_classes():
  train = _load(_REAL_DIR).train
  assert len(train.client_ids) == 500
  labels = set()
  for client_id in train.client_ids:
    examples = train.load(client_id)
    assert examples['x'].shape == (100, 32, 32, 3)
    assert examples['x'].dtype == np.uint8
    assert examples['y'].shape == (100,)
    labels.update(examples['y'])
    np.testing.assert_array_equal(
      examples['domain'],
      [_COARSE_LABELS[y] not in _ANIMALS for y in examples['y']],
    )
  assert labels == set(range(100))


@_real_data
def test_real_clients_are_those_of_tff():
  loaded = _load(_REAL_DIR)
  reference = tff.simulation.datasets.cifar100.load_data(cache_dir=_REAL_DIR)
  for data, expected in zip((loaded.train, loaded.test), reference):
    assert data.client_ids == tuple(expected.client_ids)
    for client_id in expected.client_ids[::40]:
      dataset = expected.create_tf_dataset_for_client(client_id).batch(1000)
      batch = next(dataset.as_numpy_iterator())
      examples = data.load(client_id)
      np.testing.assert_array_equal(examples['x'], batch['image'])
      np.testing.assert_array_equal(examples['y'], batch['label'])


@_real_data
def test_real_file_cut_after_a_megabyte_is_a_data_error(tmp_path):
  with open(os.path.join(_REAL_DIR, _FILE_NAME), 'rb') as source:
    (tmp_path / _FILE_NAME).write_bytes(source.read(2**20))
  with pytest.raises(errors.DataError, match='damaged file'):
    _load(tmp_path)
