"""Clients' examples as tensors, and the cohorts that are sampled from them.

A client's examples travel as one struct of tensors, not as a `tf.data`
pipeline: client work slices its own batches from them, which is several times
faster for small models. A cohort is a function of (seed, round, pool), so the
next one is loaded on a background thread while the current one trains.
"""

import collections
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures

import cachetools
import numpy as np

from tff_codist import errors
from tff_codist import randomness

# <x=raw inputs [examples, ...], y=int32 labels [examples, ...]>
Examples = collections.OrderedDict
# The same with <seed=int32[2]>, the client's randomness of one round.
SeededExamples = collections.OrderedDict

# Examples of recently used clients that stay in memory, in bytes.
_CACHE_BYTES = 256 * 2**20


LoadFn = Callable[[str], Examples]


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
        inputs `[examples, ...]`, and `y`, int32 labels `[examples, ...]`.
        Called from several threads; see `cached`.
    """
    self.client_ids = tuple(sorted(client_ids))
    self._known = frozenset(self.client_ids)
    self._load = load

  def load(self, client_id: str) -> Examples:
    """Returns the examples of one client.

    Raises:
      DataError: If there is no such client.
    """
    if client_id not in self._known:
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


def sample_cohort(
  client_ids: Sequence[str],
  cohort_size: int,
  *,
  seed: int,
  round_num: int,
  pool: str,
) -> list[str]:
  """Samples the clients of one pool that train in one round.

  Uniform without replacement; a function of `(seed, round_num, pool)` only.
  Pools are sampled independently: a client of several pools may be drawn for
  more than one of them in a round.

  Args:
    client_ids: The pool's clients.
    cohort_size: Clients to sample, at most the pool's number of clients.
    seed: The run's seed.
    round_num: The round, from 1.
    pool: The pool's name.

  Returns:
    `cohort_size` different client ids.
  """
  rng = randomness.derive_rng(seed, 'cohort', round_num, pool)
  chosen = rng.choice(len(client_ids), size=cohort_size, replace=False)
  return [client_ids[i] for i in chosen]


def load_cohort(
  data: ClientData,
  client_ids: Iterable[str],
  *,
  seed: int,
  round_num: int,
  pool: str,
) -> list[SeededExamples]:
  """Loads a cohort and gives every client its seed of the round."""
  return [
    SeededExamples(
      data.load(client_id),
      seed=randomness.derive_seed(seed, 'client', round_num, pool, client_id),
    )
    for client_id in client_ids
  ]


class CohortLoader:
  """Loads the cohorts of all pools, one round ahead of the training."""

  def __init__(self, data: ClientData, pools: Sequence, *, seed: int):
    """Prepares loading.

    Args:
      data: The training clients.
      pools: The `Pool`s to sample for.
      seed: The run's seed.
    """
    self._data = data
    self._pools = pools
    self._seed = seed
    self._thread = futures.ThreadPoolExecutor(
      max_workers=1, thread_name_prefix='cohorts'
    )
    self._ahead: dict[int, futures.Future] = {}

  def load(self, round_num: int) -> dict[str, list[SeededExamples]]:
    """Returns each pool's cohort of a round and starts to load the next."""
    current = self._ahead.pop(round_num, None) or self._submit(round_num)
    self._ahead = {round_num + 1: self._submit(round_num + 1)}
    return current.result()

  def close(self) -> None:
    """Ends the background thread."""
    self._thread.shutdown(cancel_futures=True)

  def _submit(self, round_num: int) -> futures.Future:
    return self._thread.submit(self._load_round, round_num)

  def _load_round(self, round_num: int) -> dict[str, list[SeededExamples]]:
    return {
      pool.name: load_cohort(
        self._data,
        sample_cohort(
          pool.client_ids,
          pool.cohort_size,
          seed=self._seed,
          round_num=round_num,
          pool=pool.name,
        ),
        seed=self._seed,
        round_num=round_num,
        pool=pool.name,
      )
      for pool in self._pools
    }


class UnlabelledData:
  """The server's distillation data U, as a stream of reshuffled epochs.

  Labels are dropped before this class is made: it holds inputs only.

  Attributes:
    x: Raw inputs `[examples, ...]`.
  """

  def __init__(self, x: np.ndarray, *, seed: int):
    """Wraps inputs that are already without labels.

    Args:
      x: Raw inputs `[examples, ...]`, at least one.
      seed: The run's seed; it decides the order of the examples.

    Raises:
      DataError: If there is no example.
    """
    if not len(x):
      raise errors.DataError(
        'distillation data without an example',
        expected='at least one unlabelled example at the server',
        fix='raise --task.distillation_clients_fraction, or train with '
        '--algorithm.name fed_avg, which needs none',
      )
    self.x = x
    self._seed = seed

  def batches(
    self, first_step: int, num_steps: int, batch_size: int
  ) -> np.ndarray:
    """Returns the batches of some distillation steps.

    The data is passed over in epochs, each shuffled by the seed and its
    number; the position in it depends on `first_step` only, so a resumed run
    sees the same batches.

    Args:
      first_step: Number of distillation steps before these.
      num_steps: Steps to return.
      batch_size: Examples in a step.

    Returns:
      Raw inputs `[num_steps, batch_size, ...]`.
    """
    n = len(self.x)
    start = first_step * batch_size
    epochs, offsets = np.divmod(
      np.arange(start, start + num_steps * batch_size), n
    )
    order = {
      epoch: randomness.derive_rng(
        self._seed, 'distillation', int(epoch)
      ).permutation(n)
      for epoch in np.unique(epochs)
    }
    rows = np.array(
      [order[e][o] for e, o in zip(epochs, offsets)], dtype=np.int64
    )
    return self.x[rows].reshape(num_steps, batch_size, *self.x.shape[1:])
