"""Aggregation of a pool's clients with differential privacy, by name.

Every mechanism clips each client's pseudo-gradient g_k to an L2 norm of at most
C over all of its tensors, adds Gaussian noise to the sum over the cohort, and
divides by m, the *expected* number of clients: a denominator that depended on
who takes part would be a release of its own.

    ĝ = (Σ_k clip(g_k, C) + N(0, (z·C)²·I)) / m

Noise comes from the operating system's entropy, and not from the run's seed,
which is published with the run.
"""

import collections
import math
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import dp_accounting
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_codist import client_update
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import pools as pools_lib
from tff_codist import randomness
from tff_codist import registry
from tff_codist.privacy import accounting
from tff_codist.privacy import ledger

Factory = tff.aggregators.UnweightedAggregationFactory


class Plan(NamedTuple):
  """What a mechanism is built for.

  Attributes:
    pool: The pool.
    releases: What the accountant takes the pool to release; `None` if no
      mechanism is asked for.
    clip: C.
    privacy: The configuration.
    seed: The run's seed.
  """

  pool: pools_lib.Pool
  releases: Optional[accounting.Releases]
  clip: float
  privacy: config_lib.PrivacyConfig
  seed: int


class Protection(NamedTuple):
  """How one pool's clients are protected.

  Attributes:
    aggregator: Aggregates their pseudo-gradients.
    metrics: Releases their metrics; `None` if they are not released.
  """

  aggregator: Factory
  metrics: Optional[client_update.MetricsRelease]


BuildFactoryFn = Callable[[Plan], Optional[Factory]]

# Functions `Plan -> aggregation factory`, of which `none` gives `None`; they
# read the fields under which they are registered.
mechanisms: registry.Registry[BuildFactoryFn] = registry.Registry('mechanism')

_FIELDS = tuple(
  f'privacy.{name}'
  for name in (
    'noise_multiplier',
    'clip',
    'metrics_noise_multiplier',
    'delta',
    'max_epsilon',
    'accountant',
    'reproducible_noise',
  )
)


@mechanisms.register('none')
def _none(plan):
  del plan


@mechanisms.register('gaussian', *_FIELDS)
def _gaussian(plan):
  """DP-FedAvg with a fixed clip (McMahan et al., arXiv 1710.06963)."""
  return _noised_mean(
    plan, plan.clip, plan.releases.noise_multiplier, purpose='updates'
  )


@mechanisms.register(
  'adaptive_gaussian',
  *_FIELDS,
  'privacy.target_quantile',
  'privacy.clip_learning_rate',
  'privacy.clipped_count_stddev',
)
def _adaptive_gaussian(plan):
  """A clip at a quantile of the norms (Andrew et al., arXiv 1905.03871).

  The count of clients below the clip is noised too, with σ_b, and the noise of
  the sum grows so that both together have the noise multiplier z.
  """
  if plan.privacy.reproducible_noise:
    raise errors.ConfigError(
      '--privacy.reproducible_noise with adaptive_gaussian',
      expected='a mechanism whose noise can be drawn from a seed',
      fix='choose gaussian or tree, or leave it out',
    )
  return tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
    noise_multiplier=float(plan.releases.noise_multiplier),
    clients_per_round=float(plan.pool.cohort_size),
    initial_l2_norm_clip=float(plan.clip),
    target_unclipped_quantile=plan.privacy.target_quantile,
    learning_rate=plan.privacy.clip_learning_rate,
    clipped_count_stddev=plan.releases.noise_limit / 2,
  )


@mechanisms.register('tree', *_FIELDS)
def _tree(plan):
  """DP-FTRL: noise of a binary tree (Kairouz et al., arXiv 2103.00039).

  The prefix sums of the rounds are noised, and a round releases how they
  change. A new tree starts with each epoch, so that a client is in each tree
  at most once.
  """
  pool = plan.pool
  if plan.privacy.reproducible_noise:
    noise_seed = int(_noise_seed(plan, 'updates')[0])
  else:
    # The query's own seed is the time, which `environment.json` tells.
    noise_seed = secrets.randbits(62)
  query = tfp.TreeResidualSumQuery.build_l2_gaussian_query(
    float(plan.clip),
    float(plan.releases.noise_multiplier),
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


def _noised_mean(
  plan: Plan, clip: float, noise_multiplier: float, *, purpose: str
) -> Factory:
  stddev = noise_multiplier * clip
  if plan.privacy.reproducible_noise:
    query = _SeededGaussianSumQuery(clip, stddev, _noise_seed(plan, purpose))
  else:
    query = tfp.GaussianSumQuery(clip, stddev)
  return _mean_of(query, plan.pool)


def _noise_seed(plan: Plan, purpose: str):
  return randomness.derive_seed(
    plan.seed, 'privacy noise', purpose, plan.pool.name
  )


def _noised_metrics(plan: Plan) -> Optional[client_update.MetricsRelease]:
  """Returns the release of loss and accuracy, a mean over clients each.

  A client sends its mean loss, as a share of log C and at most 1, and its
  accuracy: a vector of a norm of at most √2, which is noised as an update is.
  """
  noise_multiplier = plan.privacy.metrics_noise_multiplier
  if noise_multiplier is None:
    return None
  most_loss = math.log(plan.pool.model.num_classes)

  def report(sums):
    loss = tf.math.divide_no_nan(sums['loss'], sums['labels']) / most_loss
    return collections.OrderedDict(
      loss=tf.where(loss <= 1.0, loss, 1.0),
      accuracy=tf.math.divide_no_nan(sums['correct'], sums['labels']),
    )

  return client_update.MetricsRelease(
    report=report,
    aggregator=_noised_mean(
      plan, math.sqrt(2), noise_multiplier, purpose='metrics'
    ),
    summarize=lambda mean: collections.OrderedDict(
      loss=most_loss * mean['loss'], accuracy=mean['accuracy']
    ),
  )


def build_protections(
  pools: Sequence[pools_lib.Pool], config: config_lib.Config
) -> list[Optional[Protection]]:
  """Builds each pool's aggregation of clients with differential privacy.

  Args:
    pools: The pools.
    config: The group `privacy`, and all others, which must fit it.

  Returns:
    Each pool's protection, `None` for mechanism `none`.

  Raises:
    UnknownNameError: If there is no such mechanism.
    ConfigError: If something else would break the guarantee.
  """
  privacy = config.privacy
  names = config.pools.per_pool('privacy.mechanism', privacy.mechanism)
  clips = config.pools.per_pool('privacy.clip', privacy.clip)
  planned = {one.pool: one for one in ledger.planned_releases(pools, config)}
  if planned:
    _check_nothing_else_is_released(
      config, [pool for pool in pools if pool.name in planned]
    )
  protections = []
  for pool in pools:
    plan = Plan(
      pool, planned.get(pool.name), clips[pool.name], privacy, config.seed
    )
    aggregator = mechanisms[names[pool.name]](plan)
    protections.append(
      aggregator and Protection(aggregator, _noised_metrics(plan))
    )
  return protections


def _check_nothing_else_is_released(
  config: config_lib.Config, protected: Sequence[pools_lib.Pool]
) -> None:
  """Checks that clients' data leave them only as the accountant has it."""
  broken = (
    (
      any(pool.domains and pool.sampling == 'fixed' for pool in protected),
      '--pools.domains with --pools.sampling fixed',
      'cohorts from all clients of a pool: those of a fixed size pass over '
      'clients without an example in its domain, and the others take part more '
      'often than epsilon counts',
      'set --pools.sampling poisson',
    ),
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
      'clients' in config.unlabelled.shares,
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
