"""Clients' examples as tensors, and the cohorts that are sampled from them.

A client's examples travel as one struct of tensors, not as a `tf.data`
pipeline: client work slices its own batches from them, which is several times
faster for small models. A cohort is a function of (seed, round, pool), so the
next one is loaded on a background thread while the current one trains.
"""

import bisect
import collections
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Union

import cachetools
import numpy as np

from tff_codist import errors
from tff_codist import randomness

# <x=raw inputs [examples, ...], y=int32 labels [examples, ...]>, and for tasks
# with domains <domain=int32 [examples]>, an index into the task's domains.
Examples = collections.OrderedDict
# The same with <seed=int32[2]>, the client's randomness of one round.
SeededExamples = collections.OrderedDict

# Examples of recently used clients that stay in memory, in bytes.
_CACHE_BYTES = 256 * 2**20


LoadFn = Callable[[str], Examples]


class Cohort(list):
  """The `SeededExamples` of the clients that train in one round.

  Attributes:
    client_ids: The clients' ids, in the same order, as far as they are known.
  """

  def __init__(
    self, examples: Iterable[SeededExamples], client_ids: Sequence[str] = ()
  ):
    super().__init__(examples)
    self.client_ids = tuple(client_ids)

  def select(self, places: Iterable[int]) -> 'Cohort':
    """Returns some of the clients, in the order of their places."""
    places = list(places)
    return Cohort(
      [self[i] for i in places], [self.client_ids[i] for i in places]
    )


def cached(load: LoadFn) -> LoadFn:
  """Returns `load` with a cache of the recently used clients, by 256 MiB."""
  cache = cachetools.LRUCache(
    _CACHE_BYTES,
    getsizeof=lambda examples: sum(v.nbytes for v in examples.values()),
  )
  return cachetools.cached(cache, lock=threading.Lock())(load)


class ClientData:
  """The examples of many clients, loaded one client at a time.

  Attributes:
    client_ids: The clients' ids, sorted.
  """

  def __init__(self, client_ids: Iterable[str], load: LoadFn):
    """Wraps a function that loads one client.

    Args:
      client_ids: The ids of the clients.
      load: Returns the examples of one client: an `OrderedDict` with `x`, raw
        inputs `[examples, ...]`, `y`, int32 labels `[examples, ...]`, and if
        the task has domains `domain`, int32 `[examples]`. Called from several
        threads; see `cached`.
    """
    self.client_ids = tuple(sorted(client_ids))
    self._load = load

  def load(self, client_id: str) -> Examples:
    """Returns the examples of one client.

    Raises:
      DataError: If there is no such client.
    """
    place = bisect.bisect_left(self.client_ids, client_id)
    if self.client_ids[place : place + 1] != (client_id,):
      raise errors.DataError(
        f'client id {client_id!r}, which is not in the data set',
        expected=f'one of {len(self.client_ids)} ids such as '
        f'{", ".join(map(repr, self.client_ids[:3]))}',
        fix='correct the id or choose the data set that has it',
      )
    return self._load(client_id)

  def subset(self, client_ids: Iterable[str]) -> 'ClientData':
    """Returns the same data, restricted to some of its clients."""
    return ClientData(client_ids, self._load)


def domain_rows(
  examples: Examples, domains: Sequence[int]
) -> Union[slice, np.ndarray]:
  """Returns which examples of a client are in some domains, as an index.

  Args:
    examples: `<x, y[, domain]>`.
    domains: Indices into the task's domains; empty takes all.
  """
  return np.isin(examples['domain'], domains) if domains else slice(None)


def in_domains(examples: Examples, domains: Sequence[int]) -> Examples:
  """Returns `<x, y>` of a client's examples in some domains."""
  rows = domain_rows(examples, domains)
  return Examples(x=examples['x'][rows], y=examples['y'][rows])


def shuffle_clients(
  client_ids: Sequence[str], *, seed: int, round_num: int, pool: str
) -> Iterator[str]:
  """Returns a pool's clients in the order in which a round asks them to train.

  A uniform order; a function of `(seed, round_num, pool)` only. Pools are
  shuffled independently: a client of several pools may train for more than one
  of them in a round.

  Args:
    client_ids: The pool's clients.
    seed: The run's seed.
    round_num: The round, from 1.
    pool: The pool's name.
  """
  return _shuffled(client_ids, seed, 'cohort', round_num, pool)


def _shuffled(
  client_ids: Sequence[str], seed: int, *purpose: randomness.Key
) -> Iterator[str]:
  rng = randomness.derive_rng(seed, *purpose)
  for place in rng.permutation(len(client_ids)):
    yield client_ids[place]


def poisson_clients(
  client_ids: Sequence[str],
  cohort_size: int,
  *,
  seed: int,
  round_num: int,
  pool: str,
) -> Iterator[str]:
  """Returns a cohort that each client joins on its own.

  Poisson sampling with probability q = `cohort_size` over the number of the
  pool's clients, as the analysis of differentially private training assumes:
  `cohort_size` is the expected size, and a cohort may be empty.

  Args:
    client_ids: The pool's clients.
    cohort_size: Expected number of clients.
    seed: The run's seed.
    round_num: The round, from 1.
    pool: The pool's name.
  """
  rng = randomness.derive_rng(seed, 'cohort size', round_num, pool)
  size = rng.binomial(len(client_ids), cohort_size / len(client_ids))
  order = shuffle_clients(client_ids, seed=seed, round_num=round_num, pool=pool)
  return itertools.islice(order, size)


def epoch_clients(
  client_ids: Sequence[str],
  cohort_size: int,
  *,
  seed: int,
  round_num: int,
  pool: str,
) -> Iterator[str]:
  """Returns a cohort of clients that train at most once in an epoch.

  An epoch has as many rounds as full cohorts can be dealt from the shuffled
  clients; those that are left over wait for the next epoch, which shuffles
  anew. The analysis of DP-FTRL needs this bound on participation.

  Args:
    client_ids: The pool's clients.
    cohort_size: Number of clients.
    seed: The run's seed.
    round_num: The round, from 1.
    pool: The pool's name.
  """
  rounds = rounds_per_epoch(len(client_ids), cohort_size)
  epoch, place = divmod(round_num - 1, rounds)
  order = _shuffled(client_ids, seed, 'epoch', epoch, pool)
  begin = place * cohort_size
  return itertools.islice(order, begin, begin + cohort_size)


def rounds_per_epoch(num_clients: int, cohort_size: int) -> int:
  """Returns how many cohorts can be dealt from some clients."""
  return num_clients // cohort_size


def load_cohort(
  data: ClientData,
  client_ids: Sequence[str],
  cohort_size: int,
  *,
  sampling: str = 'fixed',
  seed: int,
  round_num: int,
  pool: str,
  domains: Sequence[int] = (),
) -> Cohort:
  """Samples and loads the clients of one pool that train in one round.

  With fixed size, the first clients in the order of `shuffle_clients` that have
  an example: a uniform sample without replacement of the pool's clients with
  data. Whether a client has an example in the pool's domains is known only when
  it is loaded, so that no round depends on the number of clients. With the
  other samplings, clients without an example leave a smaller cohort.

  Args:
    data: The training clients.
    client_ids: The pool's clients.
    cohort_size: Clients to sample; their expected number for `poisson`.
    sampling: `'fixed'`, `'poisson'` or `'epochs'`, see `poisson_clients` and
      `epoch_clients`.
    seed: The run's seed.
    round_num: The round, from 1.
    pool: The pool's name.
    domains: Indices of the domains in which the pool trains; empty for all.

  Returns:
    `<x, y, seed>` of each client, its seed being its randomness of the round.

  Raises:
    DataError: If, with fixed size, fewer clients have an example.
  """
  key = dict(seed=seed, round_num=round_num, pool=pool)
  asked = {
    'fixed': lambda: shuffle_clients(client_ids, **key),
    'poisson': lambda: poisson_clients(client_ids, cohort_size, **key),
    'epochs': lambda: epoch_clients(client_ids, cohort_size, **key),
  }[sampling]()
  cohort, chosen = [], []
  for client_id in asked:
    examples = in_domains(data.load(client_id), domains)
    if len(examples['y']):
      client_seed = randomness.derive_seed(
        seed, 'client', round_num, pool, client_id
      )
      cohort.append(SeededExamples(examples, seed=client_seed))
      chosen.append(client_id)
    if sampling == 'fixed' and len(cohort) == cohort_size:
      break
  if sampling == 'fixed' and len(cohort) < cohort_size:
    raise errors.DataError(
      f'{len(cohort)} clients with examples in pool {pool!r}',
      expected=f'at least a cohort, {cohort_size}',
      fix='lower --pools.cohort_size, or choose other --pools.domains or '
      'clients',
    )
  return Cohort(cohort, chosen)


class CohortLoader:
  """Loads the cohorts of all pools, one round ahead of the training."""

  def __init__(
    self,
    data: ClientData,
    pools: Sequence,
    *,
    seed: int,
    last_round: int,
    domains: Sequence[str] = (),
  ):
    """Prepares loading.

    Args:
      data: The training clients.
      pools: The `Pool`s to sample for.
      seed: The run's seed.
      last_round: The last round for which a cohort is loaded ahead.
      domains: Names of the task's domains.
    """
    self._data = data
    self._pools = pools
    self._domains = {
      pool.name: [domains.index(name) for name in pool.domains]
      for pool in pools
    }
    self._seed = seed
    self._last_round = last_round
    self._thread = futures.ThreadPoolExecutor(
      max_workers=1, thread_name_prefix='cohorts'
    )
    self._ahead: dict[int, futures.Future] = {}

  def load(self, round_num: int) -> dict[str, Cohort]:
    """Returns each pool's cohort of a round and starts to load the next."""
    current = self._ahead.pop(round_num, None) or self._submit(round_num)
    following = round_num + 1
    if following <= self._last_round:
      self._ahead = {following: self._submit(following)}
    return current.result()

  def close(self) -> None:
    """Ends the background thread."""
    self._thread.shutdown(cancel_futures=True)

  def _submit(self, round_num: int) -> futures.Future:
    return self._thread.submit(self._load_round, round_num)

  def _load_round(self, round_num: int) -> dict[str, Cohort]:
    return {
      pool.name: load_cohort(
        self._data,
        pool.client_ids,
        pool.cohort_size,
        sampling=pool.sampling,
        seed=self._seed,
        round_num=round_num,
        pool=pool.name,
        domains=self._domains[pool.name],
      )
      for pool in self._pools
    }
