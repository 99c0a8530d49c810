"""Aggregation of a pool's clients with differential privacy, by name.

Every mechanism clips each client's pseudo-gradient g_k to an L2 norm of at most
C over all of its tensors, adds Gaussian noise to the sum over the cohort, and
divides by m, the *expected* number of clients: a denominator that depended on
who takes part would be a release of its own.

    ĝ = (Σ_k clip(g_k, C) + N(0, (z·C)²·I)) / m

Noise comes from the operating system's entropy, or the clock, and not from the
run's seed, which is published with the run.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Optional

import dp_accounting
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import pools as pools_lib
from tff_codist import randomness
from tff_codist import registry

Factory = tff.aggregators.UnweightedAggregationFactory
BuildFactoryFn = Callable[
  [config_lib.PrivacyConfig, pools_lib.Pool, int], Optional[Factory]
]

# Functions `(config of one pool, pool, run's seed) -> aggregation factory`, of
# which `none` gives `None`; they read the fields under which they are
# registered. The tuples of the config have one element, the pool's.
mechanisms: registry.Registry[BuildFactoryFn] = registry.Registry('mechanism')

_FIELDS = tuple(
  f'privacy.{name}'
  for name in (
    'noise_multiplier',
    'clip',
    'delta',
    'max_epsilon',
    'accountant',
    'reproducible_noise',
  )
)


@mechanisms.register('none')
def _none(config, pool, seed):
  del config, pool, seed


@mechanisms.register('gaussian', *_FIELDS)
def _gaussian(config, pool, seed):
  """DP-FedAvg with a fixed clip (McMahan et al., arXiv 1710.06963)."""
  (z,), (clip,) = config.noise_multiplier, config.clip
  if config.reproducible_noise:
    query = _SeededGaussianSumQuery(clip, z * clip, _noise_seed(seed, pool))
  else:
    query = tfp.GaussianSumQuery(clip, z * clip)
  return _mean_of(query, pool)


@mechanisms.register(
  'adaptive_gaussian',
  *_FIELDS,
  'privacy.target_quantile',
  'privacy.clip_learning_rate',
  'privacy.clipped_count_stddev',
)
def _adaptive_gaussian(config, pool, seed):
  """A clip at a quantile of the norms (Andrew et al., arXiv 1905.03871).

  The count of clients below the clip is noised too, with σ_b, and the noise of
  the sum grows so that both together have the noise multiplier z.
  """
  del seed
  if config.reproducible_noise:
    raise errors.ConfigError(
      '--privacy.reproducible_noise with adaptive_gaussian',
      expected='a mechanism whose noise can be drawn from a seed',
      fix='choose gaussian or tree, or leave it out',
    )
  (z,), (clip,) = config.noise_multiplier, config.clip
  sigma_b = config.clipped_count_stddev or pool.cohort_size / 20
  if z >= 2 * sigma_b:
    raise errors.ConfigError(
      f'--privacy.noise_multiplier {z:g} with noise of {sigma_b:g} on the'
      f' count of clients below the clip, in pool {pool.name!r}',
      expected='less than twice that noise, as the count is released as well',
      fix='raise --privacy.clipped_count_stddev or --pools.cohort_size',
    )
  return tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
    noise_multiplier=float(z),
    clients_per_round=float(pool.cohort_size),
    initial_l2_norm_clip=float(clip),
    target_unclipped_quantile=config.target_quantile,
    learning_rate=config.clip_learning_rate,
    clipped_count_stddev=float(sigma_b),
  )


@mechanisms.register('tree', *_FIELDS)
def _tree(config, pool, seed):
  """DP-FTRL: noise of a binary tree (Kairouz et al., arXiv 2103.00039).

  The prefix sums of the rounds are noised, and a round releases how they
  change. A new tree starts with each epoch, so that a client is in each tree
  at most once.
  """
  (z,), (clip,) = config.noise_multiplier, config.clip
  if pool.sampling != 'epochs':
    raise errors.ConfigError(
      f'--pools.sampling {pool.sampling} with the mechanism tree',
      expected='epochs, which bounds how often a client takes part',
      fix='set --pools.sampling epochs',
    )
  noise_seed = None
  if config.reproducible_noise:
    noise_seed = int(_noise_seed(seed, pool)[0])
  query = tfp.TreeResidualSumQuery.build_l2_gaussian_query(
    float(clip),
    float(z),
    record_specs=tuple(
      tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in pool.model.weights_type
    ),
    noise_seed=noise_seed,
  )
  rounds = clients.rounds_per_epoch(len(pool.client_ids), pool.cohort_size)
  restart = tfp.restart_query.PeriodicRoundRestartIndicator(period=rounds)
  return _mean_of(tfp.restart_query.RestartQuery(query, restart), pool)


class _SeededGaussianSumQuery(tfp.GaussianSumQuery):
  """A Gaussian sum whose noise is a function of a seed and of the round."""

  _GlobalState = collections.namedtuple(
    '_GlobalState', ['l2_norm_clip', 'stddev', 'seed']
  )

  def __init__(self, l2_norm_clip: float, stddev: float, seed: Sequence[int]):
    super().__init__(l2_norm_clip, stddev)
    self._seed = seed

  def initial_global_state(self):
    return self._GlobalState(
      tf.cast(self._l2_norm_clip, tf.float32),
      tf.cast(self._stddev, tf.float32),
      tf.constant(self._seed, tf.int32),
    )

  def get_noised_result(self, sample_state, global_state):
    fold_in = tf.random.experimental.stateless_fold_in
    leaves = tf.nest.flatten(sample_state)
    noised = [
      leaf
      + tf.random.stateless_normal(
        tf.shape(leaf),
        fold_in(global_state.seed, index),
        stddev=global_state.stddev,
      )
      for index, leaf in enumerate(leaves)
    ]
    event = dp_accounting.GaussianDpEvent(
      global_state.stddev / global_state.l2_norm_clip
    )
    return (
      tf.nest.pack_sequence_as(sample_state, noised),
      global_state._replace(seed=fold_in(global_state.seed, len(leaves))),
      event,
    )


def _mean_of(query: tfp.SumAggregationDPQuery, pool: pools_lib.Pool) -> Factory:
  mean = tfp.NormalizedQuery(query, denominator=float(pool.cohort_size))
  return tff.aggregators.DifferentiallyPrivateFactory(mean)


def _noise_seed(seed: int, pool: pools_lib.Pool):
  return randomness.derive_seed(seed, 'privacy noise', pool.name)


def build_aggregators(
  pools: Sequence[pools_lib.Pool], config: config_lib.Config
) -> list[Optional[Factory]]:
  """Builds each pool's aggregation of clients with differential privacy.

  Args:
    pools: The pools.
    config: The groups `privacy`, and `client` and `pools`, which must fit it.

  Returns:
    An unweighted aggregation factory for each pool, `None` for mechanism
    `none`.

  Raises:
    UnknownNameError: If there is no such mechanism.
    ConfigError: If something else would break the guarantee.
  """
  privacy = config.privacy
  fields = {
    field: config.pools.per_pool(f'privacy.{field}', getattr(privacy, field))
    for field in ('mechanism', 'noise_multiplier', 'clip')
  }
  factories = []
  for pool in pools:
    own = {field: (values[pool.name],) for field, values in fields.items()}
    own = {field: (values[pool.name],) for field, values in fields.items()}
    of_pool = dataclasses.replace(privacy, **own)
    build = mechanisms[of_pool.mechanism[0]]
    factories.append(build(of_pool, pool, config.seed))
  if any(factories):
    _check_nothing_else_is_released(config)
  return factories


def _check_nothing_else_is_released(config: config_lib.Config) -> None:
  """Checks that clients' data leave them only through a mechanism."""
  broken = (
    (
      config.client.weighting != 'uniform',
      f'--client.weighting {config.client.weighting}',
      'uniform weights: a client with many examples would count for more than '
      'the clip allows',
      'set --client.weighting uniform',
    ),
    (
      config.client.aggregator != 'mean',
      f'--client.aggregator {config.client.aggregator}',
      'no other aggregator: its state depends on clients without noise',
      'leave out --client.aggregator',
    ),
    (
      'clients' in config.unlabelled.sources,
      f'--unlabelled.sources {" ".join(config.unlabelled.sources)}',
      'public distillation data: examples of training clients would be used '
      'without noise',
      'choose another source, such as held_out or tfds:NAME',
    ),
    (
      config.task.validation_clients > 0,
      f'--task.validation_clients {config.task.validation_clients}',
      'no training clients whose labels the server sees',
      'leave out --task.validation_clients',
    ),
  )
  for is_broken, found, expected, fix in broken:
    if is_broken:
      raise errors.ConfigError(
        f'{found} with differential privacy', expected=expected, fix=fix
      )
