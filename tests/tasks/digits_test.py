"""Tests for the digits task: the split over clients and the presets."""

import collections
import math

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets

import tasks  # noqa: F401 - registers the tasks and presets.
from tasks import digits
from tff_codist import config as config_lib
from tff_codist import models
from tff_codist import task


def _load(seed=1):
  return task.tasks['digits'](config_lib.Config(seed=seed))


def _labels(data):
  """Returns each client's counts of the labels, `[clients, 10]`."""
  return np.array(
    [
      np.bincount(data.load(client_id)['y'], minlength=10)
      for client_id in data.client_ids
    ]
  )


def _count_images(*splits):
  return collections.Counter(
    (image.tobytes(), int(label))
    for data in splits
    for client_id in data.client_ids
    for image, label in zip(*data.load(client_id).values())
  )


def test_every_image_is_used_once():
  loaded = _load()
  original = datasets.load_digits()
  expected = collections.Counter(
    (image.astype(np.uint8).tobytes(), int(label))
    for image, label in zip(original.images, original.target)
  )
  assert _count_images(loaded.train, loaded.test) == expected


def test_examples_are_uint8_images_with_int32_labels():
  loaded = _load()
  for data in (loaded.train, loaded.test):
    for client_id in data.client_ids:
      examples = data.load(client_id)
      assert list(examples) == ['x', 'y']
      assert examples['x'].dtype == np.uint8
      assert examples['x'].shape == (len(examples['y']), 8, 8, 1)
      assert examples['y'].dtype == np.int32


def test_clients_have_different_sizes_and_none_is_empty():
  train, test = _labels(_load().train), _labels(_load().test)
  assert len(train) == digits.NUM_CLIENTS
  assert len(test) == digits.NUM_TEST_CLIENTS
  assert train.sum(axis=1).min() >= 5
  assert test.sum(axis=1).min() >= 5
  assert len(set(train.sum(axis=1))) > 10


@pytest.mark.parametrize('seed', range(5))
def test_test_set_is_stratified_and_training_labels_are_skewed(seed):
  loaded = _load(seed)
  train, test = _labels(loaded.train), _labels(loaded.test)
  assert test.sum() == 360
  assert np.ptp(test.sum(axis=0)) <= 2
  # A client's commonest label: 10 % of the images if labels were balanced,
  # about 20 % if 36 images were drawn without skew.
  largest = np.mean(train.max(axis=1) / train.sum(axis=1))
  assert 0.35 < largest < 0.6


def test_split_is_a_function_of_the_seed():
  first, same, other = _load(1), _load(1), _load(2)
  assert first.train.client_ids == other.train.client_ids
  for client_id in first.train.client_ids:
    np.testing.assert_array_equal(
      first.train.load(client_id)['x'], same.train.load(client_id)['x']
    )
  assert _count_images(first.test) == _count_images(same.test)
  assert _count_images(first.test) != _count_images(other.test)
  assert (_labels(first.train) != _labels(other.train)).any()


def test_preprocess_scales_to_the_unit_interval_with_and_without_seed():
  x = tf.constant([0, 8, 16], tf.uint8)[:, tf.newaxis, tf.newaxis, tf.newaxis]
  for seed in (None, tf.constant([1, 2])):
    scaled = digits.preprocess(x, seed)
    assert scaled.dtype == tf.float32
    np.testing.assert_array_equal(tf.squeeze(scaled), [0.0, 0.5, 1.0])


def test_large_model_has_over_ten_times_the_weights_of_the_small_one():
  loaded = _load()
  sizes = {}
  for name, keras_fn in loaded.models.items():
    model = models.Model(name, keras_fn)
    assert model.num_classes == loaded.num_classes
    assert model.input_shape == (8, 8, 1)
    sizes[name] = model.num_parameters
  assert sizes['small'] < sizes['medium'] < sizes['large']
  assert sizes['large'] >= 10 * sizes['small']


@pytest.mark.parametrize('quick', [False, True])
@pytest.mark.parametrize('name', ['digits', 'cifar100'])
def test_presets_validate_and_name_their_task_and_its_models(name, quick):
  config = task.presets[name](quick)
  assert config_lib.from_json(config_lib.to_json(config)) == config
  assert config.task.name == name
  assert set(config.pools.models) <= {'small', 'large'}
  assert config.merged.warmup_rounds < config.program.rounds
  assert config.program.rounds <= 4 or not quick


def test_digits_pools_are_large_enough_for_their_cohorts():
  config = task.presets['digits'](False)
  training = digits.NUM_CLIENTS * (1 - config.unlabelled.clients_fraction)
  for fraction, cohort_size in zip(
    config.pools.clients_fraction, config.pools.cohort_size
  ):
    assert math.ceil(fraction * training) >= cohort_size
