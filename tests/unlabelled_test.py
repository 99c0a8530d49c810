"""Distillation data: its order, its sources, and that no label gets in."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import unlabelled
from tff_codist.testing import toys


def test_distillation_data_is_passed_over_in_shuffled_epochs():
  data = unlabelled.UnlabelledData(np.arange(10), seed=3)
  whole = data.batches(0, 6, 5).ravel()
  for epoch in np.split(whole, 3):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
  assert not np.array_equal(whole[:10], whole[10:20])
  # The place in the stream depends on the number of the step alone.
  np.testing.assert_array_equal(data.batches(4, 2, 5).ravel(), whole[20:])
  np.testing.assert_array_equal(data.batches(2, 1, 5)[0], whole[10:15])
  other = unlabelled.UnlabelledData(np.arange(10), seed=4)
  assert not np.array_equal(other.batches(0, 6, 5).ravel(), whole)


def test_batch_larger_than_the_distillation_data_repeats_it():
  data = unlabelled.UnlabelledData(np.arange(3), seed=1)
  (batch,) = data.batches(0, 1, 7)
  assert sorted(np.bincount(batch)) == [2, 2, 3]


def test_distillation_data_must_not_be_empty():
  with pytest.raises(errors.DataError, match='without an example'):
    unlabelled.UnlabelledData(np.zeros((0, 4)), seed=1)


class _NoLabels(clients.Examples):
  """Examples whose labels blow up when they are touched."""

  def __getitem__(self, key):
    assert key == 'x', f'{key} was read'
    return super().__getitem__(key)

  def values(self):
    raise AssertionError('everything was read')

  items = values


def _task(**changes):
  """Clients `c0` to `c9` of 20 examples each; x says client and example."""

  def load(client_id):
    number = int(client_id[1:])
    x = 100 * number + np.arange(20)
    return _NoLabels(x=x, y=None)

  train = clients.ClientData([f'c{i}' for i in range(10)], load)
  held_out = clients.ClientData([f'h{i}' for i in range(50, 53)], load)
  foreign = unlabelled.Images((4, 4, 1))
  return toys.make_task()._replace(
    train=train, held_out=held_out, foreign=foreign, **changes
  )


def _build(task=None, seed=1, **fields):
  task = task or _task()
  config = config_lib.UnlabelledConfig(**fields)
  unlabelled.check_sources(config)
  ids = unlabelled.clients_set_aside(task, config, seed=seed)
  return unlabelled.build_unlabelled(task, config, client_ids=ids, seed=seed)


def test_clients_give_their_inputs_and_nothing_else():
  u = _build(clients_fraction=0.2)
  assert sorted(u.x % 100) == sorted([*range(20)] * 2)
  assert len(set(u.x // 100)) == 2
  assert u.origin == {'clients': 40}
  assert vars(u).keys() == {'x', 'origin', '_seed'}
  assert not np.array_equal(_build(clients_fraction=0.2, seed=2).x, u.x)


def test_a_limit_draws_from_many_clients():
  u = _build(sources=('held_out',), max_examples=30)
  assert len(u.x) == 30
  assert set(u.x // 100) == {50, 51, 52}
  np.testing.assert_array_equal(
    u.x, _build(sources=('held_out',), max_examples=30).x
  )


def test_mixture_has_the_given_proportions():
  u = _build(
    sources=('clients', 'held_out'), weights=(3.0, 1.0), clients_fraction=0.2
  )
  # Forty of clients are three quarters; a third of them come from held_out.
  assert u.origin == {'clients': 40, 'held_out': 13}
  assert np.sum(u.x >= 5000) == 13
  few = _build(
    sources=('clients', 'held_out'), weights=(3.0, 1.0), max_examples=10
  )
  # Rounded down, never above the limit.
  assert few.origin == {'clients': 7, 'held_out': 2}


def test_source_of_weight_0_gives_nothing():
  """It is not even looked for; clients of weight 0 are still set aside."""
  u = _build(sources=('tfds:nosuchset', 'held_out'), weights=(0.0, 1.0))
  assert u.origin == {'held_out': 60}
  both, without = (
    config_lib.UnlabelledConfig(
      sources=('clients', 'held_out'), weights=weights, clients_fraction=0.3
    )
    for weights in ((1.0, 1.0), (0.0, 1.0))
  )
  ids = unlabelled.clients_set_aside(_task(), without, seed=1)
  assert len(ids) == 3
  assert ids == unlabelled.clients_set_aside(_task(), both, seed=1)
  u = unlabelled.build_unlabelled(_task(), without, client_ids=ids, seed=1)
  assert u.origin == {'held_out': 60}
  assert u.x.min() >= 5000


class _NoLabelsButDomain(_NoLabels):
  """The same, of which the domain may be read."""

  def __getitem__(self, key):
    return self.domain if key == 'domain' else super().__getitem__(key)


def test_domains_of_clients():
  def load(client_id):
    examples = _NoLabelsButDomain(x=np.arange(6), y=None)
    examples.domain = np.arange(6) % 3
    return examples

  task = _task(domains=('a', 'b', 'c'))
  task = task._replace(train=clients.ClientData(task.train.client_ids, load))
  assert sorted(_build(task, domains=('b', 'c')).x) == [1, 2, 4, 5]
  with pytest.raises(errors.UnknownNameError, match="'d'"):
    _build(task, domains=('d',))


def test_noise_is_uniform_over_all_images():
  x = _build(sources=('noise',), max_examples=500).x
  assert x.shape == (500, 4, 4, 1) and x.dtype == np.uint8
  counts = np.bincount(x.ravel(), minlength=256)
  # 8,000 pixels over 256 values: 31 each, standard deviation 5.6.
  assert np.abs(counts - 31.25).max() < 6 * 5.6
  assert _build(sources=('none',)) is None


def test_images_are_resized_and_their_colours_made_to_fit():
  images = unlabelled.Images((2, 2, 1), invert=True)
  red = np.zeros((4, 4, 3), np.uint8)
  red[..., 0] = 200
  # The luma of red is 0.299 of it.
  np.testing.assert_array_equal(
    images.convert([red]), np.full((1, 2, 2, 1), 255 - 60)
  )
  grey = np.arange(4, dtype=np.uint8).reshape(2, 2, 1) * 85
  coloured = unlabelled.Images((2, 2, 3)).convert([grey])
  np.testing.assert_array_equal(coloured, np.repeat(grey[np.newaxis], 3, -1))
  digits = unlabelled.Images((2, 2, 1), high=16).convert([grey])
  assert digits.ravel().tolist() == [0, 5, 11, 16]
  for odd in (grey[..., 0], grey.astype(np.float32), np.repeat(grey, 2, -1)):
    with pytest.raises(errors.DataError, match='an image of shape'):
      images.convert([odd])


def test_sources_that_make_no_sense():
  for source in ('test', 'test:all'):
    with pytest.raises(errors.ConfigError, match='test data'):
      _build(sources=(source,))
  for source in ('client', 'tfds', 'noise:x', 'tfds:', 'web:x', 'generator'):
    with pytest.raises(errors.UnknownNameError, match='source'):
      _build(sources=(source,))
  with pytest.raises(errors.ConfigError, match="'text:x' for task 'toy'"):
    _build(sources=('text:x',))
  with pytest.raises(errors.ConfigError, match="'held_out' for task"):
    _build(_task()._replace(held_out=None), sources=('held_out',))
  with pytest.raises(errors.ConfigError, match="'noise' for task"):
    _build(_task()._replace(foreign=None), sources=('noise',))


def test_text_file(tmp_path):
  class Text:
    feature = 'text'

    def convert(self, items):
      return np.array([len(item) for item in items])

  task = _task()._replace(foreign=Text())
  path = tmp_path / 'corpus.txt'
  path.write_text('abc\n\nde\nf\n')
  assert sorted(_build(task, sources=(f'text:{path}',)).x) == [1, 2, 3]
  with pytest.raises(errors.DataNotFoundError, match='no readable text file'):
    _build(task, sources=('text:nowhere',))


def _store_tiny_images(tfds_dir):
  """Prepares a TFDS set of six labelled images; returns the images."""
  images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
  rows = tf.data.Dataset.from_tensor_slices(
    {'image': images, 'label': np.arange(6)}
  )
  features = {
    'image': tfds.features.Image(shape=(4, 4, 1)),
    'label': tfds.features.ClassLabel(num_classes=6),
  }
  tfds.dataset_builders.store_as_tfds_dataset(
    name='tiny_images',
    version='1.0.0',
    features=tfds.features.FeaturesDict(features),
    split_datasets={'train': rows},
    data_dir=tfds_dir,
  )
  return images


def test_tfds_set_gives_images_and_nothing_else(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  images = _store_tiny_images(tmp_path)

  def no_label(*args, **kwargs):
    raise AssertionError('a label was decoded')

  monkeypatch.setattr(tfds.features.ClassLabel, 'decode_example', no_label)
  u = _build(sources=('tfds:tiny_images',))
  assert u.origin == {'tfds:tiny_images': 6}
  np.testing.assert_array_equal(u.x[np.argsort(u.x[:, 0, 0, 0])], images)
  limited = _build(sources=('tfds:tiny_images', 'noise'), max_examples=4)
  assert limited.origin == {'tfds:tiny_images': 2, 'noise': 2}


def test_tfds_sets_that_cannot_be_used(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(errors.ConfigError, match="no data set 'nosuchset'"):
    _build(sources=('tfds:nosuchset',))
  with pytest.raises(errors.ConfigError, match='without images'):
    _build(sources=('tfds:ag_news_subset',))
  own = _task()._replace(own_datasets=('mnist',))
  for name in ('mnist', 'Mnist', 'mnist:3.0.1'):
    with pytest.raises(errors.ConfigError, match='as distillation data of'):
      _build(own, sources=(f'tfds:{name}',))
  with pytest.raises(errors.ConfigError, match=r"no data set 'mnist:9"):
    _build(sources=('tfds:mnist:9.9.9',))
  (tmp_path / 'cifar10' / '3.0.2').mkdir(parents=True)
  for name in ('emnist', 'cifar10'):
    with pytest.raises(errors.DataNotFoundError, match='no prepared') as caught:
      _build(sources=(f'tfds:{name}',))
    # The command that the message gives can at least be read by Python.
    command = caught.value.fix.split('"')[1]
    assert f"builder('{name}')" in command
    compile(command, 'command', 'exec')


def test_damaged_tfds_set(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  _store_tiny_images(tmp_path)
  (record,) = tmp_path.glob('tiny_images/*/*.tfrecord*')
  record.write_bytes(record.read_bytes()[:-5])
  with pytest.raises(errors.DataError, match='a damaged TFDS set'):
    _build(sources=('tfds:tiny_images',))
  record.unlink()
  with pytest.raises(errors.DataError, match='a damaged TFDS set'):
    _build(sources=('tfds:tiny_images',))


def _save_generator(path, *, inputs=3, shape=(4, 4, 1), last='sigmoid'):
  layers = tf.keras.layers
  keras_model = tf.keras.Sequential(
    [
      layers.InputLayer((inputs,)),
      layers.Dense(np.prod(shape), activation=last),
      layers.Reshape(shape),
    ]
  )
  keras_model.save(path)
  return keras_model


def test_generator_gives_as_many_images_as_are_asked_for(tmp_path):
  """More than one call of the generator, and the same images every time."""
  path = tmp_path / 'images.keras'
  keras_model = _save_generator(path)
  source = f'generator:{path}'
  u = _build(sources=(source,), max_examples=300)
  assert u.origin == {source: 300}
  assert u.x.shape == (300, 4, 4, 1) and u.x.dtype == np.uint8
  np.testing.assert_array_equal(
    u.x, _build(sources=(source,), max_examples=300).x
  )
  other = _build(sources=(source,), max_examples=300, seed=2)
  assert not np.array_equal(u.x, other.x)
  # Latent vectors are standard normal: the pixels have the moments of others
  # that are drawn so. The largest standard error of a mean is 255 / sqrt(600).
  latent = np.random.default_rng(0).standard_normal((20000, 3))
  expected = 255 * keras_model(latent).numpy()
  np.testing.assert_allclose(u.x.mean(0), expected.mean(0), atol=45)
  np.testing.assert_allclose(u.x.std(0), expected.std(0), atol=30)


def test_generated_images_are_made_to_fit_the_task(tmp_path):
  """A constant colour of another size: its luma, on the task's 17 values."""
  path = tmp_path / 'red.keras'
  keras_model = _save_generator(path, shape=(2, 2, 3), last=None)
  red = np.tile([1.0, 0.0, 0.0], 4)
  keras_model.set_weights([np.zeros((3, 12)), red])
  keras_model.save(path)
  task = _task()._replace(foreign=unlabelled.Images((8, 8, 1), high=16))
  u = _build(task, sources=(f'generator:{path}', 'noise'), max_examples=4)
  assert u.origin[f'generator:{path}'] == 2
  np.testing.assert_array_equal(u.x[:2], np.full((2, 8, 8, 1), 5))


def test_generators_that_cannot_be_used(tmp_path):
  def check(name, error, message):
    with pytest.raises(error, match=message) as caught:
      _build(sources=(f'generator:{tmp_path / name}',), max_examples=5)
    assert len(str(caught.value)) < 600

  check('nowhere.keras', errors.DataNotFoundError, 'no generator in')
  (tmp_path / 'images.h5').write_bytes(b'')
  check('images.h5', errors.DataNotFoundError, 'NAME.keras')
  (tmp_path / 'text.keras').write_text('no model')
  check('text.keras', errors.DataError, 'Keras does not load')
  layers = tf.keras.layers
  code = tf.keras.Sequential(
    [layers.InputLayer((16,)), layers.Lambda(lambda z: z)]
  )
  code.save(tmp_path / 'code.keras')
  check('code.keras', errors.DataError, 'without Lambda')
  for name, shape in (('flat', (16,)), ('channels', (4, 4, 2))):
    _save_generator(tmp_path / f'{name}.keras', shape=shape)
    check(f'{name}.keras', errors.DataError, r'a model from \(None, 3\) to')
  z, label = layers.Input((3,)), layers.Input((1,))
  joined = layers.Dense(16)(layers.Concatenate()([z, label]))
  conditional = tf.keras.Model([z, label], layers.Reshape((4, 4, 1))(joined))
  conditional.save(tmp_path / 'conditional.keras')
  check('conditional.keras', errors.DataError, 'unconditional')
  _save_generator(tmp_path / 'tanh.keras', last='tanh')
  check('tanh.keras', errors.DataError, r'pixels from -.*Rescaling')


def test_language_tasks_take_no_generator(tmp_path):
  class Text:
    feature = 'text'

  with pytest.raises(errors.ConfigError, match=r'keras. for task'):
    _build(
      _task()._replace(foreign=Text()), sources=('generator:images.keras',)
    )
