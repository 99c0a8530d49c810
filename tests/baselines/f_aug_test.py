"""FAug: seed samples, a conditional generator, balanced clients."""

import numpy as np
import pytest
import tensorflow as tf

from baselines import f_aug
from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist.program import costs
from tff_codist.testing import conformance
from tff_codist.testing import toys


def _config(name='fd_f_aug', **groups):
  groups['f_aug'] = {'steps': 3, 'batch_size': 8, **groups.get('f_aug', {})}
  return config_lib.change(
    config_lib.Config(), algorithm={'name': name}, **groups
  )


def _build(setting, **groups):
  return algorithm.algorithms['fd_f_aug'](setting, _config(**groups))


def _choose(y, *, seed=(1, 2), num_classes=5, **fields):
  """Returns what a device with these labels uploads; x is the row."""
  examples = clients.Examples(
    x=np.arange(len(y), dtype=np.float32)[:, np.newaxis],
    y=np.array(y, np.int32),
  )
  choose = f_aug.build_seed_choice(
    client_update.examples_type(examples),
    num_classes,
    config_lib.FAugConfig(**fields),
  )
  (seeds,) = choose([toys.seeded(examples, seed)])
  return seeds


# Ten of label 0, four of 1, one of 2, six of 3, none of 4.
_LABELS = [0] * 10 + [1] * 4 + [2] + [3] * 6


def test_seeds_are_of_lacking_labels_by_hand(in_process):
  seeds = _choose(_LABELS, lacking_examples=4, seed_samples=3)
  assert list(seeds.is_target) == [False, True, True, False, False]
  assert not seeds.is_redundant.any()
  assert sorted(seeds.y) == [1, 1, 1, 2]
  # They are different samples of the device, with their labels.
  rows = seeds.x[:, 0].astype(int)
  assert len(set(rows)) == 4
  np.testing.assert_array_equal(np.array(_LABELS)[rows], seeds.y)


def test_redundant_labels_are_drawn_from_the_others(in_process):
  drawn = set()
  for seed in range(8):
    seeds = _choose(
      _LABELS, seed=(seed, 1), lacking_examples=4, redundant_labels=1
    )
    assert seeds.is_redundant.sum() == 1
    assert not (seeds.is_redundant & seeds.is_target).any()
    drawn.add(int(np.argmax(seeds.is_redundant)))
  # Both, except with probability 2 * 2^-8; the seeds are fixed.
  assert drawn == {0, 3}
  # There are no more than two.
  many = _choose(_LABELS, lacking_examples=4, redundant_labels=4)
  assert list(np.flatnonzero(many.is_redundant)) == [0, 3]


def test_device_without_examples_uploads_nothing(in_process):
  seeds = _choose([], redundant_labels=2)
  assert not len(seeds.y)
  assert not (seeds.is_target.any() or seeds.is_redundant.any())


def test_leakages_by_hand():
  """Targets {0} of 2 labels, {1, 2} of 2, none; 4 labels are uploaded."""

  def device(targets, redundant):
    is_in = [np.isin(np.arange(5), labels) for labels in (targets, redundant)]
    return f_aug.Seeds(np.zeros((0, 1)), np.zeros(0), *is_in)

  devices = [device([0], [3]), device([1, 2], []), device([], [])]
  to_server, to_devices = f_aug.leakages(devices)
  assert to_server == pytest.approx((1 / 2 + 1 + 0) / 3)
  assert to_devices == pytest.approx((1 / 4 + 2 / 4 + 0) / 3)
  # Redundant labels hide targets from the server.
  hidden, _ = f_aug.leakages([device([0], [1, 2, 3]), *devices[1:]])
  assert hidden < to_server


def test_oversampled_labels_are_balanced():
  y = np.array([3, 1, 1, 1, 0, 3, 1])
  rows = f_aug.oversample(y, np.random.default_rng(1))
  assert set(rows) == set(range(7))
  np.testing.assert_array_equal(np.bincount(y[rows]), [4, 4, 0, 4])


def _images(label_pixels, copies, dtype):
  """Returns images of 2 x 2 pixels that are constant for each label."""
  y = np.repeat(np.arange(len(label_pixels)), copies).astype(np.int32)
  pixels = np.array(label_pixels)[y]
  x = np.broadcast_to(pixels[:, None, None, None], (len(y), 2, 2, 1))
  return clients.Examples(x=x.astype(dtype), y=y)


def test_generator_learns_what_a_label_looks_like(in_process):
  """Dark images of label 0, bright ones of label 2, none of label 1."""
  examples = _images([20, 220], 20, np.uint8)
  examples['y'] *= 2
  networks = f_aug.Networks(
    client_update.examples_type(examples),
    3,
    config_lib.FAugConfig(steps=400, batch_size=32, learning_rate=1e-3),
  )
  result = networks.build_training()(
    networks.initialize(1),
    networks.discriminator.initialize(1),
    examples['x'],
    examples['y'],
    np.array([1, 2], np.int32),
  )
  generator = result['generator']
  np.testing.assert_array_equal(generator.is_known, [1, 0, 1])
  assert (generator.low, generator.high) == (20, 220)
  # Its device has four of label 1, and gets as many of those that G knows.
  own = clients.Examples(
    x=np.full((5, 2, 2, 1), 100, np.uint8),
    y=np.array([1, 1, 1, 1, 2], np.int32),
  )
  device = {'examples': toys.seeded(own), 'seed': np.array([5, 6], np.int32)}
  (after,) = networks.build_augmentation()(generator, [device])
  np.testing.assert_array_equal(after['x'][:5], own['x'])
  np.testing.assert_array_equal(np.bincount(after['y']), [4, 4, 4])
  new = after['x'][5:].reshape(-1, 4).mean(axis=1)
  labels = after['y'][5:]
  assert after['x'].dtype == np.uint8
  assert new[labels == 0].mean() < 80 < 160 < new[labels == 2].mean()


def test_images_of_a_device_are_the_same_in_all_rounds(in_process):
  setting = toys.make_setting(['small'])
  augmentation = f_aug.Augmentation(setting, _config())
  generator, *_ = augmentation.prepare(augmentation.networks.initialize(1))
  examples = toys.make_examples(9, seed=9)
  first, second = (
    augmentation.augment(
      generator, clients.Cohort([toys.seeded(examples, seed)], ['09'])
    )[0]
    for seed in ((1, 1), (2, 2))
  )
  np.testing.assert_array_equal(first['x'], second['x'])
  np.testing.assert_array_equal(second['seed'], (2, 2))
  counts = np.bincount(first['y'], minlength=3)
  assert counts.min() == counts.max() == np.bincount(examples['y']).max()
  other = augmentation.augment(
    generator, clients.Cohort([toys.seeded(examples)], ['08'])
  )[0]
  assert not np.array_equal(first['x'], other['x'])


def test_device_in_several_pools_uploads_once(in_process):
  setting = toys.make_setting()
  augmentation = f_aug.Augmentation(setting, _config())
  seeds = augmentation.collect()
  assert len(seeds) == len(setting.pools[0].client_ids) == 12
  _, sent, metrics = augmentation.prepare(augmentation.networks.initialize(1))
  samples = sum(len(s.y) for s in seeds)
  assert metrics['exchange/seed_samples'] == samples
  # Four layers from noise and label to four features, by hand.
  generator = (
    (100 + 3) * 256 + 256 + 256 * 512 + 512 + 512 * 1024 + 1024 + 1024 * 4 + 4
  )
  assert sent == {'a': (12 * generator, samples * 4), 'b': (0, 0)}


def test_devices_of_other_pools_count_there(in_process):
  setting = toys.make_setting(['small', 'small'])
  first, second = setting.pools
  few = first._replace(client_ids=toys.COMMON_CLIENTS[:2], cohort_size=2)
  setting = setting._replace(pools=[few, second])
  built = _build(setting)
  before = built.initialize(1)
  nothing = algorithm.Traffic(0, 0)
  assert built.once(before) == {'a': nothing, 'b': nothing}
  cohorts = toys.load_cohorts(setting, 1)
  state, _ = built.next(before, cohorts, 1)
  a, b = built.once(state).values()
  # Two devices, and four of the six of the second pool.
  assert (a.down > 0, b.down) == (True, 2 * a.down)
  assert a.up > 0 and b.up > 0
  # The exchange happens once.
  again, _ = built.next(state, cohorts, 2)
  assert built.once(again) == built.once(state)


@pytest.mark.parametrize(
  'check',
  # The methods have the others; this is what the augmentation could break.
  [
    conformance.check_state_type_is_fixed_point,
    conformance.check_odd_clients,
    conformance.check_broken_client_is_dropped,
    conformance.check_metric_names,
  ],
)
def test_conformance(in_process, check):
  check(_build)


def test_resume_is_bit_equal(in_process, tmp_path):
  conformance.check_resume_is_bit_equal(_build, tmp_path)


def test_runtimes_agree():
  conformance.check_runtimes_agree(_build)


@pytest.mark.parametrize('method', ['fd', 'fed_avg'])
def test_balanced_clients_train_as_without(in_process, method):
  """Six examples of each label: nothing is generated for them."""
  setting = toys.make_setting(['small'])
  x = np.random.default_rng(1).normal(size=(18, 4)).astype(np.float32)
  examples = clients.Examples(x=x, y=np.repeat(range(3), 6).astype(np.int32))
  cohort = clients.Cohort(
    [toys.seeded(examples, (1, 2)), toys.seeded(examples, (3, 4))],
    ['06', '07'],
  )
  config = _config(
    program={'evaluation_models': 12},
    pools={'names': ('a',), 'models': ('small',), 'clients_fraction': (1.0,)},
  )
  found = []
  for name in (method, f'{method}_f_aug'):
    built = algorithm.algorithms[name](setting, config)
    state, metrics = built.next(built.initialize(1), {'a': cohort}, 1)
    assert metrics['train/a/examples'] == 36
    found.append(built.models(state))
  toys.assert_same(*found)


def _published_generator():
  """The generator whose weights the paper's table counts."""
  layers = tf.keras.layers
  generator = tf.keras.Sequential([layers.InputLayer((100,))])
  for units in (256, 512, 1024):
    generator.add(layers.Dense(units))
    generator.add(layers.BatchNormalization())
  generator.add(layers.Dense(784))
  return generator


def test_published_cost_of_augmentation(in_process):
  """Three target labels of five images of 28 x 28 bytes, 16 rounds."""
  examples = _images([0], 1, np.uint8)
  examples['x'] = np.zeros((1, 28, 28, 1), np.uint8)
  networks = f_aug.Networks(
    client_update.examples_type(examples), 10, config_lib.FAugConfig()
  )
  once = networks.traffic(1, 15)
  assert once.down == networks.generator.num_parameters
  assert _published_generator().count_params() == 1_493_520
  once = once._replace(down=1_493_520)
  pool = pools_lib.Pool('a', models.Model('m', toys.MODELS['small']), ('0',), 1)
  weights = 1_199_648
  for traffic, bits in (
    (algorithm.Traffic(100, 100), 47_989_120),
    (algorithm.Traffic(weights, weights), 1_276_326_272),
  ):
    first = costs.round_costs([pool], {'a': traffic}, after={'a': once})
    other = costs.round_costs([pool], {'a': traffic})
    assert 8 * (sum(first.values()) + 15 * sum(other.values())) == bits


def test_no_seeds_are_an_error(in_process):
  setting = toys.make_setting(['small'])
  # The clients without any example are the only devices.
  pool = setting.pools[0]._replace(client_ids=('00',))
  augmentation = f_aug.Augmentation(setting._replace(pools=[pool]), _config())
  with pytest.raises(errors.DataError, match='lacking_examples'):
    augmentation.prepare(augmentation.networks.initialize(1))


def test_diverging_generator_is_an_error(in_process):
  augmentation = f_aug.Augmentation(
    toys.make_setting(['small']), _config(f_aug={'learning_rate': 1e38})
  )
  with pytest.raises(errors.NonFiniteModelError, match=r'f_aug\.learning_rate'):
    augmentation.prepare(augmentation.networks.initialize(1))


def _with_domains(setting):
  pool = setting.pools[0]._replace(domains=('some',))
  return setting._replace(pools=[pool])


def _with_padding(setting):
  return setting._replace(task=setting.task._replace(pad_id=0))


@pytest.mark.parametrize(
  'change, groups, message',
  [
    (_with_domains, {}, 'some domains only'),
    (_with_padding, {}, 'tokens'),
    (lambda s: s, {'privacy': {'mechanism': ('gaussian',)}}, 'raw samples'),
  ],
)
def test_what_does_not_fit_is_refused(change, groups, message):
  config = _config('fed_avg_f_aug', **groups)
  with pytest.raises(errors.ConfigError, match=message):
    f_aug.Augmentation(change(toys.make_setting(['small'])), config)
