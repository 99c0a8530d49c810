"""Pictures of one run and of several.

Every function writes PNG files and returns their paths; a picture whose metrics
were not measured is left out. Colours are those of Okabe and Ito (and of Tol's
muted scheme beyond seven), which readers with any colour vision tell apart;
pools also differ in line style and marker. Where several seeds were run, lines
are means and bands reach from the lowest to the highest seed, over the rounds
that every seed has.
"""

import functools
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Optional, Union

import matplotlib
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import axis as mpl_axis
from matplotlib import colors
from matplotlib import figure
from matplotlib import lines
from matplotlib import patches
from matplotlib import ticker

from tff_codist import files
from tff_codist.reports import runs as runs_lib

_OKABE_ITO = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
  '#000000',
)
_TOL_MUTED = (
  '#332288',
  '#cc6677',
  '#117733',
  '#88ccee',
  '#882255',
  '#ddcc77',
  '#44aa99',
  '#aa4499',
  '#999933',
)
_LINE_STYLES = ('-', '--', ':', '-.')
_MARKERS = ('o', 's', '^', 'D')
_GREY = '#8c8c8c'
_STYLE = {
  'font.size': 10,
  'axes.titlesize': 11,
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.7,
  'axes.axisbelow': True,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'lines.linewidth': 1.6,
  'lines.markersize': 4.5,
}
_DPI = 120
# More points than this on a line and markers would hide it.
_MARKED_POINTS = 25
# Noisy metrics of single rounds are drawn in at most so many blocks.
_BLOCKS = 50
# Rows of a heat map that are still one pixel high.
_CLIENTS_SHOWN = 500
_BYTES_PER_MEGABYTE = 1e6

# 40%, 2.5%: no more digits than the tick needs.
_PERCENT = ticker.FuncFormatter(lambda share, _: f'{100 * share:.4g}%')
_NUMBER = ticker.FuncFormatter(lambda value, _: f'{value:,.6g}')

_OutDir = Union[str, os.PathLike]


def plot_run(
  run: runs_lib.Run, out_dir: Optional[_OutDir] = None
) -> list[pathlib.Path]:
  """Draws all pictures of one run.

  Args:
    run: The run.
    out_dir: Where they go; None is `plots/` in the run folder.

  Returns:
    The files, those whose metrics the run has.

  Raises:
    StorageError: If a file cannot be written.
  """
  out_dir = run.path / 'plots' if out_dir is None else out_dir
  return [
    *accuracy([run], out_dir),
    *agreement([run], out_dir),
    *bytes_against_accuracy([run], out_dir),
    *norms(run, out_dir),
    *pools(run, out_dir),
  ]


def plot_comparison(
  runs: Sequence[runs_lib.Run], out_dir: _OutDir
) -> list[pathlib.Path]:
  """Draws the pictures that compare several runs.

  Args:
    runs: Runs of one task; at most one for each algorithm and seed.
    out_dir: Where they go.

  Returns:
    The files.

  Raises:
    ConfigError: If there are no runs.
    RunFolderError: If the runs cannot be compared, see
      `runs.group_by_algorithm`.
    StorageError: If a file cannot be written.
  """
  return [
    *accuracy(runs, out_dir),
    *agreement(runs, out_dir),
    *bytes_against_accuracy(runs, out_dir),
  ]


def accuracy(
  runs: Sequence[runs_lib.Run], out_dir: _OutDir
) -> list[pathlib.Path]:
  """Draws each model's accuracy over the rounds, `accuracy.png`.

  With one algorithm, colour is the pool; with several, colour is the algorithm
  and line style the pool.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.

  Returns:
    The file.

  Raises:
    ConfigError: If there are no runs.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = runs_lib.group_by_algorithm(runs)
  with matplotlib.rc_context(_STYLE):
    picture, axes = _axes(1)
    for algorithm, group in groups.items():
      for pool in _pool_names(group):
        series = _over_seeds(group, f'eval/{pool}/accuracy')
        _draw(axes[0], *series, **_look(groups, algorithm, pool))
    _accuracy_axis(axes[0], runs[0])
    _round_axis(axes[0])
    axes[0].set_title(_title('Accuracy over rounds', groups))
    _legend(picture, groups, with_pools=True, with_chance=True)
    return [_save(picture, out_dir, 'accuracy.png')]


def agreement(
  runs: Sequence[runs_lib.Run], out_dir: _OutDir
) -> list[pathlib.Path]:
  """Draws how far the models agree, top-1 and KL, `agreement.png`.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.

  Returns:
    The file; empty if no run has measured agreement.

  Raises:
    ConfigError: If there are no runs.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = runs_lib.group_by_algorithm(runs)
  columns = ('exchange/agreement_top1', 'exchange/agreement_kl')
  groups = _select(
    groups, lambda run: not run.metrics.keys().isdisjoint(columns)
  )
  if not any(groups.values()):
    return []
  with matplotlib.rc_context(_STYLE):
    picture, axes = _axes(2)
    for panel, column in zip(axes, columns):
      for algorithm, group in groups.items():
        series = _over_seeds(group, column)
        if series is not None:
          _draw(panel, *series, **_look(groups, algorithm))
    axes[0].set_ylabel('same top-1 label\n(% of examples)')
    axes[0].set_ylim(0, 1)
    axes[0].yaxis.set_major_formatter(_PERCENT)
    axes[1].set_ylabel('KL between models\n(nats)')
    axes[1].set_ylim(bottom=0)
    _round_axis(axes[1])
    axes[0].set_title(_title('Agreement between the models', groups))
    if len(groups) > 1:
      _legend(picture, groups)
    return [_save(picture, out_dir, 'agreement.png')]


def bytes_against_accuracy(
  runs: Sequence[runs_lib.Run], out_dir: _OutDir
) -> list[pathlib.Path]:
  """Draws accuracy over communication, `bytes_against_accuracy.png`.

  The x axis sums the bytes that the clients of the model's own pool sent and
  received up to each evaluation, in megabytes (10^6 bytes), on a log scale. The
  initial evaluation, before any byte, is not on it.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.

  Returns:
    The file; empty if no run has counted bytes yet.

  Raises:
    ConfigError: If there are no runs.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = runs_lib.group_by_algorithm(runs)
  groups = _select(groups, _has_sent)
  if not any(groups.values()):
    return []
  with matplotlib.rc_context(_STYLE):
    picture, axes = _axes(1)
    for algorithm, group in groups.items():
      for pool in _pool_names(group):
        rounds, values = _over_seeds(group, f'eval/{pool}/accuracy')
        members = [run for run in group if pool in run.pool_names]
        megabytes = np.mean(
          [_megabytes_until(run, pool, rounds) for run in members], axis=0
        )
        sent = megabytes > 0
        _draw(
          axes[0],
          megabytes[sent],
          values[:, sent],
          **_look(groups, algorithm, pool),
        )
    _accuracy_axis(axes[0], runs[0])
    # Models differ in size by orders of magnitude.
    axes[0].set_xscale('log')
    _log_ticks(axes[0].xaxis)
    axes[0].set_xlabel(
      "up- and downlink of the model's pool so far (MB, 10⁶ bytes, log scale)"
    )
    axes[0].set_title(_title('Accuracy against communication', groups))
    _legend(picture, groups, with_pools=True, with_chance=True)
    return [_save(picture, out_dir, 'bytes_against_accuracy.png')]


def norms(run: runs_lib.Run, out_dir: _OutDir) -> list[pathlib.Path]:
  """Draws the two pseudo-gradients' norms and their cosine, `norms.png`.

  Noisy rounds hide each other: more than 50 are drawn as the mean and the
  range over blocks of rounds, and the title says so.

  Args:
    run: The run.
    out_dir: Where the picture goes.

  Returns:
    The file; empty if the run did not measure any of them.

  Raises:
    StorageError: If the file cannot be written.
  """
  kinds = {'federated_norm': '-', 'distillation_norm': '--'}
  measured = [
    (pool, kind)
    for pool in run.pool_names
    for kind in (*kinds, 'cosine')
    if f'exchange/{pool}/{kind}' in run.metrics
  ]
  if not measured:
    return []
  groups = {run.algorithm: [run]}
  with matplotlib.rc_context(_STYLE):
    picture, axes = _axes(2)
    has_zeros, has_positive, block_size = False, False, 1
    for pool, kind in measured:
      rounds, values = run.metrics[f'exchange/{pool}/{kind}']
      look = _look(groups, run.algorithm, pool)
      if kind in kinds:
        has_zeros |= bool((values == 0).any())
        has_positive |= bool((values > 0).any())
        values = np.ma.masked_equal(values, 0)
      look['linestyle'] = kinds.get(kind, '-')
      rounds, values = _in_blocks(rounds, values)
      block_size = max(block_size, len(values))
      _draw(axes[0] if kind in kinds else axes[1], rounds, values, **look)
    notes = ['zeros not shown'] if has_zeros else []
    if has_positive:
      axes[0].set_yscale('log')
      _log_ticks(axes[0].yaxis)
      notes.insert(0, 'log scale')
    axes[0].set_ylabel(f'L2 norm\n({", ".join(notes)})' if notes else 'L2 norm')
    axes[1].set_ylim(-1, 1)
    axes[1].axhline(0, color=_GREY, linewidth=0.8, zorder=1)
    axes[1].set_ylabel('cosine between\nthe two')
    _round_axis(axes[1])
    title = _title('Federated and distillation pseudo-gradients', groups)
    if block_size > 1:
      title += f', mean and range of {block_size} rounds each'
    axes[0].set_title(title)
    handles = _model_handles(groups, by_style=False)
    handles += [
      lines.Line2D([], [], color=_GREY, linestyle=style, label=label)
      for label, style in (('federated', '-'), ('distillation', '--'))
    ]
    picture.legend(handles=handles, loc='outside right center')
    return [_save(picture, out_dir, 'norms.png')]


def pools(run: runs_lib.Run, out_dir: _OutDir) -> list[pathlib.Path]:
  """Draws who is in which pool and has which labels, `pools.png`.

  A row is a client. Clients are sorted by their pools, then by their most
  frequent label, so that skewed label distributions show as a diagonal. Of more
  than 500 clients, every so many are shown, and the title says so.

  Args:
    run: The run.
    out_dir: Where the picture goes.

  Returns:
    The file; empty if no pool has a client.

  Raises:
    StorageError: If the file cannot be written.
  """
  of_client: dict[str, Sequence[int]] = {}
  for pool in run.pool_names:
    of_client.update(run.pools['pools'][pool]['clients'])
  if not of_client:
    return []
  counts = np.array(list(of_client.values()), dtype=np.float64)
  is_member = np.array(
    [
      [client in run.pools['pools'][pool]['clients'] for pool in run.pool_names]
      for client in of_client
    ]
  )
  sizes = counts.sum(axis=1)
  shares = counts / np.maximum(sizes, 1)[:, np.newaxis]
  # The last key is the first to sort by: clients of the scarcest pool on top.
  by_scarcity = np.argsort(-is_member.sum(axis=0), kind='stable')
  order = np.lexsort(
    (
      -shares.max(axis=1),
      shares.argmax(axis=1),
      *(~is_member[:, pool] for pool in by_scarcity),
    )
  )
  if order.size > _CLIENTS_SHOWN:
    shown = np.linspace(0, order.size - 1, _CLIENTS_SHOWN).round().astype(int)
    order = order[shown]
  with matplotlib.rc_context({**_STYLE, 'axes.grid': False}):
    picture = _pools_picture(run, is_member[order], shares[order], sizes[order])
    title = f'{len(of_client):,} clients of {run.task}, seed {run.seed}'
    if order.size < len(of_client):
      title += f' ({order.size} of them shown)'
    reserved = len(run.pools.get('distillation_clients', ()))
    if reserved:
      title += f'; {reserved:,} more give unlabelled data to the server'
    picture.suptitle(title, x=0.01, ha='left', fontsize=11)
    return [_save(picture, out_dir, 'pools.png')]


def _pools_picture(
  run: runs_lib.Run,
  is_member: np.ndarray,
  shares: np.ndarray,
  sizes: np.ndarray,
) -> figure.Figure:
  """Draws membership, label heat map and sizes of clients beside each other."""
  num_clients, num_pools = is_member.shape
  picture = figure.Figure(figsize=(9.0, 6.0), layout='constrained')
  membership, heat, size = picture.subplots(
    1, 3, sharey=True, width_ratios=[0.4 + 0.35 * num_pools, 6, 1.3]
  )
  # Colours as numbers: light grey where the client is not in the pool.
  cells = np.full((num_clients, num_pools, 3), 0.94)
  for index, pool in enumerate(run.pool_names):
    colour = _look({run.algorithm: [run]}, run.algorithm, pool)['color']
    cells[is_member[:, index], index] = colors.to_rgb(colour)
  # The same extent for all three: client k fills k - 0.5 to k + 0.5.
  options = {'aspect': 'auto', 'interpolation': 'nearest'}
  membership.imshow(cells, **options)
  for edge in range(1, num_pools):
    membership.axvline(edge - 0.5, color='white', linewidth=3)
  membership.set_xticks(
    range(num_pools),
    [
      f'{pool} ({len(run.pools["pools"][pool]["clients"]):,})'
      for pool in run.pool_names
    ],
    rotation=45,
    ha='right',
    rotation_mode='anchor',
  )
  membership.set_ylabel('client, sorted by pool and most frequent label')
  membership.yaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
  membership.set_title('pool')

  # The square root of the share, or one client with a single label would fade
  # all others; the colour bar has the same scale.
  scale = colors.PowerNorm(0.5, vmin=0, vmax=max(shares.max(), 1e-9))
  image = heat.imshow(shares, cmap='Blues', norm=scale, **options)
  heat.xaxis.set_major_locator(ticker.MaxNLocator(10, integer=True))
  heat.set_xlabel('label')
  heat.set_title("share of the client's examples with each label")
  bar = picture.colorbar(image, ax=heat, format=_PERCENT, pad=0.02, aspect=40)
  bar.outline.set_visible(False)

  size.barh(np.arange(num_clients), sizes, height=1.0, color=_GREY)
  size.set_xlim(left=0)
  size.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
  size.set_xlabel('examples')
  for axes in (heat, size):
    axes.tick_params(left=False)
  return picture


def _axes(rows: int) -> tuple[figure.Figure, Sequence[mpl_axes.Axes]]:
  # Figure without pyplot: no global state, no choice of a screen's backend.
  picture = figure.Figure(
    figsize=(8.0, 4.4 if rows == 1 else 5.4), layout='constrained'
  )
  return picture, picture.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def _save(picture: figure.Figure, out_dir: _OutDir, name: str) -> pathlib.Path:
  data = io.BytesIO()
  picture.savefig(data, format='png', dpi=_DPI)
  path = pathlib.Path(out_dir) / name
  files.write(path, data.getvalue())
  return path


def _pool_names(runs: Sequence[runs_lib.Run]) -> list[str]:
  return list(dict.fromkeys(name for run in runs for name in run.pool_names))


def _select(
  groups: dict[str, list[runs_lib.Run]],
  is_shown: Callable[[runs_lib.Run], bool],
) -> dict[str, list[runs_lib.Run]]:
  """Returns the groups with the runs that a picture can show.

  A group without any stays, empty: an algorithm has one colour in all pictures.
  """
  return {
    algorithm: [run for run in group if is_shown(run)]
    for algorithm, group in groups.items()
  }


def _over_seeds(
  runs: Sequence[runs_lib.Run], column: str
) -> Optional[tuple[np.ndarray, np.ndarray]]:
  """Returns the rounds that every run has, and values `[run, round]`.

  A mean over the seeds that happen to be left in a round would jump where one
  of them ends.
  """
  series = [run.metrics[column] for run in runs if column in run.metrics]
  if not series:
    return None
  rounds = functools.reduce(np.intersect1d, [rounds for rounds, _ in series])
  return rounds, np.stack(
    [values[np.isin(its_rounds, rounds)] for its_rounds, values in series]
  )


def _in_blocks(
  rounds: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the middle of each block of rounds, and values `[i, block]`."""
  size = -(-rounds.size // _BLOCKS)
  missing = -rounds.size % size
  padded = np.ma.concatenate([values, np.ma.masked_all(missing)])
  starts = np.arange(0, rounds.size, size)
  ends = np.minimum(starts + size, rounds.size) - 1
  return (rounds[starts] + rounds[ends]) / 2, padded.reshape(-1, size).T


def _has_sent(run: runs_lib.Run) -> bool:
  """Returns whether a run has an evaluation after its first bytes."""
  return any(
    _megabytes_until(run, pool, rounds)[-1] > 0
    for pool in run.pool_names
    for rounds, _ in [run.metrics[f'eval/{pool}/accuracy']]
  )


def _megabytes_until(
  run: runs_lib.Run, pool: str, rounds: np.ndarray
) -> np.ndarray:
  """Returns a pool's up- and downlink until the end of each round, in MB."""
  total = np.zeros(rounds.shape)
  for way in ('uplink', 'downlink'):
    column = f'cost/{pool}/{way}_bytes'
    if column in run.metrics:
      its_rounds, values = run.metrics[column]
      sums = np.concatenate([[0.0], np.cumsum(values)])
      total += sums[np.searchsorted(its_rounds, rounds, side='right')]
  return total / _BYTES_PER_MEGABYTE


def _look(
  groups: dict[str, list[runs_lib.Run]],
  algorithm: str,
  pool: Optional[str] = None,
) -> dict[str, object]:
  """Returns colour, line style and marker of an algorithm's pool."""
  names = _pool_names([run for group in groups.values() for run in group])
  index = 0 if pool is None else names.index(pool)
  kinds = list(groups) if len(groups) > 1 else names
  palette = _OKABE_ITO if len(kinds) <= len(_OKABE_ITO) else _TOL_MUTED
  rank = list(groups).index(algorithm) if len(groups) > 1 else index
  return {
    'color': palette[rank % len(palette)],
    'linestyle': _LINE_STYLES[index % len(_LINE_STYLES)],
    'marker': _MARKERS[index % len(_MARKERS)],
  }


def _draw(
  axes: mpl_axes.Axes, x: np.ndarray, values: np.ndarray, **look: object
) -> None:
  """Draws the mean of `values[run, x]`, and its range if there are more."""
  if x.size > _MARKED_POINTS:
    look = {**look, 'marker': 'None'}
  # Not clipped: the markers of round 0 lie on the axis.
  axes.plot(x, values.mean(axis=0), zorder=3, clip_on=False, **look)
  if len(values) > 1:
    axes.fill_between(
      x,
      values.min(axis=0),
      values.max(axis=0),
      color=look['color'],
      alpha=0.2,
      linewidth=0,
      zorder=2,
    )


def _round_axis(axes: mpl_axes.Axes) -> None:
  axes.set_xlabel('round')
  # Before the first round has ended, round 0 alone has no width.
  axes.set_xlim(0, max(1.0, axes.get_xlim()[1]))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def _log_ticks(axis: mpl_axis.Axis) -> None:
  """Labels a log axis with plain numbers, at least a few of them."""
  low, high = axis.get_view_interval()
  # Below three decades, powers of ten alone leave too few labels.
  subs = (1, 2, 5) if high < 1000 * low else (1,)
  axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(_NUMBER)


def _accuracy_axis(axes: mpl_axes.Axes, run: runs_lib.Run) -> None:
  """Sets a percent axis from 0, with the level of guessing."""
  axes.axhline(1 / run.num_classes, color=_GREY, linewidth=0.8, zorder=1)
  axes.set_ylim(0, min(1.0, axes.get_ylim()[1]))
  axes.yaxis.set_major_formatter(_PERCENT)
  axes.set_ylabel('accuracy on the evaluation data (%)')


def _title(what: str, groups: dict[str, list[runs_lib.Run]]) -> str:
  """Returns a title with the task, the algorithm or seeds, and n."""
  runs = [run for group in groups.values() for run in group]
  sizes = sorted({len(group) for group in groups.values() if group})
  if len({run.algorithm for run in runs}) == 1:
    of = f'{runs[0].task}, {runs[0].algorithm}'
  else:
    of = runs[0].task
  if len(runs) == 1:
    of += f', seed {runs[0].seed} (n = 1)'
  elif sizes == [1]:
    of += ', n = 1 seed'
  elif len(sizes) == 1:
    of += f', n = {sizes[0]} seeds (line: mean, band: lowest to highest)'
  else:
    of += (
      f', n = {sizes[0]} to {sizes[-1]} seeds '
      '(line: mean, band: lowest to highest)'
    )
  return f'{what}\n{of}'


def _model_handles(
  groups: dict[str, list[runs_lib.Run]], *, by_style: bool
) -> list[lines.Line2D]:
  """Returns legend entries of the models: by line style, else by colour."""
  runs = [run for group in groups.values() for run in group]
  handles = []
  for pool in _pool_names(runs):
    models = dict.fromkeys(
      run.model(pool) for run in runs if pool in run.pool_names
    )
    look = _look(groups, next(iter(groups)), pool)
    if by_style:
      look['color'] = '#404040'
    else:
      look['linestyle'] = '-'
    label = f'{" / ".join(models)} ({pool})'
    handles.append(lines.Line2D([], [], label=label, **look))
  return handles


def _legend(
  picture: figure.Figure,
  groups: dict[str, list[runs_lib.Run]],
  *,
  with_pools: bool = False,
  with_chance: bool = False,
) -> None:
  """Puts the legend beside the axes, where it covers no line."""
  handles: list[Union[lines.Line2D, patches.Patch]] = []
  if len(groups) > 1:
    shown = {algorithm: group for algorithm, group in groups.items() if group}
    sizes = {len(group) for group in shown.values()}
    for algorithm, group in shown.items():
      label = algorithm if len(sizes) == 1 else f'{algorithm} (n={len(group)})'
      colour = _look(groups, algorithm)['color']
      handles.append(patches.Patch(color=colour, label=label))
  if with_pools:
    models = _model_handles(groups, by_style=True)
    if len(groups) == 1:
      for handle, pool in zip(models, _pool_names(next(iter(groups.values())))):
        handle.set_color(_look(groups, next(iter(groups)), pool)['color'])
    handles += models
  if with_chance:
    run = next(run for group in groups.values() for run in group)
    handles.append(
      lines.Line2D(
        [],
        [],
        color=_GREY,
        linewidth=0.8,
        label=f'chance ({100 / run.num_classes:.3g}%)',
      )
    )
  picture.legend(handles=handles, loc='outside right center')
