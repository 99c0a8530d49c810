"""The privacy that a run has cost, and its statement.

The ledger itself is in the algorithm's state, and so in every checkpoint: the
number of aggregates that each pool has released. What each of them was, the
configuration says.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Optional, Protocol

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist.privacy import accounting


class Pool(Protocol):
  """What is read of a `pools.Pool`; importing that would load TensorFlow."""

  name: str
  client_ids: Collection[Hashable]
  cohort_size: int
  sampling: str


def planned_releases(
  pools: Sequence[Pool], config: config_lib.Config
) -> tuple[accounting.Releases, ...]:
  """Returns what the pools with a mechanism are going to release.

  Args:
    pools: The pools.
    config: The groups `privacy`, `pools` and `program`.

  Raises:
    ConfigError: If a value is out of its range.
    UnknownNameError: If there is no such mechanism.
  """
  privacy = config.privacy
  mechanisms = config.pools.per_pool('privacy.mechanism', privacy.mechanism)
  noise = config.pools.per_pool(
    'privacy.noise_multiplier', privacy.noise_multiplier
  )
  return tuple(
    accounting.Releases(
      pool=pool.name,
      clients=len(pool.client_ids),
      cohort=pool.cohort_size,
      rounds=config.program.rounds,
      noise_multiplier=noise[pool.name],
      mechanism=mechanisms[pool.name],
      sampling=pool.sampling,
      clipped_count_stddev=(
        privacy.clipped_count_stddev
        if mechanisms[pool.name] == 'adaptive_gaussian'
        else None
      ),
      metrics_noise_multiplier=privacy.metrics_noise_multiplier,
    )
    for pool in pools
    if mechanisms[pool.name] != 'none'
  )


class Ledger:
  """What the clients of a run lose, from how often their pools released.

  Attributes:
    final_round: The last round of the run: the last one within the budget.
  """

  def __init__(self, pools: Sequence[Pool], config: config_lib.Config):
    """Finds out which clients are in which pools.

    Args:
      pools: The pools.
      config: The groups `privacy` and `program`.

    Raises:
      ConfigError: If a value is out of its range, or not even one round is
        within the budget.
    """
    self._config = config
    privacy = config.privacy
    self._key = {'delta': privacy.delta, 'accountant': privacy.accountant}
    self._planned = planned_releases(pools, config)
    self._groups = accounting.groups_of(
      {pool.name: pool.client_ids for pool in pools}
    )
    self.final_round = self._affordable_rounds(privacy.max_epsilon)

  def _affordable_rounds(self, max_epsilon: Optional[float]) -> int:
    if max_epsilon is None:
      return self._config.program.rounds
    rounds = accounting.affordable_rounds(
      self._planned, self._groups, target_epsilon=max_epsilon, **self._key
    )
    if not rounds:
      first = self.loss({one.pool: 1 for one in self._planned})
      raise errors.ConfigError(
        f'--privacy.max_epsilon {max_epsilon:g} and epsilon '
        f'{first.worst.epsilon:.4g} after the first round',
        expected='a budget for at least one round',
        fix='give every pool a --privacy.mechanism'
        if math.isinf(first.worst.epsilon)
        else 'raise it, or raise --privacy.noise_multiplier',
      )
    return rounds

  def loss(self, releases: Mapping[str, int]) -> accounting.PrivacyLoss:
    """Returns what the clients have lost.

    Args:
      releases: {pool: how many aggregates it has released}.
    """
    spent = [
      dataclasses.replace(one, rounds=int(releases[one.pool]))
      for one in self._planned
    ]
    return accounting.privacy_loss(spent, self._groups, **self._key)

  def metrics(self, releases: Mapping[str, int]) -> dict[str, float]:
    """Returns epsilon under `privacy/<pool>/epsilon`, and the worst client's.

    The first is what a pool's releases cost alone; the second is over all pools
    of the clients that lose most.
    """
    loss = self.loss(releases)
    metrics = {
      f'privacy/{pool}/epsilon': epsilon
      for pool, epsilon in loss.by_pool.items()
    }
    metrics['privacy/worst_client/epsilon'] = loss.worst.epsilon
    return metrics

  def statement(self, releases: Mapping[str, int]) -> str:
    """Returns the privacy statement of a run, in Markdown.

    Args:
      releases: {pool: how many aggregates it has released}.
    """
    config, loss = self._config, self.loss(releases)
    privacy = config.privacy
    lines = [
      '# Privacy statement',
      '',
      *_result(loss),
      '',
      '## What is protected',
      '',
      '* Unit: one client with all of its examples. Two data sets are '
      'neighbours if one has one client more.',
      '* Released, to whoever sees the run: after every round, the noised mean '
      "of the clipped pseudo-gradients of each pool's clients. Everything "
      "computed from it and from public data, as the server optimizers' steps, "
      'distillation and merging, costs nothing more.',
      '* The server is trusted to clip, to add up and to add the noise. Secure '
      'aggregation is not part of the simulation.',
      '',
      '## Mechanisms',
      '',
      '| pool | mechanism | clip | noise multiplier | clients | cohort | '
      'sampling | rounds |',
      '|---|---|---|---|---|---|---|---|',
    ]
    clips = config.pools.per_pool('privacy.clip', privacy.clip)
    for one in self._planned:
      lines.append(
        f'| {one.pool} | {one.mechanism} | {clips[one.pool]:g} | '
        f'{one.noise_multiplier:g} | {one.clients} | {one.cohort} | '
        f'{one.sampling} | {int(releases[one.pool])} |'
      )
    lines += [
      '',
      'The noise multiplier is the standard deviation of the noise on the sum '
      'over the clip. The sum is divided by the cohort of the table, whoever '
      'takes part.',
    ]
    for one in self._planned:
      if one.mechanism == 'adaptive_gaussian':
        lines.append(
          f'In {one.pool}, the clip is the one at the start. The count of '
          f'clients below it is noised with {one.noise_limit / 2:g}, the sum '
          f'with a multiplier of {one.sum_noise_multiplier:.4g}; both '
          'together have the one of the table.'
        )
    if privacy.metrics_noise_multiplier is None:
      lines.append("The clients' metrics of training are not released.")
    else:
      lines.append(
        "The clients' loss and accuracy in training are released as well, as "
        'a sum of vectors of two numbers in [0, 1], noised with a multiplier '
        f'of {privacy.metrics_noise_multiplier:g}; epsilon counts that too.'
      )
    lines += ['', '## Assumptions', '']
    lines += [f'* {text}' for text in (*loss.assumptions, *loss.warnings)]
    lines += [f'* {text}' for text in _outside(config)]
    lines += [
      '',
      '## Accountant',
      '',
      f'{_ACCOUNTANTS[privacy.accountant]} of dp_accounting '
      f'{importlib.metadata.version("dp-accounting")}, delta = '
      f'{privacy.delta:g}. '
      + (
        'Every epsilon is a proven upper bound under these assumptions.'
        if loss.is_bound
        else 'Epsilon rests on the approximation above and is no proven bound.'
      ),
      '',
    ]
    return '\n'.join(lines)


def open_ledger(
  pools: Sequence[Pool], config: config_lib.Config
) -> Optional[Ledger]:
  """Returns the run's ledger, or `None` if no pool has a mechanism.

  Raises:
    ConfigError: As `Ledger`.
  """
  return Ledger(pools, config) if config.privacy.is_on else None


_ACCOUNTANTS = {
  'pld': 'Renyi differential privacy, tightened by privacy loss distributions '
  'where they can be computed,',
  'rdp': 'Renyi differential privacy',
}


def _result(loss: accounting.PrivacyLoss) -> list[str]:
  worst = loss.worst
  lines = [
    f'The worst-off clients have epsilon = {worst.epsilon:.4g} at delta = '
    f'{loss.delta:g}: the {worst.clients} clients in {_join(worst.pools)}.',
    '',
    '| clients | in pools | epsilon |',
    '|---|---|---|',
  ]
  for group in loss.by_group:
    lines.append(
      f'| {group.clients} | {", ".join(group.pools)} | {group.epsilon:.4g} |'
    )
  lines += ['', '| pool alone | epsilon |', '|---|---|']
  lines += [f'| {pool} | {value:.4g} |' for pool, value in loss.by_pool.items()]
  return lines


def _outside(config: config_lib.Config) -> list[str]:
  """Returns what the guarantee does not cover, sentences."""
  sources = ', '.join(config.unlabelled.shares)
  texts = [
    'Learning rates and all other settings were chosen without looking at '
    "these clients' data; to tune on them is a release of its own.",
    'Who takes part is drawn from the seed of the run. What sampling gains '
    'holds against those who do not know the seed or the ids of the clients.',
    'Test clients are other people, whose metrics are exact and not protected.',
    'The number of clients in each pool is public.',
  ]
  if sources != 'none':
    texts.append(
      f'The distillation data ({sources}) are public: the people in them are '
      'not protected.'
    )
  texts.append(
    'THE GUARANTEE IS BROKEN: the noise was drawn from the seed of the run '
    '(--privacy.reproducible_noise); who knows the seed can take it off.'
    if config.privacy.reproducible_noise
    else 'The noise was drawn from entropy of the machine. That of the '
    'mechanism tree can be drawn again from a checkpoint, which must therefore '
    'stay secret; that of others was not kept.'
  )
  return texts


def _join(names: Sequence[str]) -> str:
  return ' and '.join(names)
