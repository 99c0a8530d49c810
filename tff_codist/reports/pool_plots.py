"""Pictures of the pools' clients: their labels or domains, and their sizes."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import colors
from matplotlib import figure
from matplotlib import ticker

from tff_codist.reports import heterogeneity
from tff_codist.reports import style

# Rows of a pool's heat map that are still one pixel high.
_CLIENTS_SHOWN = 200
# A title names the common clients of at most so many pairs of pools.
_PAIRS_NAMED = 3


def plot_membership(
  pools: Mapping[str, Any], out_dir: style.OutDir, *, task: str, seed: int
) -> list[pathlib.Path]:
  """Draws the clients of the pools, `pools.png` and `sizes.png`.

  Args:
    pools: Contents of `pools.json`.
    out_dir: Where the pictures go.
    task: Name of the task.
    seed: The run's seed.

  Returns:
    The files; the first only if labels or domains were counted.

  Raises:
    StorageError: If a file cannot be written.
  """
  of = f'{task}, seed {seed}'
  return [
    *_draw_categories(pools, out_dir, of),
    _draw_sizes(pools['pools'], out_dir, of),
  ]


def _draw_categories(
  pools: Mapping[str, Any], out_dir: style.OutDir, of: str
) -> list[pathlib.Path]:
  """Draws a heat map of clients and labels, or domains, for each pool.

  A row is a client. Clients are sorted by their most frequent label, so that
  skewed label distributions show as a diagonal.
  """
  shares, kinds = {}, set()
  for name, pool in pools['pools'].items():
    categories, counts = heterogeneity.count_categories(pool)
    kinds.add(categories)
    totals = counts.sum(axis=1, keepdims=True)
    shares[name] = counts / np.maximum(totals, 1)
  if kinds == {None}:
    return []
  (categories,) = kinds
  # The square root of the share, or one client with a single label would fade
  # all others; the colour bar has the same scale.
  highest = max(of_pool.max() for of_pool in shares.values())
  scale = colors.PowerNorm(0.5, vmin=0, vmax=max(highest, 1e-9))
  with matplotlib.rc_context({**style.RC, 'axes.grid': False}):
    picture = figure.Figure(
      figsize=(8.5, 1.2 + 2.4 * len(shares)), layout='constrained'
    )
    panels = picture.subplots(
      len(shares), 2, squeeze=False, sharex='col', width_ratios=[6, 1.3]
    )
    for index, name in enumerate(shares):
      pool = pools['pools'][name]
      order = _order(shares[name])
      rows, size = panels[index]
      image = rows.imshow(
        shares[name][order],
        cmap='Blues',
        norm=scale,
        aspect='auto',
        interpolation='nearest',
      )
      rows.set_title(_pool_title(name, pool, order.size))
      rows.set_ylabel(f'client, sorted by\ncommonest {categories[:-1]}')
      size.barh(
        np.arange(order.size),
        heterogeneity.sizes(pool)[order],
        height=1.0,
        color=style.colour(index, len(shares)),
      )
      # As the heat map beside it: client k fills k - 0.5 to k + 0.5.
      size.set_ylim(rows.get_ylim())
      for panel in (rows, size):
        panel.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
      size.tick_params(left=False, labelleft=False)
    _category_axis(panels[-1, 0], categories, pools['domains'])
    panels[-1, 1].set_xlim(left=0)
    panels[-1, 1].xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
    panels[-1, 1].set_xlabel('examples')
    bar = picture.colorbar(
      image, ax=list(panels[:, 0]), format=style.PERCENT, pad=0.02, aspect=40
    )
    bar.outline.set_visible(False)
    picture.suptitle(
      f'Examples of each client by {categories[:-1]}, {of}\n{_overlaps(pools)}',
      x=0.01,
      ha='left',
      fontsize=11,
    )
    return [style.save(picture, out_dir, 'pools.png')]


def _draw_sizes(
  pools: Mapping[str, Any], out_dir: style.OutDir, of: str
) -> pathlib.Path:
  """Draws the examples of the clients, from the smallest to the largest."""
  with matplotlib.rc_context(style.RC):
    picture = figure.Figure(figsize=(8.0, 4.4), layout='constrained')
    axes = picture.subplots()
    for index, (name, pool) in enumerate(pools.items()):
      sizes = np.sort(heterogeneity.sizes(pool))
      look = style.line(index)
      if sizes.size > style.MARKED_POINTS:
        look['marker'] = 'None'
      axes.plot(
        (np.arange(sizes.size) + 0.5) / sizes.size,
        np.ma.masked_equal(sizes, 0),
        color=style.colour(index, len(pools)),
        label=f'{name} (Gini {heterogeneity.gini(sizes):.2f})',
        **look,
      )
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(style.PERCENT)
    axes.set_xlabel('counted clients of the pool, smallest first (%)')
    if any(heterogeneity.sizes(pool).any() for pool in pools.values()):
      axes.set_yscale('log')
      style.log_ticks(axes.yaxis)
    axes.set_ylabel('examples of a client (log scale)')
    axes.set_title(f'Examples per client\n{of}')
    picture.legend(loc='outside right center')
    return style.save(picture, out_dir, 'sizes.png')


def _order(shares: np.ndarray) -> np.ndarray:
  """Returns the clients that are shown, sorted by their commonest category.

  Those without examples come last.
  """
  highest = shares.max(axis=1)
  order = np.lexsort((-highest, shares.argmax(axis=1), highest == 0))
  if order.size > _CLIENTS_SHOWN:
    shown = np.linspace(0, order.size - 1, _CLIENTS_SHOWN)
    order = order[shown.round().astype(int)]
  return order


def _pool_title(name: str, pool: Mapping[str, Any], num_shown: int) -> str:
  title = f'pool {name}: model {pool["model"]}, {pool["num_clients"]:,} clients'
  if num_shown < pool['num_clients']:
    title += f' ({num_shown:,} shown)'
  if pool['domains']:
    title += f', {" and ".join(pool["domains"])} only'
  return title


def _overlaps(pools: Mapping[str, Any]) -> str:
  """Returns in words how many clients the pools share."""
  title = heterogeneity.describe_overlap(pools)
  if not pools['disjoint'] and len(pools['overlaps']) <= _PAIRS_NAMED:
    pairs = pools['overlaps'].items()
    common = ', '.join(f'{pair} {count:,}' for pair, count in pairs)
    title += f', in common: {common}'
  return title


def _category_axis(
  axes: mpl_axes.Axes, categories: str, domains: list[str]
) -> None:
  if categories == 'domains':
    axes.set_xticks(range(len(domains)), domains)
  else:
    axes.xaxis.set_major_locator(ticker.MaxNLocator(10, integer=True))
  axes.set_xlabel(categories[:-1])
