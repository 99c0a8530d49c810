"""CoDist: pools of clients whose models teach each other at the server.

Every pool i trains its own model θ_i by federated averaging with a server
optimizer. Between the pools there is only what happens at the server, on
unlabelled data U (symbols as in the paper):

    each round t, for each pool i:
      g_i ← federated pseudo-gradient over the cohort S_t^i   (client_update)

    FedAvg      (θ_i, o_i) ← ServerOpt(o_i, θ_i, g_i)

    PERIODIC    as FedAvg; and when t mod p = 0, for each pool i, from frozen
                copies of all models:  θ_i ← θ_i − d_i(s)

    MERGED      d_i ← distillation pseudo-gradient, teachers θ_j, j ≠ i
                h_i ← (1 − α_i)·g_i + α_i·d_i
                (θ_i, o_i) ← ServerOpt(o_i, θ_i, h_i)

All students of an exchange see the teachers as they were before it, so the
order of the pools does not matter.

References:
  Lichtarge et al., Heterogeneous Federated Learning Using Knowledge
  Codistillation, 2023. arXiv 2310.02549.
"""

import collections
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import config as config_lib
from tff_codist import distillation
from tff_codist import errors
from tff_codist import models
from tff_codist import randomness
from tff_codist import server_update
from tff_codist import teachers as teachers_lib
from tff_codist.privacy import mechanisms

_logger = logging.getLogger(__name__)


class PoolState(NamedTuple):
  """One pool's state at the server.

  Attributes:
    weights: θ_i.
    server_optimizer: o_i.
    aggregator: State of the aggregation over clients.
    distillation_optimizer: q_i, the distillation's Adam; `()` without one.
    releases: How many aggregates of the pool's clients there were: the ledger
      of differential privacy, an int64 scalar.
  """

  weights: models.Weights
  server_optimizer: object
  aggregator: object
  distillation_optimizer: object
  releases: np.int64


# The state of all three algorithms: {pool: PoolState}.
CodistState = collections.OrderedDict


class FederatedPools:
  """Federated averaging in every pool: the part that all methods share.

  Attributes:
    models: {pool: model}.
  """

  def __init__(self, setting: algorithm.Setting, config: config_lib.Config):
    """Builds each pool's client update and server update.

    Args:
      setting: Pools and task.
      config: The groups `client`, `server` and `privacy`.

    Raises:
      UnknownNameError: If a named optimizer, aggregator or mechanism does not
        exist.
      ConfigError: If the server optimizer cannot take a value, or the clients
        would not be protected as `privacy` says.
    """
    self.models = {pool.name: pool.model for pool in setting.pools}
    task = setting.task
    self._client_update = {
      pool.name: client_update.build_client_update(
        pool.model,
        setting.examples_type,
        task.preprocess,
        config.client,
        aggregator=protection and protection.aggregator,
        metrics=(
          protection.metrics if protection else client_update.SUMMED_METRICS
        ),
        uncounted=task.padding,
      )
      for pool, protection in zip(
        setting.pools, mechanisms.build_protections(setting.pools, config)
      )
    }
    self._server_update = {
      name: server_update.build_server_update(model, config.server)
      for name, model in self.models.items()
    }

  def initialize(self, seed: int) -> CodistState:
    """Returns every pool's fresh state; pools draw different weights."""
    state = CodistState()
    for name, model in self.models.items():
      weights = model.initialize(seed, name)
      state[name] = PoolState(
        weights=weights,
        server_optimizer=self._server_update[name].initialize(weights),
        aggregator=self._client_update[name].initialize(),
        distillation_optimizer=(),
        releases=np.int64(0),
      )
    return state

  def train(
    self, state: CodistState, cohorts: algorithm.Cohorts
  ) -> tuple[CodistState, dict[str, tuple], algorithm.Metrics]:
    """Runs every pool's clients.

    Args:
      state: The pools' state.
      cohorts: {pool: examples of its clients}.

    Returns:
      The state with new aggregators, {pool: g_i}, and metrics `train/<pool>/*`.
    """
    state, federated, metrics = CodistState(state), {}, {}
    started = time.monotonic()
    for name, pool in state.items():
      with errors.in_pool(name, getattr(cohorts[name], 'client_ids', ())):
        result = self._client_update[name].next(
          pool.aggregator, pool.weights, cohorts[name]
        )
      state[name] = pool._replace(
        aggregator=result['state'], releases=pool.releases + np.int64(1)
      )
      federated[name] = result['pseudo_gradient']
      for metric, value in result['metrics'].items():
        metrics[f'train/{name}/{metric}'] = value
    metrics['time/clients_seconds'] = time.monotonic() - started
    return state, federated, metrics

  def step(
    self, state: CodistState, pseudo_gradients: Mapping[str, tuple]
  ) -> tuple[CodistState, algorithm.Metrics]:
    """Takes every pool's server step.

    Args:
      state: The pools' state.
      pseudo_gradients: {pool: g_i}, or what a method puts in its place.

    Returns:
      The state with new weights and server optimizers, and metrics.
    """
    state, metrics = CodistState(state), {}
    started = time.monotonic()
    for name, pool in state.items():
      result = self._server_update[name].next(
        pool.server_optimizer, pool.weights, pseudo_gradients[name]
      )
      state[name] = pool._replace(
        weights=result['weights'], server_optimizer=result['state']
      )
      metrics[f'train/{name}/update_rejected'] = result['rejected']
    metrics['time/server_seconds'] = time.monotonic() - started
    return state, metrics


class Exchange:
  """Distillation of every pool's model from all others at the server.

  A teacher that the gate does not admit has no say. A student without an
  admitted teacher does not learn, nor does one whose pass is not finite.
  """

  def __init__(
    self,
    setting: algorithm.Setting,
    config: config_lib.Config,
    *,
    steps: int,
    learning_rate: float,
  ):
    """Builds each student's distillation; a single pool has no teacher.

    Args:
      setting: Pools, task and unlabelled data.
      config: The group `distillation`, and the seed.
      steps: Distillation steps of an exchange.
      learning_rate: Learning rate of the distillation's Adam.

    Raises:
      ConfigError: If there is no distillation data, the gate needs a
        validation set that is not there, or the task does not augment.
      UnknownNameError: If there is no such loss.
    """
    self._unlabelled = algorithm.require_unlabelled(setting, config)
    if config.distillation.augment and not setting.task.augments:
      raise errors.ConfigError(
        f'--distillation.augment with task {setting.task.name!r}',
        expected='a task that augments its inputs',
        fix='leave the flag out',
      )
    self._seed = config.seed
    self._steps = steps
    self._batch_size = config.distillation.batch_size
    self._gate = teachers_lib.Gate(setting, config.distillation)
    # Each model's weight in the mean of the teachers' logits.
    self._say = {
      pool.name: len(pool.client_ids)
      if config.distillation.teacher_weighting == 'clients'
      else 1
      for pool in setting.pools
    }
    pool_models = {pool.name: pool.model for pool in setting.pools}
    self._teachers = {
      name: [other for other in pool_models if other != name]
      for name in pool_models
    }
    self._distillation = {
      name: distillation.build_distillation(
        model,
        [pool_models[teacher] for teacher in self._teachers[name]],
        setting.examples_type['x'],
        setting.task.preprocess,
        config.distillation,
        learning_rate=learning_rate,
        uncounted=setting.task.last_tokens,
      )
      for name, model in pool_models.items()
      if self._teachers[name]
    }

  def initialize(self, state: CodistState) -> CodistState:
    """Adds the state of each pool's distillation optimizer."""
    return CodistState(
      (
        name,
        pool._replace(
          distillation_optimizer=self._distillation[name].initialize(
            pool.weights
          )
        ),
      )
      if name in self._distillation
      else (name, pool)
      for name, pool in state.items()
    )

  def run(
    self, state: CodistState, index: int, students: Mapping[str, bool]
  ) -> tuple[CodistState, dict[str, tuple], algorithm.Metrics]:
    """Distils into the chosen students, all from the models in `state`.

    Args:
      state: The pools' state; its weights are students and teachers.
      index: Number of the exchange, from 0; it sets the place in U and the
        augmentation.
      students: {pool: whether it learns}.

    Returns:
      The state with new distillation optimizers and the same weights, {pool:
      d_i} of those that learned, and metrics.
    """
    new_state, distilled, metrics = CodistState(state), {}, {}
    started = time.monotonic()
    learning = [name for name in self._distillation if students[name]]
    if learning:
      batches = self._unlabelled.batches(
        index * self._steps, self._steps, self._batch_size
      )
    admitted = {
      name: self._gate.admits(name, state[name].weights)
      for name in set().union(*(self._teachers[s] for s in learning))
    }
    for name in learning:
      teachers = self._teachers[name]
      say = np.array([self._say[j] * admitted[j] for j in teachers])
      if self._gate.is_set:
        metrics[f'exchange/{name}/teachers_refused'] = sum(
          not admitted[teacher] for teacher in teachers
        )
      if not say.any():
        continue
      pool = state[name]
      result = self._distillation[name].next(
        pool.distillation_optimizer,
        pool.weights,
        tuple(state[teacher].weights for teacher in teachers),
        (say / say.sum()).astype(np.float32),
        randomness.derive_seed(self._seed, 'augmentation', index, name),
        batches,
      )
      new_state[name] = pool._replace(distillation_optimizer=result['state'])
      if not result['metrics']['rejected']:
        distilled[name] = result['pseudo_gradient']
      for metric, value in result['metrics'].items():
        metrics[f'exchange/{name}/{metric}'] = value
    metrics['time/exchange_seconds'] = time.monotonic() - started
    return new_state, distilled, metrics


def _models(state: CodistState) -> dict[str, tuple[models.Weights]]:
  return {name: (pool.weights,) for name, pool in state.items()}


def _releases(state: CodistState) -> dict[str, int]:
  return {name: int(pool.releases) for name, pool in state.items()}


# Fields of the configuration that `FederatedPools` reads, beside those that all
# algorithms do.
AVERAGING_FIELDS = (
  'server',
  'privacy',
  'client.aggregator',
  *client_update.MEAN_FIELDS,
)


def model_traffic(
  setting: algorithm.Setting,
) -> dict[str, algorithm.Traffic]:
  """Returns what clients send that train their pool's model.

  |θ| floats down; |θ| floats and the client's weight in the mean up.
  """
  return {
    pool.name: algorithm.Traffic(
      pool.model.num_parameters, pool.model.num_parameters + 1
    )
    for pool in setting.pools
  }


@algorithm.algorithms.register('fed_avg', *AVERAGING_FIELDS)
def build_fed_avg(
  setting: algorithm.Setting, config: config_lib.Config
) -> algorithm.Algorithm:
  """Builds federated averaging in each pool alone, the baseline.

  Args:
    setting: Pools and task.
    config: The groups `client`, `server` and `privacy`.

  Returns:
    The algorithm; its state is a `CodistState`.

  Raises:
    ConfigError, UnknownNameError: As `FederatedPools`.

  References:
    McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, AISTATS 2017. arXiv 1602.05629. The server optimizers:
    Reddi et al., arXiv 2003.00295.
  """
  pools = FederatedPools(setting, config)

  def next_fn(state, cohorts, round_num):
    del round_num  # Every round is the same.
    state, federated, train_metrics = pools.train(state, cohorts)
    state, step_metrics = pools.step(state, federated)
    return state, {**train_metrics, **step_metrics}

  return algorithm.Algorithm(
    pools.initialize, next_fn, _models, _releases, model_traffic(setting)
  )


@algorithm.algorithms.register(
  'periodic_codist', *AVERAGING_FIELDS, 'distillation', 'periodic'
)
def build_periodic_codist(
  setting: algorithm.Setting, config: config_lib.Config
) -> algorithm.Algorithm:
  """Builds PERIODIC CODIST: s distillation steps every p rounds.

  With p above the number of rounds, s = 0 or a single pool it is `fed_avg`.
  The server optimizers' states are left alone by an exchange.

  Args:
    setting: Pools, task and unlabelled data.
    config: The groups `client`, `server`, `privacy`, `distillation` and
      `periodic`, and the seed.

  Returns:
    The algorithm; its state is a `CodistState`.

  Raises:
    ConfigError, UnknownNameError: As `FederatedPools` and `Exchange`.
  """
  pools = FederatedPools(setting, config)
  exchange = Exchange(
    setting,
    config,
    steps=config.periodic.steps,
    learning_rate=config.periodic.learning_rate,
  )
  applications = {
    name: distillation.build_apply(model)
    for name, model in pools.models.items()
  }
  period = config.periodic.period

  def next_fn(state, cohorts, round_num):
    state, federated, train_metrics = pools.train(state, cohorts)
    state, step_metrics = pools.step(state, federated)
    metrics = {**train_metrics, **step_metrics}
    is_due = round_num % period == 0 and config.periodic.steps > 0
    state, distilled, exchange_metrics = exchange.run(
      state, round_num // period - 1, dict.fromkeys(state, is_due)
    )
    for name, d in distilled.items():
      weights = applications[name](state[name].weights, d)
      state[name] = state[name]._replace(weights=weights)
    return state, {**metrics, **exchange_metrics}

  return algorithm.Algorithm(
    lambda seed: exchange.initialize(pools.initialize(seed)),
    next_fn,
    _models,
    _releases,
    model_traffic(setting),
  )


@algorithm.algorithms.register(
  'merged_codist', *AVERAGING_FIELDS, 'distillation', 'merged'
)
def build_merged_codist(
  setting: algorithm.Setting, config: config_lib.Config
) -> algorithm.Algorithm:
  """Builds MERGED CODIST: distillation merged into every server step.

  `config.merged.distillation_weight` is the paper's interpolation factor α_i.
  Where it is 0, and during the warm-up, a pool does not distil at all and its
  round is `fed_avg`'s, bit for bit. A single pool is `fed_avg`.

  Args:
    setting: Pools, task and unlabelled data.
    config: The groups `client`, `server`, `privacy`, `distillation` and
      `merged`, and the seed.

  Returns:
    The algorithm; its state is a `CodistState`.

  Raises:
    ConfigError, UnknownNameError: As `FederatedPools` and `Exchange`.
  """
  pools = FederatedPools(setting, config)
  exchange = Exchange(
    setting,
    config,
    steps=config.merged.steps,
    learning_rate=config.merged.learning_rate,
  )
  alpha = config.pools.per_pool(
    'merged.distillation_weight', config.merged.distillation_weight
  )
  if config.merged.match_norm and config.privacy.is_on:
    _logger.warning(
      'match_norm with differential privacy: the federated pseudo-gradient has '
      'the norm of its noise, to which distillation is scaled up. It learns '
      'better with --merged.nomatch_norm.'
    )
  merges = {
    name: distillation.build_merge(model, config.merged)
    for name, model in pools.models.items()
  }

  def next_fn(state, cohorts, round_num):
    state, federated, metrics = pools.train(state, cohorts)
    is_warm = round_num > config.merged.warmup_rounds
    state, distilled, exchange_metrics = exchange.run(
      state,
      round_num - 1,
      {name: is_warm and weight > 0 for name, weight in alpha.items()},
    )
    metrics.update(exchange_metrics)
    started = time.monotonic()
    merged = dict(federated)
    for name, d in distilled.items():
      result = merges[name](federated[name], d, np.float32(alpha[name]))
      merged[name] = result.pseudo_gradient
      for metric, value in result.metrics.items():
        metrics[f'exchange/{name}/{metric}'] = value
    metrics['time/exchange_seconds'] += time.monotonic() - started
    state, step_metrics = pools.step(state, merged)
    return state, {**metrics, **step_metrics}

  return algorithm.Algorithm(
    lambda seed: exchange.initialize(pools.initialize(seed)),
    next_fn,
    _models,
    _releases,
    model_traffic(setting),
  )
