"""Clients that keep something between rounds: models of their own.

TFF's clients forget everything when a round ends. So what a client keeps
travels with it: as a client-placed argument into a round and as a client-placed
result out of it. In between it is in the client store, and the state of the
algorithm holds its digest.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tff_codist import algorithm
from tff_codist import client_store
from tff_codist import errors
from tff_codist import pools

# Digests of the clients of one pool in the order of their ids, uint8 `[n, 32]`;
# zeros for a client that has not taken part yet.
Digests = np.ndarray


class ClientStates:
  """What the clients of one pool have between rounds."""

  def __init__(self, pool: pools.Pool, setting: algorithm.Setting):
    """Names the clients.

    Args:
      pool: The pool.
      setting: Has the client store.

    Raises:
      ConfigError: If there is no client store.
    """
    if setting.client_store is None:
      raise errors.ConfigError(
        'clients with models of their own and no client store',
        expected='a place to keep them between rounds',
        fix='give build_experiment a client_store',
      )
    self._store = setting.client_store
    self._places = {name: i for i, name in enumerate(pool.client_ids)}
    self._sample = pools.ranked(pool.client_ids, seed=0, purpose='models')

  def initialize(self) -> Digests:
    """Returns the digests of clients that have nothing yet."""
    return np.zeros((len(self._places), len(client_store.NOTHING)), np.uint8)

  def load(
    self, digests: Digests, client_ids: Iterable[str], start: Any
  ) -> list[Any]:
    """Returns what some clients have.

    Args:
      digests: Of all clients of the pool.
      client_ids: The clients.
      start: What a client has that takes part for the first time; also the
        structure of what all have.

    Raises:
      CheckpointError: If the store does not have it.
    """
    values = []
    for client_id in client_ids:
      digest = digests[self._places[client_id]].tobytes()
      values.append(
        start
        if digest == client_store.NOTHING
        else self._store.get(digest, start)
      )
    return values

  def save(
    self, digests: Digests, client_ids: Sequence[str], values: Sequence[Any]
  ) -> Digests:
    """Stores what some clients have now and returns the new digests."""
    digests = digests.copy()
    for client_id, value in zip(client_ids, values):
      digest = self._store.put(value)
      digests[self._places[client_id]] = np.frombuffer(digest, np.uint8)
    return digests

  def sample(self, count: int) -> list[str]:
    """Returns a fixed sample of the clients, all of them if they are fewer."""
    return self._sample[:count]


def stored(pools_digests: Iterable[Digests]) -> list[bytes]:
  """Returns the digests, of some pools, of the clients that have something."""
  return [
    row.tobytes() for digests in pools_digests for row in digests if row.any()
  ]
