"""The three algorithms: reductions to each other and golden rounds."""

import dataclasses

import numpy as np
import pytest

from tff_codist import algorithm
from tff_codist import codist  # noqa: F401
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist.testing import conformance
from tff_codist.testing import toys

_BASE = config_lib.Config(
  pools=config_lib.PoolsConfig(names=('a', 'b')),
  client=config_lib.ClientConfig(batch_size=4),
  distillation=config_lib.DistillationConfig(batch_size=8),
  periodic=config_lib.PeriodicConfig(period=2, steps=3, learning_rate=0.01),
  merged=config_lib.MergedConfig(
    distillation_weight=(0.3,), steps=2, learning_rate=0.01
  ),
)


def _config(name, pools=('a', 'b'), **groups):
  config = dataclasses.replace(
    _BASE,
    algorithm=config_lib.AlgorithmConfig(name),
    pools=config_lib.PoolsConfig(
      names=pools, models=('small',), clients_fraction=(1.0,)
    ),
  )
  return config_lib.change(config, **groups)


def _build(setting, name, **groups):
  pools = tuple(pool.name for pool in setting.pools)
  config = _config(name, pools, **groups)
  return algorithm.algorithms[name](setting, config)


def _models_after(setting, rounds, name, **groups):
  built = _build(setting, name, **groups)
  state = conformance.run_rounds(built, setting, range(1, rounds + 1))
  return {name: weights for name, (weights,) in built.models(state).items()}


@pytest.mark.parametrize('check', conformance.PROPERTIES)
@pytest.mark.parametrize(
  'name', ['fed_avg', 'periodic_codist', 'merged_codist']
)
def test_conformance(in_process, name, check):
  check(lambda setting: _build(setting, name, server={'learning_rate': 0.05}))


@pytest.mark.parametrize(
  'name', ['fed_avg', 'periodic_codist', 'merged_codist']
)
def test_runtimes_agree(name):
  conformance.check_runtimes_agree(lambda setting: _build(setting, name))


@pytest.mark.parametrize(
  'name', ['fed_avg', 'periodic_codist', 'merged_codist']
)
def test_resume_is_bit_equal(context, tmp_path, name):
  conformance.check_resume_is_bit_equal(
    lambda setting: _build(setting, name), tmp_path
  )


def test_merged_with_weight_zero_is_fed_avg(context):
  setting = toys.make_setting()
  toys.assert_same(
    _models_after(
      setting, 3, 'merged_codist', merged={'distillation_weight': (0.0,)}
    ),
    _models_after(setting, 3, 'fed_avg'),
  )


def test_merged_during_warmup_is_fed_avg_and_differs_afterwards(context):
  setting = toys.make_setting()
  warm = {'merged': {'warmup_rounds': 2}}
  fed_avg = _models_after(setting, 2, 'fed_avg')
  toys.assert_same(_models_after(setting, 2, 'merged_codist', **warm), fed_avg)
  third = _models_after(setting, 3, 'merged_codist', **warm)
  plain = _models_after(setting, 3, 'fed_avg')
  for pool in ('a', 'b'):
    assert not np.array_equal(third[pool][0], plain[pool][0])


def test_round_whose_distillation_is_rejected_is_that_of_fed_avg(context):
  # α = 1: were a rejected pass merged, the models would stay as they are.
  setting = toys.make_setting()
  too_far = {'distillation_weight': (1.0,), 'learning_rate': 1e38}
  built = _build(setting, 'merged_codist', merged=too_far)
  cohorts = toys.load_cohorts(setting, 1)
  state, metrics = built.next(built.initialize(1), cohorts, 1)
  assert metrics['exchange/a/rejected'] == metrics['exchange/b/rejected'] == 1
  assert 'exchange/a/cosine' not in metrics
  toys.assert_same(
    {name: weights for name, (weights,) in built.models(state).items()},
    _models_after(setting, 1, 'fed_avg'),
  )


def test_weight_of_one_pool_leaves_the_other_alone(context):
  setting = toys.make_setting()
  merged = _models_after(
    setting, 1, 'merged_codist', merged={'distillation_weight': (0.0, 0.5)}
  )
  plain = _models_after(setting, 1, 'fed_avg')
  toys.assert_same(merged['a'], plain['a'])
  assert not np.array_equal(merged['b'][0], plain['b'][0])


@pytest.mark.parametrize('fields', [{'period': 4}, {'steps': 0}])
def test_periodic_that_never_distils_is_fed_avg(context, fields):
  setting = toys.make_setting()
  toys.assert_same(
    _models_after(setting, 3, 'periodic_codist', periodic=fields),
    _models_after(setting, 3, 'fed_avg'),
  )


def test_one_pool_is_fed_avg(context):
  setting = toys.make_setting(('small',))
  fed_avg = _models_after(setting, 2, 'fed_avg')
  for name in ('periodic_codist', 'merged_codist'):
    toys.assert_same(_models_after(setting, 2, name), fed_avg)


def test_pools_of_fed_avg_do_not_influence_each_other(context):
  both = _models_after(toys.make_setting(), 2, 'fed_avg')
  alone = _models_after(toys.make_setting(('small',)), 2, 'fed_avg')
  toys.assert_same(both['a'], alone['a'])


def test_distillation_only_does_not_depend_on_clients(context):
  # α = 1: the trajectory is U's alone, whatever the clients send.
  setting = toys.make_setting()
  built = _build(
    setting, 'merged_codist', merged={'distillation_weight': (1.0,)}
  )
  state = built.initialize(1)
  one, _ = built.next(state, toys.load_cohorts(setting, 1), 1)
  other, _ = built.next(state, toys.load_cohorts(setting, 7), 1)
  toys.assert_same(dict(built.models(one)), dict(built.models(other)))


def test_merged_step_with_plain_sgd_subtracts_both(context):
  # Rate 2 and α = 1/2: θ − g − d exactly, in one server step.
  setting = toys.make_setting()
  sgd = {'optimizer': 'fedavg', 'learning_rate': 2.0}
  merged = _models_after(
    setting,
    1,
    'merged_codist',
    server=sgd,
    merged={'distillation_weight': (0.5,)},
  )
  plain = {'optimizer': 'fedavg', 'learning_rate': 1.0}
  start = _build(setting, 'fed_avg').initialize(1)
  only_g = _models_after(setting, 1, 'fed_avg', server=plain)
  only_d = _models_after(
    setting,
    1,
    'merged_codist',
    server=plain,
    merged={'distillation_weight': (1.0,)},
  )
  for pool in ('a', 'b'):
    for m, g, d, x in zip(
      merged[pool], only_g[pool], only_d[pool], start[pool].weights
    ):
      np.testing.assert_allclose(m, g + d - x, atol=1e-6)


def test_order_of_pools_does_not_matter(context):
  # Both students of an exchange see the teachers from before it.
  setting = toys.make_setting()
  swapped = setting._replace(pools=setting.pools[::-1])
  for name in ('periodic_codist', 'merged_codist'):
    built, other = _build(setting, name), _build(swapped, name)
    state, reordered = built.initialize(1), other.initialize(1)
    for round_num in (1, 2):
      cohorts = toys.load_cohorts(setting, round_num)
      state, _ = built.next(state, cohorts, round_num)
      reordered, _ = other.next(reordered, cohorts, round_num)
    for pool in ('a', 'b'):
      toys.assert_same(built.models(state)[pool], other.models(reordered)[pool])


def test_periodic_replaces_the_model_and_keeps_the_server_optimizer(context):
  setting = toys.make_setting()
  built = _build(setting, 'periodic_codist')
  state = conformance.run_rounds(built, setting, range(1, 2))
  cohorts = toys.load_cohorts(setting, 2)
  after, metrics = built.next(state, cohorts, 2)
  plain = _build(setting, 'fed_avg')
  expected, _ = plain.next(
    type(state)(
      (name, pool._replace(distillation_optimizer=()))
      for name, pool in state.items()
    ),
    cohorts,
    2,
  )
  for name in ('a', 'b'):
    toys.assert_same(
      after[name].server_optimizer, expected[name].server_optimizer
    )
    distilled = [
      before - new
      for before, new in zip(expected[name].weights, after[name].weights)
    ]
    np.testing.assert_allclose(
      metrics[f'exchange/{name}/distillation_norm'],
      np.linalg.norm(np.concatenate([d.ravel() for d in distilled])),
      rtol=1e-4,
    )
    assert np.any(distilled[0])
  assert metrics['exchange/a/distillation_loss'] > 0


def test_equal_models_teach_each_other_nothing(context):
  # Same architecture and weights: the gradient is zero, not only small.
  setting = toys.make_setting(('large', 'large'))
  built = _build(setting, 'merged_codist')
  state = built.initialize(1)
  state['b'] = state['b']._replace(weights=state['a'].weights)
  _, metrics = built.next(state, toys.load_cohorts(setting, 1), 1)
  assert metrics['exchange/a/distillation_norm'] == 0
  assert metrics['exchange/b/distillation_norm'] == 0


def test_pools_start_from_different_weights(context):
  state = _build(toys.make_setting(('large', 'large')), 'fed_avg').initialize(1)
  assert not np.array_equal(state['a'].weights[0], state['b'].weights[0])


@pytest.mark.parametrize('name', ['periodic_codist', 'merged_codist'])
def test_distillation_data_is_required(name):
  with pytest.raises(errors.ConfigError, match='unlabelled examples'):
    _build(toys.make_setting(unlabelled=False), name)


def test_gate_keeps_students_from_bad_teachers(context):
  # Entropy above 0 of log C: nobody is sure enough to teach.
  setting = toys.make_setting()
  closed = {'max_teacher_entropy': 0.0}
  gated = _build(setting, 'merged_codist', distillation=closed)
  state, cohorts = gated.initialize(1), toys.load_cohorts(setting, 1)
  after, metrics = gated.next(state, cohorts, 1)
  assert metrics['exchange/a/teachers_refused'] == 1
  assert 'exchange/a/distillation_loss' not in metrics
  plain, _ = _build(setting, 'fed_avg').next(state, cohorts, 1)
  for pool in ('a', 'b'):
    toys.assert_same(after[pool].weights, plain[pool].weights)
    toys.assert_same(
      after[pool].distillation_optimizer, state[pool].distillation_optimizer
    )


def test_refused_teacher_of_two_leaves_the_other(context):
  # Pool c answers uniformly, the others are sure: c teaches nobody and learns.
  setting = toys.make_setting(('small', 'small', 'small'))
  built = _build(
    setting, 'merged_codist', distillation={'max_teacher_entropy': 0.9}
  )
  alone = toys.make_setting(('small', 'small'))
  state, cohorts = built.initialize(1), toys.load_cohorts(setting, 1)
  sure = tuple(10 * w for w in state['a'].weights)
  for name in ('a', 'b'):
    state[name] = state[name]._replace(weights=sure)
  state['c'] = state['c']._replace(weights=tuple(0 * w for w in sure))
  after, metrics = built.next(state, cohorts, 1)
  refused = [metrics[f'exchange/{p}/teachers_refused'] for p in 'abc']
  assert refused == [1, 1, 0]
  del state['c']
  expected, _ = _build(alone, 'merged_codist').next(state, cohorts, 1)
  for name in ('a', 'b'):
    toys.assert_same(after[name].weights, expected[name].weights)


def test_teachers_weigh_equally_or_by_clients(context):
  # Pools a, b, c have 12, 6 and 6 clients; for c, a weighs 2/3 or 1/2.
  setting = toys.make_setting(('small', 'small', 'small'))
  one_step = {'learning_rate': 1e-3, 'steps': 1}

  def metrics_of(weighting, weights):
    built = _build(
      setting,
      'merged_codist',
      distillation={'teacher_weighting': weighting},
      merged=one_step,
    )
    state = built.initialize(1)
    for name, value in weights.items():
      state[name] = state[name]._replace(weights=value)
    return built.next(state, toys.load_cohorts(setting, 1), 1)[1]

  def constant(*logits):
    return np.zeros((4, 3), np.float32), np.array(logits, np.float32)

  # The mean of the teachers' logits is the student's exactly if a weighs 2/3.
  weights = {'a': constant(3, 0, 0), 'b': constant(0, 6, 0)}
  weights['c'] = constant(2, 2, 0)
  by_clients = metrics_of('clients', weights)
  equal = metrics_of('equal', weights)
  assert by_clients['exchange/c/distillation_loss'] == pytest.approx(
    0, abs=1e-6
  )
  assert equal['exchange/c/distillation_loss'] > 0.01


def test_norm_of_noise_is_warned_of(caplog):
  private = {'mechanism': ('gaussian',), 'clip': (1.0,)}
  uniform = {'weighting': 'uniform', 'batch_size': 4}
  noise = {'sources': ('noise',)}
  for match_norm in (False, True):
    caplog.clear()
    _build(
      toys.make_setting(),
      'merged_codist',
      merged={'match_norm': match_norm},
      privacy=private,
      client=uniform,
      unlabelled=noise,
    )
    assert ('norm of its noise' in caplog.text) == match_norm
