"""How much data the clients of each pool have, and how different it is.

Everything comes from `pools.json`, so from the clients that were counted, a
sample of large pools.
"""

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

import numpy as np

from tff_codist.reports import text

# Labels or domains that a table lists, the commonest.
_LISTED = 10


class Heterogeneity(NamedTuple):
  """Figures of a pool's counted clients.

  Attributes:
    num_counted: The clients counted, at least 1.
    num_empty: Those of them without an example in the pool's domains, which
      never train.
    examples_mean: Mean number of examples of a client.
    examples_median: Its median.
    examples_min: The smallest client's examples.
    examples_max: The largest client's examples.
    gini: Gini coefficient of the examples, in [0, 1).
    categories: `labels`, else `domains`, whichever was counted first in this
      order; None if neither was, or there is no example.
    distance: Mean total variation distance, in [0, 1], of a client's
      distribution over the categories from the pool's, see `distance`.
    effective_number: Mean effective number of categories of a client, see
      `effective_number`.
  """

  num_counted: int
  num_empty: int
  examples_mean: float
  examples_median: float
  examples_min: int
  examples_max: int
  gini: float
  categories: Optional[str] = None
  distance: Optional[float] = None
  effective_number: Optional[float] = None


def measure(pool: Mapping[str, Any]) -> Heterogeneity:
  """Returns the figures of one pool.

  Args:
    pool: Its entry in `pools.json`.
  """
  examples = sizes(pool)
  figures = Heterogeneity(
    num_counted=examples.size,
    num_empty=int((examples == 0).sum()),
    examples_mean=float(examples.mean()),
    examples_median=float(np.median(examples)),
    examples_min=int(examples.min()),
    examples_max=int(examples.max()),
    gini=gini(examples),
  )
  categories, counts = count_categories(pool)
  if not counts.any():
    return figures
  return figures._replace(
    categories=categories,
    distance=distance(counts),
    effective_number=effective_number(counts),
  )


def sizes(pool: Mapping[str, Any]) -> np.ndarray:
  """Returns the number of examples of each counted client, `[clients]`."""
  return np.array([counts['examples'] for counts in pool['clients'].values()])


def count_categories(
  pool: Mapping[str, Any],
) -> tuple[Optional[str], np.ndarray]:
  """Returns `labels` or `domains` and their counts `[clients, categories]`.

  None, and no category, if neither was counted.
  """
  clients = pool['clients'].values()
  for categories in ('labels', 'domains'):
    if all(categories in counts for counts in clients):
      return categories, np.array([counts[categories] for counts in clients])
  return None, np.zeros((len(clients), 0), np.int64)


def distance(counts: np.ndarray) -> float:
  """Returns how far clients are from their pool, in total variation.

  The mean over clients with examples of ½ Σ_c |p_k(c) − p(c)|, p_k being the
  distribution of client k and p that of all examples together. Clients with few
  examples are far from it also when they are drawn from it.

  Args:
    counts: `[clients, categories]`, with at least one example.

  Returns:
    A number in [0, 1]; 0 if all clients have the same distribution.
  """
  shares = _shares(counts)
  of_pool = counts.sum(axis=0) / counts.sum()
  return float(np.abs(shares - of_pool).sum(axis=1).mean() / 2)


def effective_number(counts: np.ndarray) -> float:
  """Returns the categories that a client has, rare ones counting less.

  The mean over clients with examples of exp H(p_k), H being the entropy in
  nats: n for a client with equally many examples in each of n categories.

  Args:
    counts: `[clients, categories]`, with at least one example.
  """
  shares = _shares(counts)
  logs = np.log(shares, out=np.zeros(shares.shape), where=shares > 0)
  return float(np.exp(-(shares * logs).sum(axis=1)).mean())


def gini(values: np.ndarray) -> float:
  """Returns the Gini coefficient, Σ_i Σ_j |v_i − v_j| / (2 n² mean).

  Args:
    values: `[n]`, none of them negative.

  Returns:
    A number in [0, 1); 0 if all values are the same.
  """
  total = values.sum()
  if total == 0:
    return 0.0
  n = values.size
  ranks = np.arange(1, n + 1)
  return float((2 * ranks - n - 1) @ np.sort(values) / (n * total))


def describe_overlap(pools: Mapping[str, Any]) -> str:
  """Returns in words how many clients there are and whether pools share any.

  Args:
    pools: Contents of `pools.json`.
  """
  if len(pools['pools']) == 1:
    kind = 'one pool'
  else:
    kind = 'disjoint pools' if pools['disjoint'] else 'overlapping pools'
  return f'{pools["num_clients"]:,} clients in {kind}'


def membership_table(pools: Mapping[str, Any], *, task: str, seed: int) -> str:
  """Returns who is in which pool with which data, of at most 80 columns.

  Args:
    pools: Contents of `pools.json`.
    task: Name of the task.
    seed: The run's seed.

  Returns:
    Lines of text: a column for each pool, common clients, the server's data,
    and the commonest labels or domains.
  """
  of_pools = pools['pools']
  labels = [
    '',
    'model',
    'parameters',
    'clients',
    '  share of all',
    'cohort',
    'domains',
    'clients counted',
    '  without examples',
    'examples, mean',
    '  median',
    '  lowest to highest',
    '  Gini coefficient',
    'categories',
    "  distance from pool's",
    '  effective number',
  ]
  columns = [
    _column(name, pool, pools['num_clients']) for name, pool in of_pools.items()
  ]
  lines = [
    f'{task}, seed {seed}: {describe_overlap(pools)}',
    '',
    *text.columns(labels, columns),
    '',
  ]
  for note in [*_overlap_notes(pools), *_server_notes(pools)]:
    lines += textwrap.wrap(note, text.WIDTH, subsequent_indent='  ')
  return '\n'.join([*lines, *_commonest(pools)]) + '\n'


def _shares(counts: np.ndarray) -> np.ndarray:
  """Returns each client's distribution, of clients with examples."""
  totals = counts.sum(axis=1, keepdims=True)
  return counts[totals[:, 0] > 0] / totals[totals[:, 0] > 0]


def _column(name: str, pool: Mapping[str, Any], num_clients: int) -> list[str]:
  """Returns a pool's cells in the order of the table's labels."""
  figures = measure(pool)
  return [
    name,
    pool['model'],
    f'{pool["num_parameters"]:,}',
    f'{pool["num_clients"]:,}',
    f'{pool["num_clients"] / num_clients:.1%}',
    f'{pool["cohort_size"]:,}',
    '+'.join(pool['domains']) or 'all',
    f'{figures.num_counted:,}',
    f'{figures.num_empty:,}',
    f'{figures.examples_mean:,.1f}',
    f'{figures.examples_median:,.1f}',
    f'{figures.examples_min:,} to {figures.examples_max:,}',
    f'{figures.gini:.3f}',
    figures.categories or '-',
    '-' if figures.distance is None else f'{figures.distance:.3f}',
    '-' if figures.categories is None else f'{figures.effective_number:.2f}',
  ]


def _overlap_notes(pools: Mapping[str, Any]) -> list[str]:
  """Returns which clients pools share and what follows, a sentence each."""
  if pools['disjoint']:
    return []
  common = ', '.join(
    f'{pair.replace(" & ", " and ")} {count:,}'
    for pair, count in pools['overlaps'].items()
    if count
  )
  return [
    f'Clients in common: {common}.',
    'A client of several pools sends updates of several models: its privacy '
    'losses add up.',
  ]


def _server_notes(pools: Mapping[str, Any]) -> list[str]:
  """Returns what the server has, a sentence each."""
  notes = []
  origin = ', '.join(
    f'{count:,} from {source}'
    for source, count in pools['distillation_origin'].items()
  )
  size = pools['distillation_examples']
  notes.append(
    f'Distillation data: {size:,} examples ({origin}).'
    if origin
    else f'Distillation data: {size:,} examples.'
  )
  for kind in ('distillation', 'validation'):
    count = pools[f'{kind}_clients']
    if count:
      notes.append(f'Clients set aside from the pools for {kind}: {count:,}.')
  return notes


def _commonest(pools: Mapping[str, Any]) -> list[str]:
  """Returns the lines of the commonest labels or domains, if counted."""
  columns, totals = [], 0
  for name, pool in pools['pools'].items():
    categories, counts = count_categories(pool)
    if not counts.any():
      continue
    of_pool = counts.sum(axis=0)
    columns.append((name, of_pool / of_pool.sum()))
    totals = totals + of_pool
  if not columns:
    return []
  order = np.argsort(-totals, kind='stable')
  order, rest = order[:_LISTED], order[_LISTED:]
  names = pools['domains'] if categories == 'domains' else range(len(totals))
  labels = [f'share of {categories}', *(f'  {names[i]}' for i in order)]
  cells = [
    [name, *(f'{shares[i]:.1%}' for i in order)] for name, shares in columns
  ]
  if rest.size:
    labels.append(f'  {rest.size} others')
    for column, (_, shares) in zip(cells, columns):
      column.append(f'{shares[rest].sum():.1%}')
  return ['', *text.columns(labels, cells)]
