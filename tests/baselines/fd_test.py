"""FD: mean outputs by label, and their leave-one-out means."""

import numpy as np
import pytest
import tensorflow as tf

from baselines import fd
from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients
from tff_codist import codist  # noqa: F401  Registers fed_avg.
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist.program import costs
from tff_codist.testing import conformance
from tff_codist.testing import toys


def _config(**groups):
  return config_lib.change(
    config_lib.Config(), algorithm={'name': 'fd'}, **groups
  )


def _build(setting, **groups):
  return fd.build_fd(setting, _config(**groups))


def _only(setting, *client_ids):
  """Returns the setting with these clients in every pool."""
  return setting._replace(
    pools=[pool._replace(client_ids=client_ids) for pool in setting.pools]
  )


def _outputs(rng, num_devices, num_classes=5):
  """Returns devices' mean outputs, some of whose labels are missing."""
  outputs = rng.dirichlet(
    np.full(num_classes, 0.3), size=(num_devices, num_classes)
  )
  return (outputs * rng.integers(2, size=(*outputs.shape[:2], 1))).astype(
    np.float32
  )


def _leave_one_out(total, own):
  return fd.leave_one_out(tf.constant(total), tf.constant(own)).numpy()


def _logits(weights, x):
  kernel, bias = weights
  return x @ kernel + bias


def _softmax(logits):
  powers = np.exp(logits)
  return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
  'check',
  # Clients with two examples learn no separable problem alone; see below.
  [c for c in conformance.PROPERTIES if c is not conformance.check_learns],
)
def test_conformance(in_process, check):
  check(_build)


def test_every_client_learns(in_process, make_cohort):
  setting = _only(toys.make_setting(), '06', '07', '08')
  built = _build(setting, client={'epochs': 5})
  cohort = make_cohort('06', '07', '08', num_examples=60)
  state = built.initialize(1)
  for round_num in range(1, 21):
    state, _ = built.next(state, dict.fromkeys('ab', cohort), round_num)
  test = toys.make_examples(300, seed=99)
  for pool, own in zip(setting.pools, built.models(state).values()):
    assert len(own) == 3
    for weights in own:
      logits = tf.function(pool.model.logits)(weights, test['x']).numpy()
      assert np.mean(logits.argmax(axis=1) == test['y']) > 0.8


def test_resume_is_bit_equal(in_process, tmp_path):
  conformance.check_resume_is_bit_equal(_build, tmp_path)


def test_runtimes_agree():
  conformance.check_runtimes_agree(_build)


def test_leave_one_out_by_hand():
  """Labels of two devices, of this one only, of another one only, of none."""
  own = np.array([[0.5, 0.5], [1, 0], [0, 0], [0, 0]], np.float32)
  other = np.array([[0.1, 0.9], [0, 0], [0.25, 0.75], [0, 0]], np.float32)
  np.testing.assert_allclose(
    _leave_one_out(own + other, own),
    [[0.1, 0.9], [0, 0], [0.25, 0.75], [0, 0]],
    atol=1e-6,
  )


@pytest.mark.parametrize('num_devices', [1, 2, 7])
def test_leave_one_out_and_own_part_make_the_same_sum(num_devices):
  """(M_ℓ − 1) · F̂^(i) + F̄^(i) for every i, where i has seen ℓ."""
  outputs = _outputs(np.random.default_rng(num_devices), num_devices)
  total = outputs.sum(axis=0)
  count = np.count_nonzero(outputs.any(axis=2), axis=0)
  for own in outputs:
    teacher = _leave_one_out(total, own)
    others = count - own.any(axis=1)
    np.testing.assert_allclose(
      others[:, np.newaxis] * teacher + own, total, atol=1e-5
    )


def test_teachers_are_distributions_or_nothing():
  rng = np.random.default_rng(3)
  outputs = _outputs(rng, 50)
  # Sums of probabilities far apart, whose differences round below zero.
  outputs[1:, 0] = [0.3, 0.7 - 1e-7, 1e-7, 0, 0]
  total = outputs.sum(axis=0)
  for own in outputs:
    teacher = _leave_one_out(total, own)
    assert (teacher >= 0).all()
    np.testing.assert_allclose(
      teacher.sum(axis=1), teacher.any(axis=1), atol=1e-5
    )


def test_label_of_one_device_regularises_only_the_others():
  own, *others = _outputs(np.random.default_rng(4), 3)
  own[2] = [0.2, 0.2, 0.2, 0.2, 0.2]
  for other in others:
    other[2] = 0
  total = own + sum(others)
  assert not _leave_one_out(total, own)[2].any()
  for other in others:
    np.testing.assert_allclose(
      _leave_one_out(total, other)[2], own[2], atol=1e-6
    )


def test_step_by_hand(in_process):
  """One example of label 0, logits 0: p = 1/3 each.

  The bias moves by −η · (p − e_0 + γ · (p − F̂_0)).
  """
  setting = toys.make_setting(['small'])
  train = fd.build_device_training(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config_lib.ClientConfig(learning_rate=0.3),
    config_lib.FDConfig(gamma=2.0),
  )
  weights = (np.zeros((4, 3), np.float32), np.zeros(3, np.float32))
  examples = toys.seeded(
    clients.Examples(x=np.zeros((1, 4), np.float32), y=np.zeros(1, np.int32))
  )
  own = np.array([[0.2, 0.3, 0.5], [0, 0, 0], [0, 0, 0]], np.float32)
  other = np.array([[0.1, 0.8, 0.1], [0, 1, 0], [0, 0, 0]], np.float32)
  p, e, f = np.full(3, 1 / 3), np.eye(3)[0], other[0]
  for last_round, teacher in (
    # It was in the sum of round 4: its part is taken off.
    (4, f),
    # It was not: nothing is.
    (3, (own[0] + f) / 2),
  ):
    device = fd.Device(weights, own, np.int32(last_round))
    result = train(
      fd.Announcement(own + other, np.int32(4), np.int32(5)),
      [{'state': device, 'examples': examples}],
    )
    (after,) = result['states']
    np.testing.assert_allclose(
      after.weights[1], -0.3 * (p - e + 2 * (p - teacher)), atol=1e-6
    )
    # What it uploads is from before the step, and only of the label it has.
    np.testing.assert_allclose(
      after.outputs, [[1 / 3] * 3, [0] * 3, [0] * 3], atol=1e-6
    )
    assert after.round_num == 5
    np.testing.assert_array_equal(result['uploads'], after.outputs)
    # The regulariser is not in it.
    assert result['metrics']['loss'] == pytest.approx(np.log(3))


def test_uploads_are_the_mean_outputs_of_all_pools(in_process, make_cohort):
  """With one batch they are those of the first weights."""
  setting = toys.make_setting(['small', 'small'])
  built = _build(setting)
  start = built.initialize(1)
  cohorts = {'a': make_cohort('06'), 'b': make_cohort('07')}
  state, metrics = built.next(start, cohorts, 1)
  expected = np.zeros((3, 3))
  for name, cohort in cohorts.items():
    probs = _softmax(_logits(start.pools[name].start.weights, cohort[0]['x']))
    for label in range(3):
      expected[label] += probs[cohort[0]['y'] == label].mean(axis=0)
  np.testing.assert_allclose(state.total, expected, atol=1e-6)
  assert state.last_upload == 1
  assert metrics['exchange/labels'] == 3
  assert metrics['exchange/devices_per_label'] == pytest.approx(2)


def _train(setting, cohorts, **groups):
  """Returns all clients' models after a round of each of the cohorts."""
  built = _build(setting, **groups)
  state = built.initialize(1)
  for round_num, cohort in enumerate(cohorts, start=1):
    state, _ = built.next(state, {'a': cohort}, round_num)
  return built.models(state)['a']


def test_single_device_and_no_regulariser_are_local_training(
  in_process, make_cohort
):
  setting = _only(toys.make_setting(['small']), '06')
  rounds = [make_cohort('06')] * 3
  (alone,) = _train(setting, rounds)
  (unregularised,) = _train(setting, rounds, fd={'gamma': 0.0})
  toys.assert_same(alone, unregularised)
  update = client_update.build_client_models(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config_lib.ClientConfig(),
  )
  weights = setting.pools[0].model.initialize(1, 'a')
  for cohort in rounds:
    weights = update(weights, cohort)['models'][0].weights
  for a, b in zip(alone, weights):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_without_gamma_devices_do_not_know_of_each_other(
  in_process, make_cohort
):
  setting = _only(toys.make_setting(['small']), '06', '07')
  both, one = make_cohort('06', '07'), make_cohort('06')
  for gamma, is_alone in ((0.0, True), (1.0, False)):
    found = _train(setting, [both] * 2, fd={'gamma': gamma})
    alone = _train(setting, [one] * 2, fd={'gamma': gamma})
    shared = [any(np.array_equal(a[0], b[0]) for b in alone) for a in found]
    assert any(shared) == is_alone


def test_round_without_uploads_leaves_the_sum(in_process, make_cohort):
  setting = toys.make_setting(['small'])
  built = _build(setting)
  state, _ = built.next(built.initialize(1), {'a': make_cohort('06', '07')}, 1)
  idle, metrics = built.next(state, {'a': clients.Cohort([])}, 2)
  toys.assert_same(idle, state)
  assert metrics['exchange/labels'] == 0
  assert idle.last_upload == 1


def test_device_that_joins_late_starts_from_the_start(in_process, make_cohort):
  """And gets a teacher, as the others have answered already."""
  setting = _only(toys.make_setting(['small']), '06', '07')
  built = _build(setting)
  state = built.initialize(1)
  for round_num in range(1, 4):
    state, _ = built.next(state, {'a': make_cohort('06')}, round_num)
  known = {weights[0].tobytes() for weights in built.models(state)['a']}
  start = state.pools['a'].start.weights
  assert start[0].tobytes() in known
  train = fd.build_device_training(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config_lib.ClientConfig(),
    config_lib.FDConfig(),
  )
  late = make_cohort('07')
  expected = train(
    fd.Announcement(state.total, state.last_upload, np.int32(4)),
    [{'state': state.pools['a'].start, 'examples': late[0]}],
  )['states'][0]
  state, _ = built.next(state, {'a': late}, 4)
  assert any(
    np.allclose(weights[0], expected.weights[0], atol=1e-6)
    for weights in built.models(state)['a']
  )
  assert len(built.client_states(state)) == 2


def test_device_that_breaks_keeps_what_it_had(in_process, make_cohort):
  setting = _only(toys.make_setting(['small']), '06', '07')
  built = _build(setting)
  state, _ = built.next(built.initialize(1), {'a': make_cohort('06', '07')}, 1)
  broken = make_cohort('06', '07')
  broken[1]['x'] = np.full_like(broken[1]['x'], np.nan)
  after, metrics = built.next(state, {'a': broken}, 2)
  before, now = (s.pools['a'].clients for s in (state, after))
  np.testing.assert_array_equal(now[1], before[1])
  assert not np.array_equal(now[0], before[0])
  assert metrics['train/a/clients'] == metrics['train/a/clients_dropped'] == 1
  # Its labels are not in the sum.
  assert metrics['exchange/devices_per_label'] == pytest.approx(1)


def test_evaluation_is_of_a_sample_of_clients(in_process):
  setting = toys.make_setting()
  built = _build(setting, program={'evaluation_models': 2})
  for own in built.models(built.initialize(1)).values():
    assert len(own) == 2


# The network of the paper: two convolutions, pooling, two dense layers. Its
# published count of weights is that without biases.
def _paper_network():
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      layers.InputLayer((28, 28, 1)),
      layers.Conv2D(32, 3, use_bias=False, activation='relu'),
      layers.Conv2D(64, 3, use_bias=False, activation='relu'),
      layers.MaxPool2D(),
      layers.Flatten(),
      layers.Dense(128, use_bias=False, activation='relu'),
      layers.Dense(10, use_bias=False),
    ]
  )


_ROUNDS = 16


def _published_bits(traffic):
  """Returns the bits of one device in the paper's 16 global iterations."""
  pool = pools_lib.Pool('a', models.Model('cnn', _paper_network), ('0',), 1)
  sent = costs.round_costs([pool], {'a': traffic(pool)})
  return 8 * _ROUNDS * sum(sent.values())


def _setting_of(pool):
  setting = toys.make_setting(['small'])
  return setting._replace(
    pools=[pool], task=setting.task._replace(num_classes=10)
  )


def test_published_cost_of_fd():
  bits = _published_bits(lambda pool: fd.output_traffic(_setting_of(pool))['a'])
  assert bits == 102_400


def test_published_cost_of_federated_learning():
  # Devices with equally many examples do not send their number.
  bits = _published_bits(
    lambda pool: algorithm.Traffic(
      pool.model.num_parameters, pool.model.num_parameters
    )
  )
  assert bits == 1_228_439_552


def test_negative_gamma_is_refused():
  with pytest.raises(errors.ConfigError, match=r'fd\.gamma'):
    config_lib.FDConfig(gamma=-1.0)


def test_no_distillation_data_is_needed(in_process):
  assert _build(toys.make_setting(unlabelled=False))


def test_fields_that_it_does_not_read_are_known():
  reads = algorithm.algorithms.reads
  assert reads('fd', 'fd.gamma')
  assert reads('fd', 'program.evaluation_models')
  for field in ('server.optimizer', 'ds_fl.temperature', 'distillation.loss'):
    assert not reads('fd', field)
