"""FedMD's tasks: public and private data, clients, networks and presets.

Most run on random images in small databases of TFF's form and small TFDS sets.
Those on the real data need TFF_CODIST_DATA_DIR and TFDS_DATA_DIR.
"""

import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tensorflow_federated as tff

from tasks import fed_md
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import task

_REAL_DIR = os.environ.get('TFF_CODIST_DATA_DIR', '')
_TFDS_DIR = os.environ.get('TFDS_DATA_DIR', '')
_NUM_PUBLIC = 30
_PRIVATE = list(range(10, 16))
# Coarse labels of the fine ones, in the alphabetical order of both.
_COARSE_LABELS = (
  4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
  6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
  5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
  10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
  16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip
# The superclasses of the authors' code.
_SUPERCLASSES = (0, 1, 7, 9, 12, 18)

# Each writer has a digit, letters of both cases, and a letter that is not one
# of the task's. The last one has too few letters.
_LETTERS = [3, *range(10, 16), *range(36, 42), *range(36, 42), 61]
_WRITERS = {
  'f0001_01': ('all_train', _LETTERS),
  'f0002_02': ('all_train', _LETTERS),
  'f0003_03': ('all_train', [0, 10, 36]),
  'f0004_04': ('all_test', [5, 10, 36, 15, 42]),
  'f0005_05': ('all_test', [41, 9]),
}
_CIFAR_CLIENTS = {
  '0': ('train', list(range(100)) * 2),
  '1': ('train', list(range(100))),
  '2': ('test', list(range(100))),
  '3': ('test', [99, 0]),
}


def _images(client_id, shape, num_images):
  rng = np.random.default_rng(list(client_id.encode()))
  return rng.integers(256, size=(num_images, *shape), dtype=np.uint8)


def _labels_of(data, client_ids, shape):
  """Returns the stored label of each image of some clients, by its bytes."""
  labels_of = {}
  for client_id in client_ids:
    labels = data[client_id][1]
    for x, label in zip(_images(client_id, shape, len(labels)), labels):
      labels_of[x.tobytes()] = label
  return labels_of


def _save(path, data, features_of):
  tff.simulation.datasets.save_to_sql_client_data(
    list(data),
    lambda client_id: tf.data.Dataset.from_tensor_slices(
      features_of(client_id, np.array(data[client_id][1]))
    ),
    str(path),
    split_names_by_client_id={i: split for i, (split, _) in data.items()},
  )


def _store_public(tfds_dir, name, version, shape):
  images = _images(name, shape, _NUM_PUBLIC)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=shape),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
  )
  rows = tf.data.Dataset.from_tensor_slices(
    {'image': images, 'label': np.arange(_NUM_PUBLIC) % 10}
  )
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=version,
    features=features,
    split_datasets={'train': rows},
    data_dir=tfds_dir,
  )


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  """A directory with small data sets under the names of the real ones."""
  folder = tmp_path_factory.mktemp('data')

  def emnist_features(client_id, y):
    x = _images(client_id, (28, 28), len(y))
    return {'label': y, 'pixels': (x / 255).astype(np.float32)}

  def cifar_features(client_id, y):
    x = _images(client_id, (32, 32, 3), len(y))
    coarse = np.array(_COARSE_LABELS)[y]
    return {'image': x, 'label': y, 'coarse_label': coarse}

  digits = {
    'f0006_06': ('digits_only_train', [1]),
    'f0007_07': ('digits_only_test', [1]),
  }
  _save(folder / 'emnist_all.sqlite', {**_WRITERS, **digits}, emnist_features)
  _save(folder / 'cifar100.sqlite', _CIFAR_CLIENTS, cifar_features)
  _store_public(folder, 'mnist', '3.0.1', (28, 28, 1))
  _store_public(folder, 'cifar10', '3.0.2', (32, 32, 3))
  return folder


@pytest.fixture(name='load')
def _load(data_dir, monkeypatch):
  """Loads a task from the small data sets."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))

  def load(name, seed=1, **fields):
    config = config_lib.Config(
      task=config_lib.TaskConfig(name=name, data_dir=str(data_dir)),
      public_private=config_lib.PublicPrivateConfig(**fields),
      seed=seed,
    )
    return task.tasks[name](config)

  return load


def _examples(data):
  return [data.load(client_id) for client_id in data.client_ids]


def _rows(x):
  return {image.tobytes() for image in x}


@pytest.mark.parametrize(
  'name, shape',
  [('mnist_letters', (28, 28, 1)), ('cifar_subclasses', (32, 32, 3))],
)
def test_everybody_has_the_public_data(load, name, shape):
  loaded = load(name, clients=1, examples_per_class=1)
  assert loaded.name == name
  assert loaded.num_classes == 16
  public = loaded.public
  assert list(public) == ['x', 'y']
  assert public['x'].shape == (_NUM_PUBLIC, *shape)
  assert (public['x'].dtype, public['y'].dtype) == (np.uint8, np.int32)
  np.testing.assert_array_equal(np.bincount(public['y']), [3] * 10)
  # The training images of the TFDS set, ink and ground as in EMNIST.
  stored = _images('mnist' if shape[-1] == 1 else 'cifar10', shape, _NUM_PUBLIC)
  expected = 255 - stored if shape[-1] == 1 else stored
  assert _rows(public['x']) == _rows(expected)
  few = load(name, clients=1, examples_per_class=1, public_examples=7)
  np.testing.assert_array_equal(few.public['x'], public['x'][:7])


def test_inputs_are_centred_by_the_public_mean(load):
  loaded = load('cifar_subclasses', clients=1, examples_per_class=1)
  inputs = loaded.preprocess(tf.constant(loaded.public['x']))
  assert inputs.dtype == tf.float32
  np.testing.assert_allclose(np.mean(inputs, axis=0), 0, atol=1e-5)
  difference = inputs[0] - inputs[1]
  stored = loaded.public['x'][:2].astype(np.float32) / 255
  np.testing.assert_allclose(difference, stored[0] - stored[1], atol=1e-6)
  seeded = loaded.preprocess(tf.constant(loaded.public['x']), [1, 2])
  np.testing.assert_array_equal(inputs, seeded)


@pytest.mark.parametrize('name', ['mnist_letters', 'cifar_subclasses'])
def test_iid_clients_have_all_classes_and_own_images(load, name):
  loaded = load(name, clients=2, examples_per_class=1)
  assert loaded.train.client_ids == ('client_0000', 'client_0001')
  images = set()
  for examples in _examples(loaded.train):
    assert list(examples) == ['x', 'y']
    assert (examples['x'].dtype, examples['y'].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(examples['y'], _PRIVATE)
    images |= _rows(examples['x'])
  assert len(images) == 2 * 6
  # The order of the data set's few clients may be that of another seed.
  others = (
    load(name, clients=2, examples_per_class=1, seed=seed).train
    for seed in range(2, 20)
  )
  assert any(
    images != set().union(*(_rows(e['x']) for e in _examples(other)))
    for other in others
  )


def test_private_images_are_those_of_the_data_set(load):
  """Image by image, the class is that of the database."""
  loaded = load('mnist_letters', clients=2, examples_per_class=2)
  label_of = _labels_of(_WRITERS, _WRITERS, (28, 28, 1))
  for examples in _examples(loaded.train):
    np.testing.assert_array_equal(examples['y'], np.repeat(_PRIVATE, 2))
    for x, y in zip(examples['x'], examples['y']):
      # A and a, B and b, ...
      assert label_of[x.tobytes()] in (y, y + 26)


def test_writers_of_enough_letters_are_clients(load):
  loaded = load('mnist_letters', clients=2, split='non_iid')
  assert loaded.train.client_ids == ('f0001_01', 'f0002_02')
  for client_id in loaded.train.client_ids:
    examples = loaded.train.load(client_id)
    np.testing.assert_array_equal(np.bincount(examples['y'])[10:], [3] * 6)
    expected = _images(client_id, (28, 28, 1), len(_LETTERS))[1:-1]
    np.testing.assert_array_equal(examples['x'], expected)
  one = load('mnist_letters', clients=1, split='non_iid').train.client_ids
  assert set(one) < set(loaded.train.client_ids)


def test_iid_subclasses_are_those_of_the_paper(load):
  loaded = load('cifar_subclasses', clients=1, examples_per_class=3)
  (examples,) = _examples(loaded.train)
  fine = dict(zip((0, 2, 20, 63, 71, 82), _PRIVATE))
  images = {
    image: fine[label]
    for image, label in _labels_of(_CIFAR_CLIENTS, '01', (32, 32, 3)).items()
    if label in fine
  }
  found = {x.tobytes(): y for x, y in zip(examples['x'], examples['y'])}
  assert found == images


def test_non_iid_clients_have_one_subclass_of_each_superclass(load):
  loaded = load(
    'cifar_subclasses', clients=3, examples_per_class=1, split='non_iid'
  )
  fine = _labels_of(_CIFAR_CLIENTS, '01', (32, 32, 3))
  chosen = set()
  for examples in _examples(loaded.train):
    np.testing.assert_array_equal(examples['y'], _PRIVATE)
    labels = tuple(fine[x.tobytes()] for x in examples['x'])
    assert tuple(_COARSE_LABELS[y] for y in labels) == _SUPERCLASSES
    chosen.add(labels)
  assert len(chosen) > 1


def test_all_clients_are_tested_on_one_set(load):
  letters = load('mnist_letters', clients=1, examples_per_class=1).test
  assert letters.client_ids == ('test',)
  # A, a, F of one writer, f of the other.
  assert letters.load('test')['y'].tolist() == [10, 10, 15, 15]
  iid = load('cifar_subclasses', clients=1, examples_per_class=1).test
  np.testing.assert_array_equal(iid.load('test')['y'], [*_PRIVATE, 10])
  non_iid = load(
    'cifar_subclasses', clients=1, examples_per_class=1, split='non_iid'
  ).test.load('test')
  np.testing.assert_array_equal(np.bincount(non_iid['y'])[10:], [5] * 6)
  expected = [
    10 + _SUPERCLASSES.index(coarse)
    for coarse in _COARSE_LABELS
    if coarse in _SUPERCLASSES
  ]
  np.testing.assert_array_equal(non_iid['y'], expected)


@pytest.mark.parametrize(
  'name, fields',
  [
    ('mnist_letters', {'clients': 2, 'examples_per_class': 2}),
    ('mnist_letters', {'clients': 2, 'split': 'non_iid'}),
    ('cifar_subclasses', {'clients': 2, 'examples_per_class': 1}),
  ],
)
def test_pooled_client_has_the_data_of_all(load, name, fields):
  clients = _examples(load(name, **fields).train)
  (pooled,) = _examples(load(name, pooled=True, **fields).train)
  for field in ('x', 'y'):
    np.testing.assert_array_equal(
      pooled[field], np.concatenate([examples[field] for examples in clients])
    )


@pytest.mark.parametrize(
  'name, fields, message',
  [
    ('mnist_letters', {'clients': 40}, '682 private examples too few'),
    ('mnist_letters', {'clients': 3, 'split': 'non_iid'}, '2 writers of 18'),
    ('cifar_subclasses', {'clients': 2}, '18 private examples too few'),
  ],
)
def test_too_little_private_data_is_a_data_error(load, name, fields, message):
  with pytest.raises(errors.DataError, match=message):
    load(name, **fields)


def test_writers_have_what_they_wrote(load):
  with pytest.raises(errors.ConfigError, match='examples_per_class 2 with'):
    load('mnist_letters', clients=1, split='non_iid', examples_per_class=2)


def test_public_data_that_is_not_there(load, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(errors.DataNotFoundError, match='no prepared TFDS set'):
    load('cifar_subclasses', clients=1, examples_per_class=1)


def test_damaged_public_data(load, data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  _store_public(tmp_path, 'mnist', '3.0.1', (28, 28, 1))
  (record,) = tmp_path.glob('mnist/*/*.tfrecord*')
  record.write_bytes(record.read_bytes()[:-5])
  with pytest.raises(errors.DataError, match='a damaged TFDS set'):
    load('mnist_letters', clients=1, examples_per_class=1)


@pytest.mark.parametrize(
  'shape, widths, expected',
  [
    # With the moving statistics of batch normalisation, twice the channels,
    # these are the 990,208 and 1,221,888 of the authors' networks.
    ((28, 28, 1), (128, 256), 990_208 - 2 * (128 + 256)),
    ((32, 32, 3), (128, 256), 1_221_888 - 2 * (128 + 256)),
    # Convolutions 3x3x1x64, 2x2x64x128, 3x3x128x192 with biases; normalisation;
    # 3 x 3 x 192 features, 16 classes.
    (
      (28, 28, 1),
      (64, 128, 192),
      (640 + 32_896 + 221_376) + 2 * (64 + 128 + 192) + 1_728 * 16,
    ),
    # The fourth convolution leaves 2 x 2.
    (
      (32, 32, 3),
      (64, 64, 64, 64),
      (1_792 + 16_448 + 36_928 + 36_928) + 2 * 4 * 64 + 256 * 16,
    ),
  ],
)
def test_networks_have_the_sizes_of_the_authors(shape, widths, expected):
  model = models.Model('cnn', lambda: fed_md.cnn(shape, 16, widths=widths))
  assert model.num_parameters == expected
  assert model.input_shape == shape
  assert model.num_classes == 16


def test_there_are_ten_networks(load):
  sizes = {}
  for name in ('mnist_letters', 'cifar_subclasses'):
    loaded = load(name, clients=1, examples_per_class=1)
    assert list(loaded.models) == [f'net_{i}' for i in range(10)]
    built = [models.Model(n, build) for n, build in loaded.models.items()]
    assert {m.num_classes for m in built} == {16}
    sizes[name] = [m.num_parameters for m in built]
    assert len(set(sizes[name])) == 10
  # The first is the same, the second of MNIST is that with 384 channels.
  assert sizes['mnist_letters'][0] == 989_440


def _needs(database, public):
  """Skips a test where the data are not there."""
  return pytest.mark.skipif(
    not os.path.exists(os.path.join(_REAL_DIR, database))
    or not os.path.exists(os.path.join(_TFDS_DIR, public)),
    reason=f'no {database} in TFF_CODIST_DATA_DIR or {public} in TFDS_DATA_DIR',
  )


def _load_real(name, **fields):
  return task.tasks[name](
    config_lib.Config(
      task=config_lib.TaskConfig(name=name),
      public_private=config_lib.PublicPrivateConfig(**fields),
    )
  )


@_needs('emnist_all.sqlite', 'mnist')
@pytest.mark.parametrize('split, num_clients', [('iid', 10), ('non_iid', 2)])
def test_real_digits_and_letters_have_the_same_ground(split, num_clients):
  loaded = _load_real(
    'mnist_letters', clients=num_clients, split=split, public_examples=500
  )
  assert len(loaded.train.client_ids) == num_clients
  for examples in _examples(loaded.train):
    assert len(examples['y']) >= 18
    assert set(examples['y']) <= set(_PRIVATE)
  for x in (loaded.public['x'], loaded.test.load('test')['x']):
    assert (x == 255).mean() > 0.5


@_needs('cifar100.sqlite', 'cifar10')
@pytest.mark.parametrize('split, per_class', [('iid', 3), ('non_iid', 20)])
def test_real_images_are_enough(split, per_class):
  loaded = _load_real(
    'cifar_subclasses',
    split=split,
    examples_per_class=per_class,
    public_examples=100,
  )
  for examples in _examples(loaded.train):
    np.testing.assert_array_equal(examples['y'], np.repeat(_PRIVATE, per_class))
  # Each fine class has as many test images as any other.
  test = np.bincount(loaded.test.load('test')['y'])[10:]
  subclasses = 1 if split == 'iid' else 5
  np.testing.assert_array_equal(test, [test[0]] * 6)
  assert 50 * subclasses < test[0] <= 100 * subclasses
