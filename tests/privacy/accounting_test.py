"""Epsilon against dp_accounting, tensorflow_privacy and closed forms."""

import dataclasses
import math
import pathlib
import subprocess
import sys

import dp_accounting
import pytest
from scipy import stats

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist.privacy import accounting

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# 500 clients, of which 100 are in the large model's pool too.
_SMALL = accounting.Releases('small', 500, 10, 1000, 1.0)
_LARGE = accounting.Releases('large', 100, 10, 1000, 1.0)
_NESTED = accounting.nested_groups({'small': 500, 'large': 100})
# Four epochs of 128 rounds, a tree each.
_TREE = accounting.Releases(
  'tree', 1280, 10, 4 * 128, 2.0, mechanism='tree', sampling='epochs'
)


def _change(releases, **changes):
  return dataclasses.replace(releases, **changes)


def _poisson(releases):
  """Returns a pool's Gaussian releases, as dp_accounting has them."""
  return dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(
      releases.cohort / releases.clients,
      dp_accounting.GaussianDpEvent(releases.noise_multiplier),
    ),
    releases.rounds,
  )


def _gaussian_delta(epsilon, mu):
  """Returns delta of a Gaussian mechanism with noise multiplier 1/mu.

  Balle and Wang, Improving the Gaussian Mechanism, ICML 2018, theorem 8.
  """
  return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(
    epsilon
  ) * stats.norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(
  ('clients', 'cohort', 'z', 'rounds', 'delta', 'pld', 'rdp'),
  [
    (342477, 50, 1.0, 1500, 1e-6, 0.0278, 0.6263),
    (342477, 50, 0.5, 1500, 1e-6, 1.7193, 3.3863),
    (3400, 100, 1.0, 1500, 1e-5, 7.459, 8.155),
    (500, 10, 1.0, 4000, 1e-4, 7.228, 7.967),
    (10, 1, 1.0, 100, 1e-5, 7.047, 7.899),
  ],
)
def test_epsilon_is_that_of_dp_accounting(
  clients, cohort, z, rounds, delta, pld, rdp
):
  releases = accounting.Releases('p', clients, cohort, rounds, z)
  for accountant, expected in (('pld', pld), ('rdp', rdp)):
    found = accounting.epsilon([releases], delta=delta, accountant=accountant)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('rounds', [1, 100, 4000])
def test_epsilon_of_all_clients_is_the_closed_form(rounds):
  releases = accounting.Releases('p', 50, 50, rounds, 20.0)
  found = accounting.epsilon([releases], delta=1e-5)
  mu = math.sqrt(rounds) / 20
  assert _gaussian_delta(found, mu) == pytest.approx(1e-5, rel=2e-3)


def test_pools_of_one_client_compose():
  """The example of CoDist, and the same by hand."""
  loss = accounting.privacy_loss([_SMALL, _LARGE], _NESTED, delta=1e-4)
  assert loss.by_pool == {
    'small': pytest.approx(3.307, rel=1e-3),
    'large': pytest.approx(22.63, rel=1e-3),
  }
  low, high = loss.by_group
  assert low[:2] == (('small',), 400)
  assert low.epsilon == loss.by_pool['small']
  assert high[:2] == (('small', 'large'), 100)
  assert high.epsilon == pytest.approx(23.24, rel=1e-3)
  by_hand = dp_accounting.pld.PLDAccountant()
  by_hand.compose(_poisson(_SMALL)).compose(_poisson(_LARGE))
  assert high.epsilon == pytest.approx(by_hand.get_epsilon(1e-4), rel=1e-4)
  assert loss.worst == high
  assert loss.clients == 500


def test_renyi_divergences_of_pools_add_up():
  found = accounting.epsilon([_SMALL, _LARGE], delta=1e-4, accountant='rdp')
  by_hand = dp_accounting.rdp.RdpAccountant()
  by_hand.compose(_poisson(_SMALL)).compose(_poisson(_LARGE))
  assert found == pytest.approx(by_hand.get_epsilon(1e-4))


def test_disjoint_pools_do_not_compose():
  groups = accounting.disjoint_groups({'small': 400, 'large': 100})
  loss = accounting.privacy_loss([_SMALL, _LARGE], groups, delta=1e-4)
  assert [group.epsilon for group in loss.by_group] == [
    loss.by_pool['small'],
    loss.by_pool['large'],
  ]
  assert loss.worst.pools == ('large',)


@pytest.mark.parametrize('accountant', config_lib.ACCOUNTANTS)
@pytest.mark.parametrize(
  ('field', 'values'),
  [
    ('rounds', [0, 1, 10, 500, 1000, 1001]),
    ('cohort', [1, 10, 50, 99, 100]),
    ('clients', [1000, 101, 100, 10]),
    ('noise_multiplier', [100.0, 4.0, 1.0, 0.99, 0.3]),
  ],
)
def test_epsilon_increases(accountant, field, values):
  found = [
    accounting.epsilon(
      [_change(_LARGE, **{field: value})], delta=1e-4, accountant=accountant
    )
    for value in values
  ]
  assert found == sorted(set(found))


@pytest.mark.parametrize('accountant', config_lib.ACCOUNTANTS)
def test_epsilon_decreases_with_delta(accountant):
  found = [
    accounting.epsilon([_LARGE], delta=delta, accountant=accountant)
    for delta in (1e-2, 1e-3, 1e-6, 1e-9, 1e-11)
  ]
  assert found == sorted(set(found))


def test_pld_is_within_rdp_also_where_its_numbers_end():
  for delta in (1e-3, 1e-9, 1e-15):
    pld, rdp = (
      accounting.epsilon([_LARGE], delta=delta, accountant=accountant)
      for accountant in ('pld', 'rdp')
    )
    assert 0 < pld <= rdp < math.inf
  hopeless = _change(_LARGE, noise_multiplier=1e-4)
  assert accounting.epsilon([hopeless], delta=1e-4) > 1e6


def test_nothing_released_costs_nothing():
  assert accounting.epsilon([], delta=1e-5) == 0
  assert accounting.epsilon([_change(_SMALL, rounds=0)], delta=1e-5) == 0


def test_adaptive_clipping_costs_as_much_as_its_total_noise():
  adaptive = _change(_SMALL, cohort=40, mechanism='adaptive_gaussian')
  # TFF's default: σ_b = m/20 = 2.
  assert adaptive.sum_noise_multiplier == pytest.approx(
    (1.0**-2 - 4.0**-2) ** -0.5
  )
  given = _change(adaptive, clipped_count_stddev=0.7)
  for releases, count_stddev in ((adaptive, 2.0), (given, 0.7)):
    assert releases.noise_multiplier**-2 == pytest.approx(
      releases.sum_noise_multiplier**-2 + (2 * count_stddev) ** -2
    )
    both = dp_accounting.ComposedDpEvent(
      [
        dp_accounting.GaussianDpEvent(releases.sum_noise_multiplier),
        dp_accounting.GaussianDpEvent(2 * count_stddev),
      ]
    )
    by_hand = dp_accounting.rdp.RdpAccountant().compose(
      dp_accounting.PoissonSampledDpEvent(0.08, both), 1000
    )
    found = accounting.epsilon([releases], delta=1e-4, accountant='rdp')
    assert found == pytest.approx(by_hand.get_epsilon(1e-4))
  fixed = _change(adaptive, mechanism='gaussian')
  assert accounting.epsilon([adaptive], delta=1e-4) == accounting.epsilon(
    [fixed], delta=1e-4
  )


def test_noised_metrics_are_one_more_gaussian_on_the_sample():
  releases = _change(_SMALL, metrics_noise_multiplier=3.0)
  both = dp_accounting.ComposedDpEvent(
    [dp_accounting.GaussianDpEvent(z) for z in (1.0, 3.0)]
  )
  by_hand = dp_accounting.rdp.RdpAccountant().compose(
    dp_accounting.PoissonSampledDpEvent(0.02, both), 1000
  )
  found = accounting.epsilon([releases], delta=1e-4, accountant='rdp')
  assert found == pytest.approx(by_hand.get_epsilon(1e-4))


def test_noised_metrics_beside_a_tree_count_each_participation():
  releases = _change(_TREE, metrics_noise_multiplier=5.0)
  # 8 nodes in each of 4 trees, and 4 rounds of metrics.
  mu = math.sqrt(32 / 2.0**2 + 4 / 5.0**2)
  found = accounting.epsilon([releases], delta=1e-6)
  assert _gaussian_delta(found, mu) == pytest.approx(1e-6, rel=2e-3)


def test_epochs_without_a_tree_count_each_participation():
  # 50 rounds an epoch; the third has begun.
  releases = _change(_SMALL, sampling='epochs', rounds=101)
  assert releases.participations == 3
  found = accounting.epsilon([releases], delta=1e-4)
  assert _gaussian_delta(found, math.sqrt(3)) == pytest.approx(1e-4, rel=2e-3)


def test_tree_epsilon():
  rdp = accounting.epsilon([_TREE], delta=1e-6, accountant='rdp')
  assert rdp == pytest.approx(17.86, rel=1e-3)
  pld = accounting.epsilon([_TREE], delta=1e-6)
  # A Gaussian mechanism on the 8 nodes of each of 4 trees that hold a client.
  assert _gaussian_delta(pld, math.sqrt(32) / 2) == pytest.approx(
    1e-6, rel=2e-3
  )


@pytest.mark.parametrize(
  ('rounds', 'restart_rounds', 'steps'),
  [
    (512, None, [128] * 4),
    (1, None, [1]),
    (127, None, [127]),
    (128 + 5, None, [128, 5]),
    # Of the two trees in an epoch, a client is in one.
    (128 + 32, 64, [64, 32]),
    (256 + 100, 64, [64, 64, 64]),
  ],
)
def test_tree_is_accounted_for_as_in_tensorflow_privacy(
  rounds, restart_rounds, steps
):
  import tensorflow_privacy as tfp

  releases = _change(_TREE, rounds=rounds, restart_rounds=restart_rounds)
  orders = dp_accounting.rdp.RdpAccountant().orders
  rdp = tfp.compute_rdp_tree_restart(2.0, steps, orders)
  expected, _ = dp_accounting.rdp.compute_epsilon(orders, rdp, 1e-6)
  found = accounting.epsilon([releases], delta=1e-6, accountant='rdp')
  assert found == pytest.approx(expected)


@pytest.mark.parametrize('rounds_per_epoch', [1, 2, 5, 8, 13])
def test_tree_counts_the_nodes_that_a_client_can_be_in(rounds_per_epoch):
  def nodes_with(leaf, leaves):
    count, size = 0, 1
    while size <= leaves:
      count += (leaf // size + 1) * size <= leaves
      size *= 2
    return count

  for rounds in range(1, 3 * rounds_per_epoch):
    epochs, rest = divmod(rounds, rounds_per_epoch)
    expected = 0
    for leaves in [rounds_per_epoch] * epochs + [rest]:
      of_leaves = [nodes_with(leaf, leaves) for leaf in range(leaves)]
      expected += max(of_leaves, default=0)
    releases = accounting.Releases(
      *('p', 10 * rounds_per_epoch, 10, rounds, 1.0),
      mechanism='tree',
      sampling='epochs',
    )
    assert releases.gaussians == ((1.0, 1.0, expected),)


def test_tree_and_gaussian_pools_compose():
  loss = accounting.privacy_loss(
    [_SMALL, _TREE],
    accounting.groups_of({'small': ['a', 'b'], 'tree': ['b']}),
    delta=1e-6,
    accountant='rdp',
  )
  by_hand = dp_accounting.rdp.RdpAccountant()
  by_hand.compose(_poisson(_SMALL))
  by_hand.compose(dp_accounting.GaussianDpEvent(2.0), 32)
  assert loss.worst.epsilon == pytest.approx(by_hand.get_epsilon(1e-6))
  tighter = accounting.epsilon([_SMALL, _TREE], delta=1e-6)
  assert loss.by_pool['small'] < tighter < loss.worst.epsilon


@pytest.mark.parametrize(
  'releases',
  [
    _LARGE,
    _TREE,
    _change(_SMALL, mechanism='adaptive_gaussian', noise_multiplier=0.9),
    _change(_TREE, metrics_noise_multiplier=5.0),
    _change(_SMALL, sampling='epochs'),
  ],
)
def test_event_has_the_same_epsilon(releases):
  by_hand = dp_accounting.pld.PLDAccountant().compose(
    accounting.event(releases)
  )
  found = accounting.epsilon([releases], delta=1e-5)
  assert found == pytest.approx(by_hand.get_epsilon(1e-5), rel=1e-4)


def test_groups_are_the_clients_in_the_same_pools():
  groups = accounting.groups_of(
    {'a': ['1', '2', '3', '4'], 'b': ('3', '4', '5'), 'c': {'4', '5', '6', '7'}}
  )
  assert groups == (
    (('a',), 2),
    (('a', 'b'), 1),
    (('c',), 2),
    (('b', 'c'), 1),
    (('a', 'b', 'c'), 1),
  )


def test_groups_of_populations():
  sizes = {'large': 100, 'small': 500, 'medium': 100}
  assert accounting.nested_groups(sizes) == (
    (('small',), 400),
    (('large', 'small', 'medium'), 100),
  )
  assert accounting.disjoint_groups(sizes) == (
    (('large',), 100),
    (('small',), 500),
    (('medium',), 100),
  )


def test_pool_without_mechanism_protects_nobody():
  loss = accounting.privacy_loss([_LARGE], _NESTED, delta=1e-4)
  assert loss.by_pool['large'] < loss.by_pool['small'] == math.inf
  assert [group.epsilon for group in loss.by_group] == [math.inf] * 2


def test_loss_says_what_it_assumes():
  releases = [_SMALL, _change(_LARGE, sampling='fixed')]
  loss = accounting.privacy_loss(releases, _NESTED, delta=1e-4)
  assert not loss.is_bound
  unit, small, large = loss.assumptions
  assert 'added or removed' in unit
  assert 'probability 0.02' in small
  assert 'exactly 10 of 100 clients' in large
  assert 'not a proven bound' in large
  assert loss.by_pool['large'] == accounting.epsilon([_LARGE], delta=1e-4)
  assert accounting.privacy_loss([_SMALL], _NESTED, delta=1e-4).is_bound
  assert '50 rounds' in _change(_SMALL, sampling='epochs').assumption


def test_large_delta_is_a_warning():
  for delta, count in ((1 / 501, 0), (1 / 500, 1), (1e-2, 1)):
    loss = accounting.privacy_loss([_SMALL, _LARGE], _NESTED, delta=delta)
    assert len(loss.warnings) == count


def test_calibration_agrees_with_dp_accounting():
  groups = accounting.disjoint_groups({'small': 500})
  (found,) = accounting.calibrate(
    [_SMALL], groups, target_epsilon=2.0, delta=1e-5, accountant='rdp'
  )
  expected = dp_accounting.calibrate_dp_mechanism(
    dp_accounting.rdp.RdpAccountant,
    lambda z: _poisson(_change(_SMALL, noise_multiplier=z)),
    target_epsilon=2.0,
    target_delta=1e-5,
    bracket_interval=dp_accounting.ExplicitBracketInterval(0.5, 4.0),
    tol=1e-4,
  )
  assert found.noise_multiplier == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize('scaled', [None, ['large']])
@pytest.mark.parametrize('target', [0.8, 15.0])
def test_calibration_just_keeps_the_worst_client_within_the_target(
  scaled, target
):
  planned = [_change(_SMALL, noise_multiplier=3.0), _LARGE]
  small, large = found = accounting.calibrate(
    planned, _NESTED, target_epsilon=target, delta=1e-4, scaled=scaled
  )
  loss = accounting.privacy_loss(found, _NESTED, delta=1e-4)
  assert target * (1 - 1e-3) < loss.worst.epsilon <= target
  if scaled is None:
    ratio = small.noise_multiplier / large.noise_multiplier
    assert ratio == pytest.approx(3.0)
  else:
    assert small == planned[0]


def test_calibration_where_fixed_noise_takes_most_of_the_target():
  # The small pool alone takes 3.307.
  _, large = accounting.calibrate(
    [_SMALL, _LARGE],
    _NESTED,
    target_epsilon=3.4,
    delta=1e-4,
    scaled=['large'],
  )
  found = accounting.epsilon([_SMALL, large], delta=1e-4)
  assert 3.399 < found <= 3.4


def test_calibration_of_a_tree():
  groups = accounting.disjoint_groups({'tree': 1280})
  (found,) = accounting.calibrate(
    [_TREE], groups, target_epsilon=8.0, delta=1e-6
  )
  assert accounting.epsilon([found], delta=1e-6) == pytest.approx(8, rel=1e-3)


def test_target_that_no_noise_reaches():
  with pytest.raises(errors.ConfigError, match='other pools'):
    accounting.calibrate(
      [_SMALL, _LARGE],
      _NESTED,
      target_epsilon=3.0,
      delta=1e-4,
      scaled=['large'],
    )
  # σ_b = 10/20 bounds z below 1, with which the loss is 3.307.
  adaptive = _change(
    _SMALL, mechanism='adaptive_gaussian', noise_multiplier=0.5
  )
  groups = accounting.disjoint_groups({'small': 500})
  with pytest.raises(errors.ConfigError, match=r'epsilon 3\.307'):
    accounting.calibrate([adaptive], groups, target_epsilon=3.0, delta=1e-4)


def test_affordable_rounds_are_the_last_within_the_budget():
  def worst(rounds):
    some = accounting.truncate([_SMALL, _LARGE], rounds)
    return accounting.privacy_loss(some, _NESTED, delta=1e-4).worst.epsilon

  rounds = accounting.affordable_rounds(
    [_SMALL, _LARGE], _NESTED, target_epsilon=8.0, delta=1e-4
  )
  assert worst(rounds) <= 8 < worst(rounds + 1)


@pytest.mark.parametrize(('target', 'rounds'), [(30.0, 1000), (1e-3, 0)])
def test_affordable_rounds_all_and_none(target, rounds):
  assert rounds == accounting.affordable_rounds(
    [_SMALL, _LARGE],
    _NESTED,
    target_epsilon=target,
    delta=1e-4,
    accountant='rdp',
  )


def test_noise_in_proportion_to_the_sampling_rate():
  for exponent, ratio in ((0, 1), (0.5, math.sqrt(5)), (1, 5)):
    small, large = accounting.in_proportion([_SMALL, _LARGE], exponent)
    assert large.noise_multiplier == pytest.approx(
      ratio * small.noise_multiplier
    )
  # Less noise than both pools' noise on the count allows, 2·10/20.
  adaptive = [
    _change(one, mechanism='adaptive_gaussian', noise_multiplier=0.5)
    for one in (_SMALL, _LARGE)
  ]
  small, large = accounting.in_proportion(adaptive, 1)
  assert large.noise_multiplier == pytest.approx(5 * small.noise_multiplier)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'noise_multiplier': 0.0}, 'without noise there is no privacy'),
    ({'noise_multiplier': -1.0}, 'noise of -1.0'),
    ({'noise_multiplier': math.nan}, 'noise of nan'),
    ({'noise_multiplier': math.inf}, 'noise of inf'),
    ({'metrics_noise_multiplier': 0.0}, 'noise of 0.0'),
    ({'cohort': 501}, 'a cohort of 501 of 500 clients'),
    ({'cohort': 0}, 'cohort = 0'),
    ({'clients': 0}, 'clients = 0'),
    ({'rounds': -1}, 'rounds = -1'),
    ({'rounds': 1.5}, 'rounds = 1.5'),
    ({'mechanism': 'gausian'}, "use 'gaussian'"),
    ({'sampling': 'poison'}, "use 'poisson'"),
    ({'clipped_count_stddev': 1.0}, 'no effect'),
    ({'restart_rounds': 5}, 'no effect'),
    ({'mechanism': 'adaptive_gaussian'}, 'one below 1'),
    ({'mechanism': 'tree'}, "expected 'epochs'"),
    (
      {'mechanism': 'tree', 'sampling': 'epochs', 'restart_rounds': 20},
      'trees of 20 rounds in epochs of 50',
    ),
  ],
)
def test_wrong_releases(changes, message):
  with pytest.raises(errors.ConfigError, match=message):
    _change(_SMALL, **changes)


@pytest.mark.parametrize('delta', [0.0, -1e-5, 0.011, 1.0, math.nan])
def test_wrong_delta(delta):
  with pytest.raises(errors.ConfigError, match=r'at most 0\.01'):
    accounting.epsilon([_SMALL], delta=delta)


@pytest.mark.parametrize('target', [0.0, -1.0, math.nan, math.inf])
def test_wrong_target(target):
  terms = {'target_epsilon': target, 'delta': 1e-4}
  with pytest.raises(errors.ConfigError, match='a target epsilon'):
    accounting.calibrate([_SMALL, _LARGE], _NESTED, **terms)
  with pytest.raises(errors.ConfigError, match='a target epsilon'):
    accounting.affordable_rounds([_SMALL, _LARGE], _NESTED, **terms)


def test_wrong_names():
  with pytest.raises(errors.UnknownNameError, match="use 'pld'"):
    accounting.epsilon([_SMALL], delta=1e-4, accountant='plt')
  with pytest.raises(errors.UnknownNameError, match="use 'large'"):
    accounting.calibrate(
      [_SMALL, _LARGE],
      _NESTED,
      target_epsilon=8.0,
      delta=1e-4,
      scaled=['larg'],
    )


def test_import_loads_no_tensorflow():
  script = (
    'import sys\n'
    'from tff_codist.privacy import accounting\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run(
    [sys.executable, '-c', script], check=True, timeout=60, cwd=_ROOT
  )
