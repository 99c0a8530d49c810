"""Mechanisms: what they release, on both runtimes."""

import collections
import secrets

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import client_update
from tff_codist import codist
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist.privacy import accounting
from tff_codist.privacy import ledger
from tff_codist.privacy import mechanisms
from tff_codist.testing import toys

_MECHANISMS = ('gaussian', 'adaptive_gaussian', 'tree')
_COHORT = 4


@pytest.fixture(autouse=True)
def allow_any_noise(monkeypatch):
  """With noise too small to protect anyone, the mean itself shows."""
  monkeypatch.setattr(accounting, '_LEAST_NOISE', 0)


def _pool(sampling='fixed', num_clients=12):
  return pools_lib.Pool(
    name='small',
    model=models.Model('small', toys.MODELS['small']),
    client_ids=tuple(f'{i:02}' for i in range(num_clients)),
    cohort_size=_COHORT,
    sampling=sampling,
  )


def _config(mechanism, *, seed=1, **privacy):
  fields = {'noise_multiplier': (1e-6,), 'clip': (1.0,), **privacy}
  return config_lib.change(
    config_lib.Config(seed=seed),
    pools={
      'names': ('small',),
      'models': ('small',),
      'clients_fraction': (1.0,),
    },
    client={'weighting': 'uniform'},
    unlabelled={'sources': ('none',)},
    privacy={'mechanism': (mechanism,), **fields},
  )


def _process(mechanism, *, seed=1, **privacy):
  """Returns the aggregation process of a pool, for its weights."""
  sampling = 'epochs' if mechanism == 'tree' else 'fixed'
  pool = _pool(sampling)
  (protection,) = mechanisms.build_protections(
    [pool], _config(mechanism, seed=seed, **privacy)
  )
  return protection.aggregator.create(pool.model.weights_type)


def _updates(*norms):
  """Returns one update for each norm, all in one direction."""
  shapes = [leaf.shape for leaf in _pool().model.weights_type]
  size = sum(np.prod(shape, dtype=int) for shape in shapes)
  return [
    tuple(np.full(shape, norm / np.sqrt(size), np.float32) for shape in shapes)
    for norm in norms
  ]


def _norm(update):
  return np.sqrt(
    sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in update)
  )


@pytest.mark.parametrize('mechanism', _MECHANISMS)
def test_divides_the_clipped_sum_by_the_expected_cohort(mechanism, context):
  process = _process(mechanism)
  # Norms 0.5, 3 and 10 become 0.5, 1 and 1; three clients came, not four.
  output = process.next(process.initialize(), _updates(0.5, 3.0, 10.0))
  np.testing.assert_allclose(_norm(output.result), 2.5 / _COHORT, rtol=1e-4)


@pytest.mark.parametrize('mechanism', _MECHANISMS)
def test_one_client_moves_the_mean_by_at_most_its_clip(mechanism, context):
  process = _process(mechanism)
  output = process.next(process.initialize(), _updates(1e6))
  assert _norm(output.result) <= 1.0 / _COHORT * (1 + 1e-4)


@pytest.mark.parametrize('mechanism', _MECHANISMS)
def test_noise_has_the_stated_variance(mechanism, context):
  # The layer of 40,000 weights gives the variance to 1 %.
  weights_type = tff.StructWithPythonType(
    [tff.TensorType(np.float32, (200, 200))], tuple
  )
  model = collections.namedtuple('Model', ['weights_type'])(weights_type)
  sampling = 'epochs' if mechanism == 'tree' else 'fixed'
  pool = _pool(sampling)._replace(model=model)
  config = _config(
    mechanism, noise_multiplier=(2.0,), clip=(0.5,), clipped_count_stddev=1.25
  )
  (protection,) = mechanisms.build_protections([pool], config)
  process = protection.aggregator.create(weights_type)
  nothing = [(np.zeros((200, 200), np.float32),)] * _COHORT
  state = process.initialize()
  output = process.next(state, nothing)
  (first,) = output.result
  z = 2.0
  if mechanism == 'adaptive_gaussian':
    # z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2, with sigma_b = 1.25.
    z = (2.0**-2 - 2.5**-2) ** -0.5
  expected = z * 0.5 / _COHORT
  np.testing.assert_allclose(np.std(first), expected, rtol=0.02)
  assert abs(np.mean(first)) < 5 * expected / 200
  (second,) = process.next(output.state, nothing).result
  correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
  if mechanism == 'tree':
    # A release takes back noise of the one before: prefix sums share it.
    assert correlation < -0.5
    assert np.var(first + second) < np.var(first) + np.var(second)
  else:
    assert abs(correlation) < 5 / 200


@pytest.mark.parametrize('mechanism', _MECHANISMS)
def test_noise_is_not_a_function_of_the_published_seed(mechanism, context):
  tf.random.set_seed(7)
  first, second = (
    _first_noise(_process(mechanism, noise_multiplier=(0.1,))) for _ in range(2)
  )
  assert not np.array_equal(first, second)


@pytest.mark.parametrize('mechanism', ['gaussian', 'tree'])
def test_reproducible_noise_is_a_function_of_the_seed(mechanism, context):
  key = {'noise_multiplier': (0.1,), 'reproducible_noise': True}
  first, again, other = (
    _first_noise(_process(mechanism, seed=seed, **key)) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


def _first_noise(process):
  output = process.next(process.initialize(), _updates(0.0))
  return output.result[0]


def test_noise_of_a_tree_starts_from_entropy(monkeypatch, context):
  monkeypatch.setattr(secrets, 'randbits', lambda bits: 7)
  one, same = (_process('tree', noise_multiplier=(1.0,)) for _ in range(2))
  monkeypatch.setattr(secrets, 'randbits', lambda bits: 8)
  other = _process('tree', noise_multiplier=(1.0,))
  np.testing.assert_array_equal(_first_noise(one), _first_noise(same))
  assert not np.array_equal(_first_noise(one), _first_noise(other))


def test_seeded_noise_differs_between_rounds_and_tensors(context):
  process = _process(
    'gaussian', noise_multiplier=(1.0,), reproducible_noise=True
  )
  output = process.next(process.initialize(), _updates(0.0))
  again = process.next(output.state, _updates(0.0))
  one, other = output.result, again.result
  assert not np.array_equal(one[0], other[0])
  leaves = [leaf.ravel()[:10] for leaf in (*one, *other)]
  assert len({leaf.tobytes() for leaf in leaves}) == len(leaves)


def test_adaptive_clip_finds_the_quantile(context):
  process = _process(
    'adaptive_gaussian',
    clip=(1.0,),
    target_quantile=0.75,
    clip_learning_rate=0.5,
  )
  state = process.initialize()
  for _ in range(60):
    output = process.next(state, _updates(1.0, 2.0, 4.0, 8.0))
    state = output.state
  # Three of four norms are below a clip between 4 and 8.
  clip = state.query_state.numerator_state.sum_state.l2_norm_clip
  assert 3.9 < clip < 8.1


def test_tree_starts_anew_with_each_epoch(context):
  process = _process('tree', noise_multiplier=(1.0,))
  state, levels = process.initialize(), []
  for _ in range(4):
    state = process.next(state, _updates(0.0)).state
    levels.append(
      int(
        state.query_state.numerator_state.inner_query_state.tree_state.level_buffer_idx[
          0
        ]
      )
    )
  # Epochs have 12 // 4 = 3 rounds; the fourth is the first of a new tree.
  assert levels[3] == levels[0]


def test_cohort_without_clients_releases_noise_alone(context):
  process = _process('gaussian', noise_multiplier=(1.0,))
  output = process.next(process.initialize(), [])
  assert 0 < _norm(output.result) < 100


def test_without_noise_and_clip_it_is_fed_avg_with_the_expected_count(context):
  setting = toys.make_setting(['small'], unlabelled=False)
  key = {'names': ('a',), 'models': ('small',), 'clients_fraction': (1.0,)}
  plain = config_lib.change(
    config_lib.Config(),
    pools=key,
    client={'weighting': 'uniform'},
    unlabelled={'sources': ('none',)},
  )
  private = config_lib.change(
    plain,
    privacy={
      'mechanism': ('gaussian',),
      'noise_multiplier': (1e-9,),
      'clip': (1e3,),
    },
  )
  cohorts = toys.load_cohorts(setting, 1)
  (left, _), (right, metrics) = (
    built.next(built.initialize(1), cohorts, 1)
    for built in (
      codist.build_fed_avg(setting, plain),
      codist.build_fed_avg(setting, private),
    )
  )
  for a, b in zip(left['a'].weights, right['a'].weights):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  # Exact sums over clients would be releases without noise.
  assert set(metrics) == {
    'train/a/update_rejected',
    'time/clients_seconds',
    'time/server_seconds',
  }
  assert right['a'].releases == 1


def test_metrics_are_released_with_their_noise(context):
  # Four clients of four: the means are of shares in [0, 1], times log C.
  release = _metrics_release(noise_multiplier=1e-6)
  num_classes = _pool().model.num_classes
  sums = [
    _sums(loss=2.0, correct=1.0, labels=4.0),
    _sums(loss=0.0, correct=4.0, labels=4.0),
    _sums(loss=1e9, correct=0.0, labels=4.0),
    _sums(loss=float('nan'), correct=0.0, labels=4.0),
  ]
  output = release.next(release.initialize(), sums)
  most = np.log(num_classes)
  np.testing.assert_allclose(
    output.result['loss'], (0.5 + 0 + 2 * most) / 4, rtol=1e-4
  )
  np.testing.assert_allclose(output.result['accuracy'], 1.25 / 4, rtol=1e-4)


def test_metrics_have_the_stated_noise(in_process):
  release = _metrics_release(noise_multiplier=3.0)
  state = release.initialize()
  accuracies = [
    float(release.next(state, []).result['accuracy']) for _ in range(400)
  ]
  # On a sum of vectors of a norm of at most sqrt(2); 400 draws give 10 %.
  expected = 3.0 * np.sqrt(2) / _COHORT
  np.testing.assert_allclose(np.std(accuracies), expected, rtol=0.15)


def _metrics_release(noise_multiplier):
  config = _config('gaussian', metrics_noise_multiplier=noise_multiplier)
  (protection,) = mechanisms.build_protections([_pool()], config)
  sums_type = tff.StructWithPythonType(
    [(name, np.float32) for name in _sums()], collections.OrderedDict
  )
  return client_update.build_metrics_release(protection.metrics, sums_type)


def _sums(**values):
  names = ('loss', 'correct', 'labels', 'examples', 'clients')
  return collections.OrderedDict(
    (name, np.float32(values.get(name, 0))) for name in names
  )


def test_noised_metrics_are_in_the_round_and_in_epsilon(in_process):
  setting = toys.make_setting(['small'], unlabelled=False)
  config = config_lib.change(
    _config('gaussian', noise_multiplier=(1.0,)),
    pools={'names': ('a',)},
  )
  noised = config_lib.change(config, privacy={'metrics_noise_multiplier': 2.0})
  built = codist.build_fed_avg(setting, noised)
  _, metrics = built.next(built.initialize(1), toys.load_cohorts(setting, 1), 1)
  assert {'train/a/loss', 'train/a/accuracy'} <= set(metrics)
  assert 'train/a/clients' not in metrics
  (one,), (other,) = (
    ledger.planned_releases(setting.pools, c) for c in (config, noised)
  )
  assert other.gaussians[0].noise_multiplier == pytest.approx(
    (1.0 + 2.0**-2) ** -0.5
  )
  assert one.gaussians[0].noise_multiplier == 1.0


def test_accountant_knows_every_mechanism():
  assert {'none', *accounting.MECHANISMS} == {*mechanisms.mechanisms.names()}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'client': {'weighting': 'examples'}}, 'weighting uniform'),
    (
      {'client': {'weighting': 'uniform', 'aggregator': 'robust'}},
      'aggregator',
    ),
    ({'unlabelled': {'sources': ('clients',)}}, 'public distillation data'),
    ({'task': {'validation_clients': 3}}, 'validation_clients'),
  ],
)
def test_what_would_break_the_guarantee_is_refused(change, message):
  config = config_lib.change(_config('gaussian'), **change)
  with pytest.raises(errors.ConfigError, match=message):
    mechanisms.build_protections([_pool()], config)


def test_fixed_cohorts_of_a_domain_are_refused():
  config = _config('gaussian', noise_multiplier=(1.0,))
  pool = _pool('fixed')._replace(domains=('animals',))
  with pytest.raises(errors.ConfigError, match='sampling poisson'):
    mechanisms.build_protections([pool], config)
  mechanisms.build_protections([pool._replace(sampling='poisson')], config)


def test_tree_needs_bounded_participation():
  with pytest.raises(errors.ConfigError, match='epochs'):
    mechanisms.build_protections([_pool('poisson')], _config('tree'))


def test_adaptive_clip_needs_noise_on_its_count():
  config = _config('adaptive_gaussian', noise_multiplier=(1.0,))
  with pytest.raises(errors.ConfigError, match='count of clipped clients'):
    mechanisms.build_protections([_pool()], config)


@pytest.mark.parametrize(
  'field, value',
  [
    ('noise_multiplier', (0.0,)),
    ('noise_multiplier', (-1.0,)),
    ('clip', (0.0,)),
    ('delta', 0.0),
    ('delta', 0.02),
    ('target_quantile', 1.0),
    ('max_epsilon', 0.0),
  ],
)
def test_values_out_of_range_are_refused(field, value):
  with pytest.raises(errors.ConfigError, match=f'privacy.{field}'):
    _config('gaussian', **{field: value})


def test_unknown_mechanism_names_the_nearest():
  with pytest.raises(errors.UnknownNameError, match="'gaussian'"):
    mechanisms.build_protections([_pool()], _config('gausian'))


def test_integers_are_taken_as_numbers(in_process):
  process = _process('gaussian', noise_multiplier=(1,), clip=(2,))
  process.next(process.initialize(), _updates(1.0))
