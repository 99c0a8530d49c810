"""What a client's privacy costs: epsilon over all pools that it is in.

Every mechanism adds Gaussian noise, so that a pool's releases are, to the
accountant, so many Gaussian mechanisms, each on a sample of the clients. A
client in several pools loses privacy to all of them: their mechanisms compose,
adaptively, as each pool's rounds depend on the other pools' through
distillation. Distillation itself, merging and the server's optimizers see only
what was released, and cost nothing as long as the unlabelled data are public.

Two data sets are neighbours if one has all data of one client more. Epsilon is
an upper bound from privacy loss distributions (`pld`, the tighter one) or from
Renyi differential privacy (`rdp`). Loads no TensorFlow.

References:
  McMahan et al., Learning Differentially Private Recurrent Language Models,
  ICLR 2018. arXiv 1710.06963.
  Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS
  2021, theorem 1. arXiv 1905.03871.
  Kairouz et al., Practical and Private (Deep) Learning without Sampling or
  Shuffling, ICML 2021, appendix D. arXiv 2103.00039.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

import dp_accounting
import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy import optimize

from tff_codist import clients as clients_lib
from tff_codist import config as config_lib
from tff_codist import errors

MECHANISMS = ('gaussian', 'adaptive_gaussian', 'tree')

_UNIT = 'The unit is one client with all of its data, added or removed.'
# With a larger delta, a mechanism may publish one client in a hundred.
_MOST_DELTA = 1e-2
# Below it, the rounding errors of the convolutions show in epsilon.
_LEAST_PLD_DELTA = 1e-10
# Beyond it there is no privacy left that a tighter bound could show.
_MOST_PLD_EPSILON = 1000.0
# The finest grid of privacy losses, dp_accounting's default, and the relative
# error up to which a coarser one is taken.
_INTERVAL = 1e-4
_PLD_ERROR = 5e-5
_RDP_ORDERS = dp_accounting.rdp.RdpAccountant().orders
# Between them lies all noise of use, and the accountants do not overflow.
_LEAST_NOISE = 1e-4
_MOST_NOISE = 1e4
# Of the logarithm of a noise multiplier that is solved for.
_TOLERANCE = 1e-4


class Gaussians(NamedTuple):
  """Gaussian mechanisms, each on a Poisson sample of the clients.

  Attributes:
    sampling_rate: Probability of a client to be in a sample, in (0, 1].
    noise_multiplier: Standard deviation of the noise over the most that a
      client adds.
    count: How many, at least 1.
  """

  sampling_rate: float
  noise_multiplier: float
  count: int


@dataclasses.dataclass(frozen=True)
class Releases:
  """What one pool has released, or is going to.

  Each round releases the noised sum of the cohort's clipped pseudo-gradients
  over the fixed denominator `cohort`.

  Attributes:
    pool: The pool's name.
    clients: Clients in the pool, n.
    cohort: Clients expected in a round, m.
    rounds: Rounds, at least 0.
    noise_multiplier: Standard deviation of the noise on the sum over the clip,
      z. For adaptive_gaussian, z of the sum and the count together; for tree,
      z of each node.
    mechanism: gaussian (fixed clip), adaptive_gaussian (a clip at a quantile of
      the norms) or tree (DP-FTRL).
    sampling: poisson: each client joins a round with probability m/n, on its
      own. fixed: exactly m clients. epochs: exactly m, none of them twice in
      the n // m rounds of an epoch, in any order.
    clipped_count_stddev: Standard deviation of the noise on the count of
      clients below the clip, σ_b. For adaptive_gaussian only, where None is
      m/20, as in TFF.
    restart_rounds: Rounds of a tree, a divisor of the epoch's. For tree only,
      where None is a tree for each epoch.
    metrics_noise_multiplier: Noise multiplier of the clients' metrics, all of
      them as one vector; None if none are released.

  Raises:
    UnknownNameError: If there is no such mechanism or sampling.
    ConfigError: If a value is out of its range or has no effect.
  """

  pool: str
  clients: int
  cohort: int
  rounds: int
  noise_multiplier: float
  mechanism: str = 'gaussian'
  sampling: str = 'poisson'
  clipped_count_stddev: Optional[float] = None
  restart_rounds: Optional[int] = None
  metrics_noise_multiplier: Optional[float] = None

  def __post_init__(self):
    _check_name('mechanism', self.mechanism, MECHANISMS)
    _check_name('sampling', self.sampling, config_lib.SAMPLINGS)
    self._check_counts()
    for noise in (
      self.noise_multiplier,
      self.clipped_count_stddev,
      self.metrics_noise_multiplier,
    ):
      _require(
        noise is None or _LEAST_NOISE <= noise <= _MOST_NOISE,
        f'{self._here} noise of {noise}',
        f'a number from {_LEAST_NOISE:g} to {_MOST_NOISE:g}: without noise '
        'there is no privacy',
        'choose one near 1',
      )
    for field, mechanism in (
      ('clipped_count_stddev', 'adaptive_gaussian'),
      ('restart_rounds', 'tree'),
    ):
      _require(
        getattr(self, field) is None or self.mechanism == mechanism,
        f'{self._here} {field} with the mechanism {self.mechanism}',
        f'it with {mechanism} only, as it has no effect',
        'leave it out',
      )
    if self.mechanism == 'adaptive_gaussian':
      self._check_count_noise()
    if self.mechanism == 'tree':
      self._check_tree()

  @property
  def sampling_rate(self) -> float:
    """Share of the pool's clients that a round expects, q = m/n."""
    return self.cohort / self.clients

  @property
  def participations(self) -> int:
    """The most rounds that a client takes part in."""
    if self.sampling != 'epochs':
      return self.rounds
    return math.ceil(self.rounds / self._rounds_per_epoch)

  @property
  def sum_noise_multiplier(self) -> float:
    """Noise multiplier of the pseudo-gradients' sum alone, z_Δ.

    For adaptive_gaussian, z⁻² = z_Δ⁻² + (2·σ_b)⁻². A client moves the count by
    one half, once 1/2 is taken from each of its terms.
    """
    if self.mechanism != 'adaptive_gaussian':
      return self.noise_multiplier
    return (self.noise_multiplier**-2 - self.noise_limit**-2) ** -0.5

  @property
  def noise_limit(self) -> float:
    """What `noise_multiplier` must stay below, for adaptive_gaussian 2·σ_b."""
    if self.mechanism != 'adaptive_gaussian':
      return _MOST_NOISE
    stddev = self.clipped_count_stddev
    return self.cohort / 10 if stddev is None else 2 * stddev

  @property
  def is_bound(self) -> bool:
    """Whether epsilon is a proven bound, or rests on an approximation.

    Cohorts of a fixed size are accounted for as Poisson samples. The bound that
    is known for them is on replacing a client, and far too large to be of use:
    84 in place of 7.9 for 100 rounds of 100 out of 1000 clients, z = 1.
    """
    return self.sampling != 'fixed'

  @property
  def assumption(self) -> str:
    """What the accountant takes the sampling for, a sentence."""
    m, n = self.cohort, self.clients
    rate = f'{self.sampling_rate:.4g}'
    return {
      'poisson': f'Each client joins a round of {self.pool} with probability '
      f'{rate}, whoever else joins.',
      'fixed': f'Rounds of {self.pool} have exactly {m} of {n} clients, and '
      f'are accounted for as if each joined with probability {rate}, whoever '
      'else joins: an approximation, not a proven bound.',
      'epochs': f'A client joins at most one of the {self._rounds_per_epoch} '
      f'rounds of an epoch of {self.pool}, and the place of one that is '
      'removed stays empty; nothing is gained from sampling.',
    }[self.sampling]

  @property
  def gaussians(self) -> tuple[Gaussians, ...]:
    """The Gaussian mechanisms that the releases are equivalent to."""
    if not self.rounds:
      return ()
    z, z_metrics = self.noise_multiplier, self.metrics_noise_multiplier
    if self.mechanism == 'tree':
      parts = [Gaussians(1.0, z, self._nodes_of_a_client)]
      if z_metrics:
        parts.append(Gaussians(1.0, z_metrics, self.participations))
      return tuple(parts)
    if z_metrics:
      # Two sums over the same sample are one with both of their coordinates.
      z = (z**-2 + z_metrics**-2) ** -0.5
    rate = 1.0 if self.sampling == 'epochs' else self.sampling_rate
    return (Gaussians(rate, z, self.participations),)

  @property
  def _here(self) -> str:
    return f'pool {self.pool!r}:'

  @property
  def _rounds_per_epoch(self) -> int:
    return clients_lib.rounds_per_epoch(self.clients, self.cohort)

  @property
  def _nodes_of_a_client(self) -> int:
    """The most tree nodes that contain a client.

    A client is in at most one tree of an epoch, and there in one node of each
    level that is complete: floor(log2(rounds)) + 1.
    """
    epochs, rest = divmod(self.rounds, self._rounds_per_epoch)
    whole = self.restart_rounds or self._rounds_per_epoch
    return epochs * whole.bit_length() + min(rest, whole).bit_length()

  def _check_counts(self) -> None:
    for field in ('clients', 'cohort', 'rounds', 'restart_rounds'):
      value, least = getattr(self, field), 0 if field == 'rounds' else 1
      if value is not None:
        _require(
          isinstance(value, (int, np.integer)) and value >= least,
          f'{self._here} {field} = {value!r}',
          f'an integer of at least {least}',
          f'correct {field}',
        )
    _require(
      self.cohort <= self.clients,
      f'{self._here} a cohort of {self.cohort} of {self.clients} clients',
      'a cohort that is at most as large as its pool',
      'lower the cohort',
    )

  def _check_count_noise(self) -> None:
    _require(
      self.noise_multiplier < self.noise_limit,
      f'{self._here} noise multiplier {self.noise_multiplier:g} with noise of '
      f'{self.noise_limit / 2:g} on the count of clipped clients',
      f'one below {self.noise_limit:g}, which both together cannot exceed',
      'lower it, or raise the noise on the count, which is a twentieth of the '
      'cohort if it is not given',
    )

  def _check_tree(self) -> None:
    _require(
      self.sampling == 'epochs',
      f'{self._here} sampling {self.sampling!r} with the mechanism tree',
      "'epochs', which bounds how often a client takes part",
      "set sampling to 'epochs'",
    )
    whole = self.restart_rounds or self._rounds_per_epoch
    _require(
      self._rounds_per_epoch % whole == 0,
      f'{self._here} trees of {whole} rounds in epochs of '
      f'{self._rounds_per_epoch}',
      'whole trees in each epoch, or a client could be in a tree twice',
      'restart with every epoch',
    )


class Group(NamedTuple):
  """The clients that are in exactly the same pools.

  Attributes:
    pools: Names of the pools.
    clients: How many they are.
  """

  pools: tuple[str, ...]
  clients: int


class GroupLoss(NamedTuple):
  """What the clients of a group lose.

  Attributes:
    pools: Names of the pools that they are in.
    clients: How many they are.
    epsilon: Their epsilon over all these pools.
  """

  pools: tuple[str, ...]
  clients: int
  epsilon: float


@dataclasses.dataclass(frozen=True)
class PrivacyLoss:
  """What clients lose, by pool and by group.

  Attributes:
    delta: The failure probability.
    accountant: pld or rdp.
    by_pool: {pool: epsilon of its releases alone}.
    by_group: Each group's, over all of its pools.
    assumptions: What the numbers assume, sentences.
    is_bound: Whether every epsilon is a proven bound, see `Releases.is_bound`.
  """

  delta: float
  accountant: str
  by_pool: Mapping[str, float]
  by_group: tuple[GroupLoss, ...]
  assumptions: tuple[str, ...]
  is_bound: bool

  @property
  def worst(self) -> GroupLoss:
    """The group that loses most."""
    return max(self.by_group, key=lambda group: group.epsilon)

  @property
  def clients(self) -> int:
    """Clients in at least one pool."""
    return sum(group.clients for group in self.by_group)

  @property
  def warnings(self) -> tuple[str, ...]:
    """What makes the numbers worth little, sentences."""
    if self.delta * self.clients < 1:
      return ()
    return (
      f'Delta {self.delta:g} is not below 1/{self.clients}: to publish one of '
      'these clients, drawn at random, would be as private.',
    )


def event(releases: Releases) -> dp_accounting.DpEvent:
  """Returns the releases of a pool as dp_accounting describes them."""
  return dp_accounting.ComposedDpEvent(
    [
      dp_accounting.SelfComposedDpEvent(
        _one_event(part.sampling_rate, part.noise_multiplier), part.count
      )
      for part in releases.gaussians
    ]
  )


def epsilon(
  releases: Iterable[Releases], *, delta: float, accountant: str = 'pld'
) -> float:
  """Returns the epsilon of a client that is in the pools of all releases.

  Takes a few tenths of a second for each pool with new values, and a part of
  that if only `rounds` is new.

  Args:
    releases: A pool's releases each.
    delta: Failure probability, in (0, 0.01].
    accountant: pld or rdp.

  Raises:
    UnknownNameError: If there is no such accountant.
    ConfigError: If delta is out of its range.
  """
  _check_target(delta, accountant)
  parts = sorted(part for one in releases for part in one.gaussians)
  return _epsilon(tuple(parts), delta, accountant)


def groups_of(members: Mapping[str, Collection[str]]) -> tuple[Group, ...]:
  """Returns which clients are in exactly the same pools.

  Args:
    members: {pool: ids of its clients}. Each id is looked at once.

  Returns:
    The groups with clients, in the order of the pools.
  """
  places: collections.Counter[str] = collections.Counter()
  for index, client_ids in enumerate(members.values()):
    for client_id in set(client_ids):
      # A bit for each pool. Sorted, the first pools come first.
      places[client_id] += 1 << index
  sizes = collections.Counter(places.values())
  names = list(members)
  return tuple(
    Group(
      pools=tuple(n for i, n in enumerate(names) if place >> i & 1),
      clients=sizes[place],
    )
    for place in sorted(sizes)
  )


def nested_groups(populations: Mapping[str, int]) -> tuple[Group, ...]:
  """Returns the groups of pools of which each is in every larger one.

  Args:
    populations: {pool: number of its clients}.

  Returns:
    The groups with clients, those in the fewest pools first.
  """
  sizes = sorted({0, *populations.values()})
  return tuple(
    Group(
      pools=tuple(name for name, size in populations.items() if size >= outer),
      clients=outer - inner,
    )
    for inner, outer in reversed(list(zip(sizes, sizes[1:])))
  )


def disjoint_groups(populations: Mapping[str, int]) -> tuple[Group, ...]:
  """Returns the groups of pools without common clients.

  Args:
    populations: {pool: number of its clients}.
  """
  return tuple(Group((name,), size) for name, size in populations.items())


def privacy_loss(
  releases: Sequence[Releases],
  groups: Iterable[Group],
  *,
  delta: float,
  accountant: str = 'pld',
) -> PrivacyLoss:
  """Returns what each group of clients, and each pool alone, has cost.

  Args:
    releases: Those of the pools with a mechanism, one of each.
    groups: Which clients are in which pools, at least one. A pool without
      releases has no mechanism: epsilon of its clients is infinite.
    delta: Failure probability, in (0, 0.01].
    accountant: pld or rdp.

  Raises:
    UnknownNameError: If there is no such accountant.
    ConfigError: If delta is out of its range.
  """
  _check_target(delta, accountant)
  groups = tuple(groups)
  names = [one.pool for one in releases]
  names += [pool for group in groups for pool in group.pools]

  def joint(pools: Collection[str]) -> float:
    return _joint(releases, pools, delta, accountant)

  return PrivacyLoss(
    delta=delta,
    accountant=accountant,
    by_pool={name: joint((name,)) for name in dict.fromkeys(names)},
    by_group=tuple(GroupLoss(*group, joint(group.pools)) for group in groups),
    assumptions=(_UNIT, *(one.assumption for one in releases)),
    is_bound=all(one.is_bound for one in releases),
  )


def calibrate(
  releases: Sequence[Releases],
  groups: Iterable[Group],
  *,
  target_epsilon: float,
  delta: float,
  accountant: str = 'pld',
  scaled: Optional[Collection[str]] = None,
) -> tuple[Releases, ...]:
  """Returns the releases with just enough noise for the worst client.

  The noise multipliers given are a proportion: all are multiplied by the
  smallest factor with which no client exceeds the target.

  Args:
    releases: Planned releases of every pool.
    groups: Which clients are in which pools.
    target_epsilon: The most that a client may lose, above 0.
    delta: Failure probability, in (0, 0.01].
    accountant: pld or rdp.
    scaled: Pools whose noise multiplier is solved for, at least one, the
      others' being fixed; None for all.

  Returns:
    The releases in their order; the factor is within 0.02% of the smallest.

  Raises:
    UnknownNameError: If there is no such accountant.
    ConfigError: If a value is out of its range, or no noise in these pools is
      enough.
  """
  _check_target(delta, accountant, target_epsilon)
  largest = _largest_groups(groups)
  names = [one.pool for one in releases]
  scaled = names if scaled is None else scaled
  for name in scaled:
    _check_name('pool', name, names)
  noise = [one.noise_multiplier for one in releases if one.pool in scaled]
  limits = [one.noise_limit for one in releases if one.pool in scaled]
  # Short of the limits, of which the upper ones are excluded.
  least = 1.000001 * _LEAST_NOISE / min(noise)
  most = min(0.999999 * limit / z for limit, z in zip(limits, noise))

  def scale(factor: float) -> tuple[Releases, ...]:
    return tuple(
      dataclasses.replace(one, noise_multiplier=factor * one.noise_multiplier)
      if one.pool in scaled
      else one
      for one in releases
    )

  def worst(factor: float) -> float:
    return _worst(scale(factor), largest, delta, accountant)

  factor = _smallest(worst, target=target_epsilon, least=least, most=most)
  if factor is None:
    raise errors.ConfigError(
      f'epsilon {worst(most):.4g} with as much noise as there can be in '
      f'{", ".join(scaled)}',
      expected=f'at most {target_epsilon:g}',
      fix='raise the noise that is fixed (in the other pools, on metrics or on '
      'the count of clipped clients), plan fewer rounds, or allow more epsilon',
    )
  return scale(factor)


def affordable_rounds(
  releases: Sequence[Releases],
  groups: Iterable[Group],
  *,
  target_epsilon: float,
  delta: float,
  accountant: str = 'pld',
) -> int:
  """Returns after how many of the planned rounds no client exceeds a budget.

  Args:
    releases: Planned releases of every pool.
    groups: Which clients are in which pools.
    target_epsilon: The most that a client may lose, above 0.
    delta: Failure probability, in (0, 0.01].
    accountant: pld or rdp.

  Returns:
    The largest such number up to that of the longest pool.

  Raises:
    UnknownNameError: If there is no such accountant.
    ConfigError: If a value is out of its range.
  """
  _check_target(delta, accountant, target_epsilon)
  largest = _largest_groups(groups)
  # Epsilon grows with the rounds, so that the number is found by bisection.
  within, beyond = 0, 1 + max(one.rounds for one in releases)
  middle = beyond - 1
  while beyond - within > 1:
    some = truncate(releases, middle)
    if _worst(some, largest, delta, accountant) <= target_epsilon:
      within = middle
    else:
      beyond = middle
    middle = (within + beyond) // 2
  return within


def truncate(releases: Iterable[Releases], rounds: int) -> tuple[Releases, ...]:
  """Returns the releases of the first rounds only."""
  return tuple(
    dataclasses.replace(one, rounds=min(one.rounds, rounds)) for one in releases
  )


def in_proportion(
  releases: Sequence[Releases], exponent: float
) -> tuple[Releases, ...]:
  """Returns the releases with noise that grows with their sampling rate.

  z becomes a multiple of q^exponent. For `calibrate`, which finds the multiple:
  a pool with fewer clients has a higher rate q and costs more with the same z,
  on Poisson samples about q²/z² a round.

  Args:
    releases: Planned releases.
    exponent: 0: the same z for all. 1/2: about the least sum of z² for the same
      loss. 1: the same loss in every pool, in that approximation.
  """
  highest = max(one.sampling_rate for one in releases)
  shares = [(one.sampling_rate / highest) ** exponent for one in releases]
  multiple = min(
    1.0, *(one.noise_limit / share / 2 for one, share in zip(releases, shares))
  )
  return tuple(
    dataclasses.replace(one, noise_multiplier=multiple * share)
    for one, share in zip(releases, shares)
  )


def _check_name(kind: str, name: str, known: Sequence[str]) -> None:
  if name not in known:
    raise errors.UnknownNameError(kind, name, known)


def _require(holds: bool, found: str, expected: str, fix: str) -> None:
  if not holds:
    raise errors.ConfigError(found, expected=expected, fix=fix)


def _check_target(
  delta: float, accountant: str, target_epsilon: float = 1.0
) -> None:
  _check_name('accountant', accountant, config_lib.ACCOUNTANTS)
  _require(
    0 < delta <= _MOST_DELTA,
    f'delta = {delta:g}',
    f'a number above 0 and at most {_MOST_DELTA:g}',
    'choose one below 1 / the number of clients',
  )
  _require(
    0 < target_epsilon < math.inf,
    f'a target epsilon of {target_epsilon:g}',
    'a finite number above 0',
    'choose one, such as 8 or less',
  )


def _one_event(
  sampling_rate: float, noise_multiplier: float
) -> dp_accounting.DpEvent:
  gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
  if sampling_rate == 1:
    return gaussian
  return dp_accounting.PoissonSampledDpEvent(sampling_rate, gaussian)


@functools.lru_cache(maxsize=4096)
def _epsilon(
  parts: tuple[Gaussians, ...], delta: float, accountant: str
) -> float:
  """Returns the epsilon of composed mechanisms."""
  if not parts:
    return 0.0
  rdp = sum(
    part.count * _rdp(part.sampling_rate, part.noise_multiplier)
    for part in parts
  )
  bound = float(dp_accounting.rdp.compute_epsilon(_RDP_ORDERS, rdp, delta)[0])
  if accountant == 'rdp' or delta < _LEAST_PLD_DELTA:
    return bound
  return _tighten(parts, delta, bound) if bound <= _MOST_PLD_EPSILON else bound


def _tighten(parts: tuple[Gaussians, ...], delta: float, bound: float) -> float:
  """Returns the epsilon of privacy loss distributions, if it is below a bound.

  The losses are on a grid, which need not be finer than epsilon asks for: time
  and memory grow with it.
  """
  samples = sum(1 if part.sampling_rate == 1 else part.count for part in parts)
  # Each sample's loss is rounded up by about half of the interval squared.
  widest = math.sqrt(2 * _PLD_ERROR * bound / samples)
  # Powers of two are few, so that the distributions are found again.
  steps = math.floor(math.log2(max(1.0, widest / _INTERVAL)))
  interval = _INTERVAL * 2.0**steps
  losses = functools.reduce(
    lambda one, other: one.compose(other),
    [_losses(part, interval) for part in parts],
  )
  value = min(bound, float(losses.get_epsilon_for_delta(delta)))
  if interval > _INTERVAL and value < bound / 2:
    return _tighten(parts, delta, value)
  return value


@functools.lru_cache(maxsize=256)
def _rdp(sampling_rate: float, noise_multiplier: float) -> np.ndarray:
  """Returns the Renyi divergences of one mechanism, of each order."""
  accountant = dp_accounting.rdp.RdpAccountant(_RDP_ORDERS)
  accountant.compose(_one_event(sampling_rate, noise_multiplier))
  # Rounding errors can make them negative where there is hardly any.
  return np.maximum(accountant.rdp, 0)


@functools.lru_cache(maxsize=8)
def _losses(
  part: Gaussians, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
  """Returns the distribution of the losses of composed mechanisms."""
  if part.sampling_rate == 1:
    return privacy_loss_distribution.from_gaussian_mechanism(
      part.noise_multiplier / math.sqrt(part.count),
      value_discretization_interval=interval,
    )
  one = _losses_of_one(part.sampling_rate, part.noise_multiplier, interval)
  return one.self_compose(part.count)


@functools.lru_cache(maxsize=8)
def _losses_of_one(
  sampling_rate: float, noise_multiplier: float, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
  """Returns the distribution of the losses of one mechanism on a sample.

  Takes most of the time of `epsilon`, and does not depend on the rounds.
  """
  return privacy_loss_distribution.from_gaussian_mechanism(
    noise_multiplier,
    sampling_prob=sampling_rate,
    value_discretization_interval=interval,
  )


def _joint(
  releases: Iterable[Releases],
  pools: Collection[str],
  delta: float,
  accountant: str,
) -> float:
  """Returns the epsilon of a client that is in these pools."""
  chosen = [one for one in releases if one.pool in pools]
  if {one.pool for one in chosen} != set(pools):
    return math.inf
  return epsilon(chosen, delta=delta, accountant=accountant)


def _largest_groups(groups: Iterable[Group]) -> list[frozenset[str]]:
  """Returns the sets of pools that no other contains; no client loses more."""
  sets = {frozenset(group.pools) for group in groups}
  return [one for one in sets if not any(one < other for other in sets)]


def _worst(
  releases: Sequence[Releases],
  pool_sets: Iterable[Collection[str]],
  delta: float,
  accountant: str,
) -> float:
  return max(_joint(releases, pools, delta, accountant) for pools in pool_sets)


def _smallest(
  epsilon_of: Callable[[float], float],
  *,
  target: float,
  least: float,
  most: float,
) -> Optional[float]:
  """Returns the smallest factor whose epsilon is within a target.

  Args:
    epsilon_of: Falls as the factor rises.
    target: The target.
    least, most: The smallest and the largest factor.

  Returns:
    The smallest of the factors that were tried, within the tolerance of the
    smallest of all; `None` if `most` is not enough.
  """
  within = []

  def gap(log_factor: float) -> float:
    value = epsilon_of(math.exp(log_factor))
    if value <= target:
      within.append(log_factor)
    # On logarithms epsilon is nearly a line.
    return math.log(min(max(value, 1e-9), 1e300) / target)

  bottom, top = math.log(least), math.log(most)
  low = high = min(max(0.0, bottom), top)
  # The first step is enough where epsilon falls in proportion; it falls less
  # where most of it comes from noise that is fixed.
  step = 0.0
  while (excess := gap(high)) > 0:
    if high == top:
      return None
    step = max(excess + _TOLERANCE, 3 * step)
    low, high = high, min(high + step, top)
  while (excess := gap(low)) <= 0:
    if low == bottom:
      return least
    # Not much too far: less noise takes longer to account for.
    step = min(max(_TOLERANCE - excess, 3 * step), math.log(4))
    low = max(low - step, bottom)
  optimize.brentq(gap, low, high, xtol=_TOLERANCE)
  return math.exp(min(within))
