"""EMNIST: preprocessing, models, writers, domains and presets.

Most run on random images in a small database of TFF's form. Those on the real
data need TFF_CODIST_DATA_DIR.
"""

import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tasks  # noqa: F401 - registers the tasks.
from tasks import emnist
from tff_codist import config as config_lib
from tff_codist import models
from tff_codist import task
from tff_codist import unlabelled

_FILE_NAME = 'emnist_all.sqlite'
_REAL_DIR = os.environ.get('TFF_CODIST_DATA_DIR', '')
_real_data = pytest.mark.skipif(
  not os.path.exists(os.path.join(_REAL_DIR, _FILE_NAME)),
  reason=f'TFF_CODIST_DATA_DIR names no directory with {_FILE_NAME}',
)

# {client id: (split, labels)}: the last two employees, the first and the last
# student.
_CLIENTS = {
  'f2099_20': ('all_train', [0, 61]),
  'f2100_76': ('all_test', [10]),
  'f2599_99': ('digits_only_train', [9, 0, 3]),
  'f3100_00': ('digits_only_test', [1]),
}


def _load(name, data_dir):
  config = config_lib.Config(
    task=config_lib.TaskConfig(name=name, data_dir=str(data_dir))
  )
  return task.tasks[name](config)


def _random_images(client_id):
  rng = np.random.default_rng(int(client_id[1:5]))
  num_images = len(_CLIENTS[client_id][1])
  return rng.integers(256, size=(num_images, 28, 28), dtype=np.uint8)


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  """A directory with a database of four writers, written by TFF."""
  path = tmp_path_factory.mktemp('data') / _FILE_NAME
  tff.simulation.datasets.save_to_sql_client_data(
    list(_CLIENTS),
    lambda client_id: tf.data.Dataset.from_tensor_slices(
      {
        'label': _CLIENTS[client_id][1],
        'pixels': (_random_images(client_id) / 255).astype(np.float32),
      }
    ),
    str(path),
    split_names_by_client_id={i: split for i, (split, _) in _CLIENTS.items()},
  )
  return path.parent


def test_preprocess_gives_exactly_the_floats_of_the_file():
  x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  found = emnist.preprocess(tf.constant(x), tf.constant([1, 2]))
  assert found.dtype == tf.float32
  np.testing.assert_array_equal(found, (x / 255).astype(np.float32))
  np.testing.assert_array_equal(found, emnist.preprocess(tf.constant(x)))
  in_graph = tf.function(emnist.preprocess)(tf.constant(x))
  np.testing.assert_allclose(in_graph, found, rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'train', 'test', 'num_classes'),
  [
    ('emnist', 'f2099_20', 'f2100_76', 62),
    ('emnist_digits', 'f2599_99', 'f3100_00', 10),
  ],
)
def test_clients_hold_the_images_of_the_database(
  data_dir, name, train, test, num_classes
):
  loaded = _load(name, data_dir)
  assert loaded.name == name
  assert loaded.num_classes == num_classes
  for data, client_id in ((loaded.train, train), (loaded.test, test)):
    assert data.client_ids == (client_id,)
    examples = data.load(client_id)
    assert list(examples) == ['x', 'y', 'domain']
    assert examples['x'].dtype == np.uint8
    assert examples['y'].dtype == examples['domain'].dtype == np.int32
    np.testing.assert_array_equal(
      examples['x'], _random_images(client_id)[..., np.newaxis]
    )
    np.testing.assert_array_equal(examples['y'], _CLIENTS[client_id][1])


def test_writers_2100_to_2599_are_students(data_dir):
  everything = _load('emnist', data_dir)
  digits = _load('emnist_digits', data_dir)
  assert everything.domains == digits.domains == ('census', 'students')
  assert everything.train.load('f2099_20')['domain'].tolist() == [0, 0]
  assert everything.test.load('f2100_76')['domain'].tolist() == [1]
  assert digits.train.load('f2599_99')['domain'].tolist() == [1, 1, 1]
  assert digits.test.load('f3100_00')['domain'].tolist() == [0]


@pytest.mark.parametrize(
  ('task_name', 'expected'),
  [
    (
      'emnist',
      {
        'small': 109_246,
        'medium': 428_350,
        'large': 1_290_878,
        '2nn_small': 58_430,
        # McMahan et al.'s networks.
        '2nn': 209_662,
        'fedavg_cnn': 1_690_046,
      },
    ),
    (
      'emnist_digits',
      {
        'small': 105_866,
        'medium': 421_642,
        'large': 1_280_842,
        '2nn_small': 55_050,
        '2nn': 199_210,
        'fedavg_cnn': 1_663_370,
      },
    ),
  ],
)
def test_models_have_the_promised_sizes(data_dir, task_name, expected):
  loaded = _load(task_name, data_dir)
  built = {n: models.Model(n, build) for n, build in loaded.models.items()}
  assert {n: m.num_parameters for n, m in built.items()} == expected
  assert {m.num_classes for m in built.values()} == {loaded.num_classes}
  assert {m.input_shape for m in built.values()} == {(28, 28, 1)}


def test_images_of_other_sets_are_inverted(data_dir):
  loaded = _load('emnist', data_dir)
  # Background 0 and ink 255 there; background 255 and ink 0 here.
  image = np.zeros((28, 28, 1), np.uint8)
  image[3, 4] = 255
  np.testing.assert_array_equal(loaded.foreign.convert([image])[0], 255 - image)
  assert loaded.own_datasets == ('emnist',)


@pytest.mark.parametrize('quick', [True, False])
@pytest.mark.parametrize(
  'name', ['emnist', 'emnist_domains', 'emnist_three_pools']
)
def test_presets_name_models_and_domains_of_the_task(data_dir, name, quick):
  config = task.presets[name](quick)
  loaded = _load('emnist', data_dir)
  assert config.task.name == 'emnist'
  assert set(config.pools.models) <= set(loaded.models)
  assert set(config.pools.domains) <= {'all', *loaded.domains}
  assert config.program.rounds == (2 if quick else 100)


@_real_data
@pytest.mark.parametrize(
  ('name', 'only_digits', 'num_classes'),
  [('emnist', False, 62), ('emnist_digits', True, 10)],
)
def test_real_clients_are_those_of_tff(name, only_digits, num_classes):
  loaded = _load(name, _REAL_DIR)
  reference = tff.simulation.datasets.emnist.load_data(
    only_digits=only_digits, cache_dir=_REAL_DIR
  )
  for data, expected in zip((loaded.train, loaded.test), reference):
    assert data.client_ids == tuple(expected.client_ids)
    for client_id in expected.client_ids[::90]:
      dataset = expected.create_tf_dataset_for_client(client_id).batch(1000)
      batch = next(dataset.as_numpy_iterator())
      examples = data.load(client_id)
      np.testing.assert_array_equal(
        emnist.preprocess(examples['x'])[..., 0], batch['pixels']
      )
      np.testing.assert_array_equal(examples['y'], batch['label'])
      assert examples['y'].max() < num_classes


@_real_data
@pytest.mark.parametrize('name', ['emnist', 'emnist_digits'])
def test_real_writers_are_in_both_splits_and_both_domains(name):
  loaded = _load(name, _REAL_DIR)
  assert loaded.train.client_ids == loaded.test.client_ids
  domains = set()
  for client_id in loaded.test.client_ids:
    (domain,) = set(loaded.test.load(client_id)['domain'])
    # The students' forms have the numbers from 50 on.
    assert domain == (int(client_id[-2:]) >= 50)
    domains.add(domain)
  assert domains == {0, 1}


@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
@_real_data
def test_real_images_of_other_sets_look_like_emnist(name):
  tfds_dir = os.environ.get('TFDS_DATA_DIR', '')
  if not os.path.exists(os.path.join(tfds_dir, name)):
    pytest.skip(f'TFDS_DATA_DIR names no directory with {name}')
  loaded = _load('emnist', _REAL_DIR)
  u = unlabelled.build_unlabelled(
    loaded,
    config_lib.UnlabelledConfig(sources=(f'tfds:{name}',), max_examples=100),
    client_ids=(),
    seed=1,
  )
  assert u.x.shape == (100, 28, 28, 1)
  assert u.x.dtype == np.uint8
  assert u.x.std() > 20
  if name == 'mnist':
    # Dark ink on a bright ground.
    assert (u.x == 255).mean() > 0.6
