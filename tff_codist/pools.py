"""Pools: which clients train which model."""

import csv
import hashlib
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
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
    cohort_size: Clients sampled in every round, or their expected number.
    domains: Names of the domains whose examples its clients train on; empty
      for all.
    sampling: How a round's clients are drawn, see `clients.load_cohort`.
  """

  name: str
  model: models.Model
  client_ids: tuple[str, ...]
  cohort_size: int
  domains: tuple[str, ...] = ()
  sampling: str = 'fixed'


def ranked(client_ids: Iterable[str], *, seed: int, purpose: str) -> list[str]:
  """Returns the clients in an order drawn by a hash of each id.

  A client's place relative to another does not depend on who else there is.
  """

  def rank(client_id: str) -> bytes:
    return hashlib.sha256(f'{seed}/{purpose}/{client_id}'.encode()).digest()

  return sorted(client_ids, key=rank)


def draw(
  client_ids: Iterable[str], count: int, *, seed: int, purpose: str
) -> tuple[str, ...]:
  """Returns the first so many clients of `ranked`, sorted by id."""
  return tuple(sorted(ranked(client_ids, seed=seed, purpose=purpose)[:count]))


def count_of(fraction: float, total: int) -> int:
  """Returns how many a fraction of some clients are, rounded up, at least 1."""
  # 0.07 * 100 is a little above 7.
  return max(1, math.ceil(fraction * total - 1e-9))


def by_capacity(
  client_ids: Sequence[str], fraction: float, *, seed: int
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
  count = count_of(fraction, len(client_ids))
  return draw(client_ids, count, seed=seed, purpose='capacity')


def deal(
  client_ids: Sequence[str], fractions: Mapping[str, float], *, seed: int
) -> dict[str, tuple[str, ...]]:
  """Deals clients out to pools, each client to one of them at most.

  They are drawn by a hash of seed and client id.

  Args:
    client_ids: All clients.
    fractions: {pool: its share of them}, adding up to 1 at most.
    seed: The run's seed.

  Returns:
    {pool: its clients' ids, sorted}. Their number differs from the share by
    less than 1.
  """
  order = ranked(client_ids, seed=seed, purpose='deal')
  ends = [
    round(share * len(order))
    for share in itertools.accumulate(fractions.values())
  ]
  return {
    name: tuple(sorted(order[start:end]))
    for name, start, end in zip(fractions, [0, *ends], ends)
  }


def read_capacities(path: str, client_ids: Iterable[str]) -> dict[str, float]:
  """Reads a table of the clients' capacities.

  Args:
    path: A CSV file with the header `client_id,capacity` and one line for each
      client. Capacity is a number in any unit, e.g. gigabytes of memory.
    client_ids: The clients that exist.

  Returns:
    {client id: capacity}.

  Raises:
    DataNotFoundError: If there is no such file.
    ConfigError: If a line is malformed, or the file does not list every client
      exactly once.
  """
  expected = 'a header client_id,capacity, and every training client once'
  rows = csv.reader(_read_text(path, expected).splitlines())
  known, capacities = set(client_ids), {}
  try:
    if next(rows, None) != ['client_id', 'capacity']:
      raise _in_file(path, 1, 'no header client_id,capacity', expected)
    for row in filter(None, rows):
      client_id, capacity = (*row, '')[:2]
      what = None
      if len(row) != 2 or not _is_finite(capacity):
        what = f'{",".join(row)!r}'
      elif client_id not in known:
        what = f'unknown client id {client_id!r}'
      elif client_id in capacities:
        what = f'client id {client_id!r} again'
      if what:
        raise _in_file(path, rows.line_num, what, expected)
      capacities[client_id] = float(capacity)
  except csv.Error as error:
    raise _in_file(path, rows.line_num, str(error), expected) from error
  missing = sorted(known - set(capacities))
  if missing:
    what = f'no capacity of {len(missing)} clients, such as {missing[0]!r}'
    raise _in_file(path, rows.line_num, what, expected)
  return capacities


def from_list(path: str, client_ids: Iterable[str]) -> tuple[str, ...]:
  """Returns the clients that a file lists, one id a line.

  Args:
    path: The file; blank lines are passed over.
    client_ids: The clients that exist.

  Raises:
    DataNotFoundError: If there is no such file.
    ConfigError: If the file lists no client, one that does not exist, or one
      twice.
  """
  expected = 'clients that no other part of the run sets aside, one id a line'
  known, listed = set(client_ids), set()
  for line_num, line in enumerate(_read_text(path, expected).splitlines(), 1):
    client_id = line.strip()
    if not client_id:
      continue
    if client_id not in known:
      what = f'unknown client id {client_id!r}'
      raise _in_file(path, line_num, what, expected)
    if client_id in listed:
      raise _in_file(path, line_num, f'client id {client_id!r} again', expected)
    listed.add(client_id)
  if not listed:
    raise _in_file(path, 1, 'no client id', expected)
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
        fix='lower --pools.cohort_size, or let more clients into the pool',
      )
    if pool.model.num_classes != num_classes:
      raise errors.ConfigError(
        f'model {pool.model.name!r} of pool {pool.name!r} with '
        f'{pool.model.num_classes} classes',
        expected=f'{num_classes} classes, as in the task and every pool',
        fix='choose a model made for the task with --pools.models',
      )


def _read_text(path: str, expected: str) -> str:
  try:
    # Spreadsheets put a byte order mark before the text.
    return pathlib.Path(path).read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.DataNotFoundError(
      f'no readable file {path}',
      expected=expected,
      fix='correct --pools.client_lists or --pools.capacity_table',
    ) from error


def _is_finite(number: str) -> bool:
  try:
    return math.isfinite(float(number))
  except ValueError:
    return False


def _in_file(
  path: str, line_num: int, what: str, expected: str
) -> errors.ConfigError:
  return errors.ConfigError(
    f'{what} in {path}, line {line_num}',
    expected=expected,
    fix='correct the file',
  )
