"""DS-FL: soft labels on open data, sharpened and learned by all."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf

from baselines import ds_fl
from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist.program import costs
from tff_codist.testing import conformance
from tff_codist.testing import toys

_OPEN = 20
_AGGREGATIONS = ('era', 'simple', 'power')


def _config(**groups):
  groups['ds_fl'] = {
    'open_examples': _OPEN,
    'batch_size': 10,
    **groups.get('ds_fl', {}),
  }
  return config_lib.change(
    config_lib.Config(), algorithm={'name': 'ds_fl'}, **groups
  )


def _build(setting, **groups):
  return ds_fl.build_ds_fl(setting, _config(**groups))


def _softmax(logits):
  powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
  return powers / powers.sum(axis=-1, keepdims=True)


def _entropy(probs):
  return float(-np.sum(probs * np.log(probs)))


def _sharpen(probs, aggregation, temperature=0.1):
  return ds_fl.sharpen(
    tf.constant(probs, tf.float32),
    aggregation=aggregation,
    temperature=temperature,
  ).numpy()


@pytest.mark.parametrize(
  'check',
  [c for c in conformance.PROPERTIES if c is not conformance.check_learns],
)
def test_conformance(in_process, check):
  check(_build)


def test_server_models_learn_from_clients_of_few_examples(in_process):
  """With three classes, T = 0.1 is a vote, which the first models lead."""
  conformance.check_learns(
    functools.partial(_build, client={'epochs': 5}, ds_fl={'temperature': 0.3})
  )


def test_resume_is_bit_equal(in_process, tmp_path):
  conformance.check_resume_is_bit_equal(_build, tmp_path)


def test_runtimes_agree():
  conformance.check_runtimes_agree(_build)


@pytest.mark.parametrize('aggregation', _AGGREGATIONS)
def test_soft_labels_are_distributions_in_the_order_of_the_mean(aggregation):
  probs = np.random.default_rng(1).dirichlet(np.ones(7), size=30)
  labels = _sharpen(probs, aggregation)
  assert (labels >= 0).all()
  np.testing.assert_allclose(labels.sum(axis=-1), 1, atol=1e-6)
  np.testing.assert_array_equal(labels.argmax(axis=-1), probs.argmax(axis=-1))
  order = np.random.default_rng(2).permutation(7)
  np.testing.assert_allclose(
    _sharpen(probs[:, order], aggregation), labels[:, order], atol=1e-6
  )


def test_low_temperature_gives_the_largest_class_and_simple_the_mean():
  probs = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]], np.float32)
  for aggregation in ('era', 'power'):
    labels = _sharpen(probs, aggregation, temperature=1e-4)
    np.testing.assert_allclose(labels, np.eye(4)[[0, 3]], atol=1e-6)
  np.testing.assert_array_equal(_sharpen(probs, 'simple'), probs)


def test_era_may_raise_entropy_and_power_does_not():
  # One class of 100 a little ahead; the gap of 0.047 is half of T.
  probs = np.full(100, (1 - 0.0568) / 99)
  probs[0] = 0.0568
  assert _entropy(probs) == pytest.approx(4.552, abs=1e-3)
  assert _entropy(_sharpen(probs, 'era')) == pytest.approx(4.604, abs=1e-3)
  assert _entropy(_sharpen(probs, 'era', 1e-3)) < 0.1
  for temperature in (0.9, 0.5, 0.1):
    sharper = _entropy(_sharpen(probs, 'power', temperature))
    assert sharper < _entropy(probs)


def test_aggregation_is_of_probabilities_by_hand(in_process):
  """Two clients, (0.8, 0.2) and (0.4, 0.6); their mean is (0.6, 0.4)."""
  totals = np.array([[1.2, 0.8]], np.float32)
  # The softmax of (6, 4); the mean itself; and (0.6^10, 0.4^10), normalised.
  expected = {
    'era': 1 / (1 + np.exp(-2)),
    'simple': 0.6,
    'power': 1 / (1 + (2 / 3) ** 10),
  }
  for aggregation, first in expected.items():
    aggregate = ds_fl.build_aggregation(
      1, 2, config_lib.DSFLConfig(aggregation=aggregation)
    )
    result = aggregate(totals, np.float32(2))
    np.testing.assert_allclose(
      result['soft_labels'], [[first, 1 - first]], atol=1e-6
    )
    assert result['mean_entropy'] == pytest.approx(_entropy([0.6, 0.4]))
    assert result['label_entropy'] == pytest.approx(
      _entropy([first, 1 - first]), abs=1e-6
    )


def test_entropy_of_one_hot_labels_is_zero(in_process):
  aggregate = ds_fl.build_aggregation(
    1, 3, config_lib.DSFLConfig(aggregation='simple')
  )
  result = aggregate(np.array([[0, 2, 0]], np.float32), np.float32(2))
  assert result['mean_entropy'] == result['label_entropy'] == 0


def test_single_client_learns_nothing_from_its_own_simple_labels(in_process):
  setting = toys.make_setting(['large'])
  model = setting.pools[0].model
  weights, x = model.initialize(3), setting.unlabelled.x[:_OPEN]
  own = _softmax(tf.function(model.logits)(weights, x).numpy())
  learn = ds_fl.build_server_distillation(
    model,
    setting.examples_type['x'],
    toys.preprocess,
    config_lib.DSFLConfig(batch_size=_OPEN, epochs=1, learning_rate=1.0),
  )
  result = learn(weights, x, own, np.array([1, 2], np.int32))
  for after, before in zip(result['weights'], weights):
    np.testing.assert_allclose(after, before, atol=1e-6)
  other = learn(weights, x, _softmax(-own), np.array([1, 2], np.int32))
  assert np.abs(other['weights'][0] - weights[0]).max() > 1e-2


def test_distillation_step_by_hand(in_process):
  """Logits 0: the bias moves by the rate times the mean of q − 1/3."""
  setting = toys.make_setting(['small'])
  labels = np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32)
  learn = ds_fl.build_server_distillation(
    setting.pools[0].model,
    setting.examples_type['x'],
    toys.preprocess,
    config_lib.DSFLConfig(batch_size=2, epochs=1, learning_rate=0.6),
  )
  result = learn(
    (np.zeros((4, 3), np.float32), np.zeros(3, np.float32)),
    np.zeros((2, 4), np.float32),
    labels,
    np.array([1, 2], np.int32),
  )
  np.testing.assert_allclose(
    result['weights'][1], [0.6 * 5 / 12, -0.6 / 12, -0.6 / 3], atol=1e-6
  )
  assert result['distillation_loss'] == pytest.approx(np.log(3))


def test_distillation_that_diverges_is_rejected(in_process):
  setting = toys.make_setting(['small'])
  model, x = setting.pools[0].model, setting.unlabelled.x
  learn = ds_fl.build_server_distillation(
    model,
    setting.examples_type['x'],
    toys.preprocess,
    config_lib.DSFLConfig(batch_size=5, learning_rate=1e38),
  )
  weights = model.initialize(1)
  labels = np.tile(np.eye(3, dtype=np.float32)[:1], (len(x), 1))
  result = learn(weights, x, labels, np.array([1, 2], np.int32))
  toys.assert_same(result['weights'], weights)
  assert result['rejected'] == 1


def test_first_round_is_local_training_and_labels_are_of_the_drawn(
  in_process, make_cohort
):
  """Two clients of one round; what they upload, computed here."""
  setting = toys.make_setting(['small'])
  config = _config(ds_fl={'aggregation': 'simple', 'batch_size': _OPEN})
  built = ds_fl.build_ds_fl(setting, config)
  start = built.initialize(1)
  cohort = make_cohort('06', '07')
  state, metrics = built.next(start, {'a': cohort}, 1)
  train = client_update.build_client_models(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config.client,
  )
  trained = train(start.pools['a'].start, cohort)['models']
  x = setting.unlabelled.x[state.indices]
  expected = np.mean(
    [_softmax(x @ kernel + bias) for (kernel, bias), _ in trained], axis=0
  )
  np.testing.assert_allclose(state.soft_labels, expected, atol=1e-6)
  assert metrics['exchange/teachers'] == 2
  assert metrics['exchange/mean_entropy'] == metrics['exchange/label_entropy']
  learn = ds_fl.build_server_distillation(
    setting.pools[0].model,
    setting.examples_type['x'],
    toys.preprocess,
    config.ds_fl,
  )
  # A step on the whole of o does not depend on the order of its examples.
  server = learn(start.servers['a'], x, expected, np.array([1, 2], np.int32))
  for a, b in zip(state.servers['a'], server['weights']):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_client_that_comes_back_distils_on_the_last_announced_labels(
  in_process, make_cohort
):
  """It trains from where it was, after what the server announced last."""
  setting = toys.make_setting(['small'])
  config = _config(ds_fl={'batch_size': _OPEN})
  built = ds_fl.build_ds_fl(setting, config)
  exchange = ds_fl.Exchange(setting, config)
  one, two = make_cohort('06'), make_cohort('07')
  state, _ = built.next(built.initialize(1), {'a': one}, 1)
  state, _ = built.next(state, {'a': two}, 2)
  # Nobody takes part: the labels of round 2 stay the last ones.
  idle, metrics = built.next(state, {'a': clients.Cohort([])}, 3)
  toys.assert_same(idle, state)
  assert metrics['exchange/teachers'] == 0
  assert idle.last_upload == 2
  announced = exchange.announce(idle, exchange.draw(4))
  np.testing.assert_array_equal(
    announced.labelled, setting.unlabelled.x[exchange.draw(2)]
  )
  np.testing.assert_array_equal(announced.soft_labels, state.soft_labels)
  # A step on the whole of o does not depend on the order of its examples.
  store = setting.client_store
  held = store.get(
    state.pools['a'].clients[6].tobytes(), state.pools['a'].start
  )
  learn = ds_fl.build_server_distillation(
    setting.pools[0].model,
    setting.examples_type['x'],
    toys.preprocess,
    config.ds_fl,
  )
  train = client_update.build_client_models(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config.client,
  )
  distilled = learn(
    held,
    announced.labelled,
    announced.soft_labels,
    np.array([1, 2], np.int32),
  )['weights']
  expected = train(distilled, one)['models'][0].weights
  after, _ = built.next(idle, {'a': one}, 4)
  found = store.get(
    after.pools['a'].clients[6].tobytes(), state.pools['a'].start
  )
  for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_open_examples_are_drawn_anew_from_the_seed(in_process):
  exchange, same = (
    ds_fl.Exchange(toys.make_setting(), _config()) for _ in range(2)
  )
  first, second = exchange.draw(1), exchange.draw(2)
  assert len(set(first)) == _OPEN
  assert set(first) != set(second)
  np.testing.assert_array_equal(second, same.draw(2))


def test_pools_label_together_and_every_server_model_learns(
  in_process, make_cohort
):
  setting = toys.make_setting(['small', 'large'])
  built = _build(setting)
  cohorts = {'a': make_cohort('06', '07'), 'b': make_cohort('08')}
  _, metrics = built.next(built.initialize(1), cohorts, 1)
  assert metrics['exchange/teachers'] == 3
  # The large pool's server model learns from the small pool's clients.
  alone = {**cohorts, 'b': clients.Cohort([])}
  start = built.initialize(1)
  state, metrics = built.next(start, alone, 1)
  assert metrics['exchange/teachers'] == 2
  assert not np.array_equal(state.servers['b'][0], start.servers['b'][0])


def test_labels_of_the_open_data_are_not_there_to_be_read(
  in_process, make_cohort
):
  """The algorithm needs the inputs of U and nothing else of it."""
  setting = toys.make_setting(['small'])
  bare = setting._replace(
    unlabelled=types.SimpleNamespace(x=setting.unlabelled.x)
  )
  found = []
  for one in (setting, bare):
    built = _build(one)
    state, _ = built.next(built.initialize(1), {'a': make_cohort('06')}, 1)
    found.append(built.models(state))
  toys.assert_same(*found)


def test_traffic_is_the_soft_labels_and_their_indices():
  setting = toys.make_setting(['small', 'large'])
  for traffic in _build(setting).traffic.values():
    assert traffic.up == _OPEN * toys.NUM_CLASSES
    assert traffic.down == _OPEN * toys.NUM_CLASSES + 2 * _OPEN
  assert costs.round_costs(setting.pools, _build(setting).traffic)[
    'cost/b/uplink_bytes'
  ] == 3 * 4 * (_OPEN * toys.NUM_CLASSES)


def test_upload_has_one_row_for_each_drawn_example(in_process):
  setting = toys.make_setting(['small'])
  train = ds_fl.build_client_training(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config_lib.ClientConfig(),
    _config().ds_fl,
  )
  uploads = train.type_signature.result.uploads.member
  assert str(uploads) == f'<probs=float32[{_OPEN},3],clients=float32>'


def test_flattening_labels_are_warned_of_once(in_process, caplog, make_cohort):
  setting = toys.make_setting(['small'])
  # Softmax of nearly the mean itself, which is flatter.
  built = _build(setting, ds_fl={'temperature': 0.99})
  state = built.initialize(1)
  with caplog.at_level('WARNING'):
    for round_num in (1, 2, 3):
      state, metrics = built.next(state, {'a': make_cohort('06')}, round_num)
      assert (
        metrics['exchange/label_entropy'] > metrics['exchange/mean_entropy']
      )
  (record,) = caplog.records
  assert 'raised the mean entropy' in record.getMessage()


def test_models_are_the_servers_and_clients_are_in_the_store(
  in_process, make_cohort
):
  setting = toys.make_setting(['small'])
  built = _build(setting)
  state = built.initialize(1)
  assert built.client_states(state) == []
  state, _ = built.next(state, {'a': make_cohort('06', '07')}, 1)
  assert len(built.client_states(state)) == 2
  toys.assert_same(built.models(state)['a'][0], state.servers['a'])


@pytest.mark.parametrize(
  'change, groups, message',
  [
    (lambda s: s._replace(unlabelled=None), {}, 'without distillation data'),
    (lambda s: s, {'ds_fl': {'open_examples': 51}}, '51 of 50'),
  ],
)
def test_what_does_not_fit_is_refused(change, groups, message):
  with pytest.raises(errors.ConfigError, match=message):
    _build(change(toys.make_setting()), **groups)


@pytest.mark.parametrize('temperature', [0.0, 1.0, 2.0])
def test_temperature_that_does_not_sharpen_is_refused(temperature):
  with pytest.raises(errors.ConfigError, match=r'ds_fl\.temperature'):
    config_lib.DSFLConfig(temperature=temperature)


def test_fields_that_it_does_not_read_are_known():
  reads = algorithm.algorithms.reads
  assert reads('ds_fl', 'ds_fl.temperature')
  for field in ('server.optimizer', 'distillation.loss', 'fd.gamma'):
    assert not reads('ds_fl', field)
