"""Pools: which clients train which model."""

import hashlib
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tff_codist import errors
from tff_codist import models


class Pool(NamedTuple):
  """Clients that share an architecture.

  Attributes:
    name: The pool's name, as in metric names.
    model: The model that its clients train.
    client_ids: Its clients. Pools may overlap: by capacity, a client that can
      run the large model is in the small model's pool too.
    cohort_size: Clients sampled in every round.
  """

  name: str
  model: models.Model
  client_ids: tuple[str, ...]
  cohort_size: int


def ranked(client_ids: Iterable[str], *, seed: int, purpose: str) -> list[str]:
  """Returns the clients in an order drawn by a hash of each id.

  A client's place relative to another does not depend on who else there is.
  """

  def rank(client_id: str) -> bytes:
    return hashlib.sha256(f'{seed}/{purpose}/{client_id}'.encode()).digest()

  return sorted(client_ids, key=rank)


def by_capacity(
  client_ids: Iterable[str], fraction: float, *, seed: int
) -> tuple[str, ...]:
  """Returns the clients whose capacity is in the highest `fraction`.

  Capacity is drawn by a hash of seed and client id, and a smaller fraction
  gives a subset of a larger one: P_L ⊂ P_S.

  Args:
    client_ids: All clients.
    fraction: Share of the clients, in (0, 1]; at least one client is chosen.
    seed: The run's seed.

  Returns:
    The chosen ids, sorted.
  """
  order = ranked(client_ids, seed=seed, purpose='capacity')
  return tuple(sorted(order[: max(1, math.ceil(fraction * len(order)))]))


def from_list(path: str, client_ids: Iterable[str]) -> tuple[str, ...]:
  """Returns the clients that a file lists, one id a line.

  Args:
    path: The file; blank lines are passed over.
    client_ids: The clients that exist.

  Raises:
    DataNotFoundError: If there is no such file.
    ConfigError: If the file lists no client, or one that does not exist.
  """
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.DataNotFoundError(
      f'no readable file {path}',
      expected='a file with one client id a line',
      fix='correct --pools.client_lists',
    ) from error
  listed = {line.strip() for line in text.splitlines()} - {''}
  unknown = sorted(listed - set(client_ids))
  if unknown or not listed:
    found = (
      f'client id {unknown[0]!r}, which is in no data set,' if unknown else ''
    )
    raise errors.ConfigError(
      f'{found or "no client id"} in {path}',
      expected='ids of training clients that are not distillation data',
      fix='correct the file',
    )
  return tuple(sorted(listed))


def check_pools(pools: Sequence[Pool], *, num_classes: int) -> None:
  """Checks that pools can be trained together.

  Args:
    pools: The pools.
    num_classes: The task's number of classes.

  Raises:
    ConfigError: If a pool is empty or smaller than its cohort, or a model's
      logits have another length than the task has classes.
  """
  for pool in pools:
    if len(pool.client_ids) < pool.cohort_size:
      raise errors.ConfigError(
        f'a cohort of {pool.cohort_size} in pool {pool.name!r} of '
        f'{len(pool.client_ids)} clients',
        expected='a cohort that is at most as large as its pool',
        fix='lower --pools.cohort_size or raise --pools.clients_fraction',
      )
    if pool.model.num_classes != num_classes:
      raise errors.ConfigError(
        f'model {pool.model.name!r} of pool {pool.name!r} with '
        f'{pool.model.num_classes} classes',
        expected=f'{num_classes} classes, as in the task and every pool',
        fix='choose a model made for the task with --pools.models',
      )
