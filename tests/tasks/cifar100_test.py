"""Tests for CIFAR-100: preprocessing, reading, and data that is not there.

Most run on random images in a small database of TFF's form. Those on the real
data need TFF_CODIST_DATA_DIR.
"""

import functools
import io
import lzma
import os
import sqlite3
import urllib.error
import urllib.request

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

_CLIENTS = {('train', '0'): 3, ('train', '1'): 2, ('test', '0'): 4}


def _load(data_dir):
  return task.tasks['cifar100'](
    config_lib.TaskConfig(data_dir=str(data_dir)), 1
  )


def _random_images(num_images, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(256, size=(num_images, 32, 32, 3), dtype=np.uint8)


def _serialize(image, label):
  def feature(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

  return tf.train.Example(
    features=tf.train.Features(
      feature={
        'coarse_label': feature([label // 5]),
        'image': feature(image.ravel()),
        'label': feature([label]),
      }
    )
  ).SerializeToString()


@pytest.fixture(name='database')
def _database(tmp_path):
  """A database of TFF's form with three clients; returns its path."""
  path = tmp_path / _FILE_NAME
  with sqlite3.connect(path) as connection:
    connection.execute(
      'CREATE TABLE examples (split_name TEXT NOT NULL, '
      'client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL)'
    )
    connection.execute(
      'CREATE TABLE client_metadata (client_id TEXT NOT NULL, '
      'split_name TEXT NOT NULL, num_examples INTEGER NOT NULL)'
    )
    for seed, ((split, client_id), num_examples) in enumerate(_CLIENTS.items()):
      connection.execute(
        'INSERT INTO client_metadata VALUES (?, ?, ?)',
        (client_id, split, num_examples),
      )
      for i, image in enumerate(_random_images(num_examples, seed)):
        connection.execute(
          'INSERT INTO examples VALUES (?, ?, ?)',
          (split, client_id, _serialize(image, 10 * seed + i)),
        )
  connection.close()
  return path


def _edit(path, statement):
  with sqlite3.connect(path) as connection:
    connection.execute(statement)
  connection.close()


def _serve(monkeypatch, body):
  """Makes every address answer with `body`."""

  def open_url(*unused_args, **unused_kwargs):
    response = io.BytesIO(body)
    response.headers = {'content-length': str(len(body))}
    return response

  monkeypatch.setattr(urllib.request, 'urlopen', open_url)


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


def test_small_and_large_model_take_the_crop_and_know_all_classes(database):
  loaded = _load(database.parent)
  sizes = {}
  for name in ('small', 'large', 'resnet20'):
    model = models.Model(name, loaded.models[name])
    assert model.input_shape == (24, 24, 3)
    assert model.num_classes == loaded.num_classes == 100
    sizes[name] = model.num_parameters
  assert sizes['small'] == 327_332
  assert sizes['large'] == 979_876
  assert 'resnet18' in loaded.models


def test_clients_hold_the_images_of_the_database(database):
  loaded = _load(database.parent)
  assert loaded.train.client_ids == ('0', '1')
  assert loaded.test.client_ids == ('0',)
  for seed, ((split, client_id), num_examples) in enumerate(_CLIENTS.items()):
    examples = getattr(loaded, split).load(client_id)
    assert list(examples) == ['x', 'y']
    assert examples['x'].dtype == np.uint8
    assert examples['y'].dtype == np.int32
    np.testing.assert_array_equal(
      examples['x'], _random_images(num_examples, seed)
    )
    np.testing.assert_array_equal(
      examples['y'], 10 * seed + np.arange(num_examples)
    )


def test_data_directory_comes_from_the_environment(database, monkeypatch):
  monkeypatch.setenv('TFF_CODIST_DATA_DIR', str(database.parent))
  loaded = task.tasks['cifar100'](config_lib.TaskConfig(), 1)
  assert loaded.train.client_ids == ('0', '1')


def test_missing_file_without_network_says_what_to_do(tmp_path, monkeypatch):
  def open_url(*unused_args, **unused_kwargs):
    raise urllib.error.URLError('Name or service not known')

  monkeypatch.setattr(urllib.request, 'urlopen', open_url)
  data_dir = tmp_path / 'data'
  with pytest.raises(errors.DataNotFoundError) as caught:
    _load(data_dir)
  for part in (
    str(data_dir / _FILE_NAME),
    'Name or service not known',
    'GB',
    'https://',
    'cifar100.sqlite.lzma',
    '--task.data_dir',
  ):
    assert part in str(caught.value)
  assert not data_dir.exists()


def test_missing_file_is_downloaded(database, tmp_path, monkeypatch):
  _serve(monkeypatch, lzma.compress(database.read_bytes()))
  data_dir = tmp_path / 'new' / 'data'
  assert _load(data_dir).train.client_ids == ('0', '1')
  assert os.listdir(data_dir) == [_FILE_NAME]


@pytest.mark.parametrize('share', [0.0, 0.5, 0.95])
def test_interrupted_download_leaves_nothing(
  database, tmp_path, monkeypatch, share
):
  body = lzma.compress(database.read_bytes())
  _serve(monkeypatch, body[: int(share * len(body))])
  with pytest.raises(errors.DataNotFoundError, match='no way to download'):
    _load(tmp_path / 'data')
  assert not os.listdir(tmp_path / 'data')


@pytest.mark.parametrize('size', [0, 50, 5000, 30_000, -1])
def test_truncated_file_is_a_data_error(database, size):
  os.truncate(database, size if size >= 0 else os.path.getsize(database) - 1)
  with pytest.raises(errors.DataError, match='damaged file'):
    _load(database.parent)


@pytest.mark.parametrize(
  'statement',
  [
    'DELETE FROM examples WHERE rowid = 1',
    "DELETE FROM client_metadata WHERE client_id = '1'",
    "UPDATE examples SET split_name = 'other'",
    'DROP TABLE client_metadata',
  ],
)
def test_incomplete_database_is_a_data_error(database, statement):
  _edit(database, statement)
  with pytest.raises(errors.DataError, match='damaged file'):
    _load(database.parent)


def test_damaged_example_is_a_data_error_that_names_the_client(database):
  _edit(
    database,
    "UPDATE examples SET serialized_example_proto = x'0a05ff' "
    "WHERE split_name = 'train' AND client_id = '1'",
  )
  loaded = _load(database.parent)
  loaded.train.load('0')
  with pytest.raises(errors.DataError, match="train client '1'"):
    loaded.train.load('1')


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
