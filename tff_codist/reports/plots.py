"""Pictures of one run and of several.

Every function writes PNG files and returns their paths; a picture whose metrics
were not measured is left out. Where several seeds were run, lines are means and
bands reach from the lowest to the highest seed, over the rounds that every seed
has.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Optional, Union

import matplotlib
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure
from matplotlib import lines
from matplotlib import patches
from matplotlib import ticker

from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import pool_plots
from tff_codist.reports import runs as runs_lib
from tff_codist.reports import style

# Noisy metrics of single rounds are drawn in at most so many blocks.
_BLOCKS = 50
_BYTES_PER_MEGABYTE = 1e6


def plot_run(
  run: runs_lib.Run,
  out_dir: Optional[style.OutDir] = None,
  *,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws all pictures of one run.

  Args:
    run: The run.
    out_dir: Where they go; None is `plots/` in the run folder.
    metric: The metric of the evaluation over rounds and bytes, see `metrics`.

  Returns:
    The files, those whose metrics the run has.

  Raises:
    ConfigError: If the run has no such metric.
    StorageError: If a file cannot be written.
  """
  out_dir = run.path / 'plots' if out_dir is None else out_dir
  return [
    *evaluations([run], out_dir, metric=metric),
    *domains([run], out_dir),
    *agreement([run], out_dir),
    *communication([run], out_dir, metric=metric),
    *norms(run, out_dir),
    *pool_plots.plot_membership(
      run.pools, out_dir, task=run.task, seed=run.seed
    ),
  ]


def plot_comparison(
  runs: Sequence[runs_lib.Run],
  out_dir: style.OutDir,
  *,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws the pictures that compare several runs.

  Args:
    runs: Runs of one task; at most one for each algorithm and seed.
    out_dir: Where they go.
    metric: See `plot_run`.

  Returns:
    The files.

  Raises:
    ConfigError: If there are no runs, or one has no such metric.
    RunFolderError: If the runs cannot be compared, see
      `runs.group_by_algorithm`.
    StorageError: If a file cannot be written.
  """
  return [
    *evaluations(runs, out_dir, metric=metric),
    *domains(runs, out_dir),
    *agreement(runs, out_dir),
    *communication(runs, out_dir, metric=metric),
  ]


def evaluations(
  runs: Sequence[runs_lib.Run],
  out_dir: style.OutDir,
  *,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws a metric of each model over the rounds, e.g. `accuracy.png`.

  With one algorithm, colour is the pool; with several, colour is the algorithm
  and line style the pool.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.
    metric: See `plot_run`.

  Returns:
    The file, named after the metric.

  Raises:
    ConfigError: If there are no runs, or one has no such metric.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = runs_lib.group_by_algorithm(runs)
  runs_lib.check_metric(runs, metric)
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(1)
    _draw_models(axes[0], groups, metric)
    _metric_axis(
      axes[0], metric, f'{metric}\non the evaluation data', runs[0].num_classes
    )
    _round_axis(axes[0])
    title = f'{metrics_lib.title(metric)} over rounds'
    axes[0].set_title(_title(title, groups))
    _legend(
      picture,
      groups,
      with_pools=True,
      with_chance=metrics_lib.has_chance(metric),
    )
    name = f'{metrics_lib.file_stem(metric)}.png'
    return [style.save(picture, out_dir, name)]


def domains(
  runs: Sequence[runs_lib.Run], out_dir: style.OutDir
) -> list[pathlib.Path]:
  """Draws each model's accuracy on each domain over rounds, `domains.png`.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.

  Returns:
    The file; empty if no run was evaluated by domain.

  Raises:
    ConfigError: If there are no runs.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = runs_lib.group_by_algorithm(runs)
  names = [
    domain
    for domain in dict.fromkeys(d for run in runs for d in run.domains)
    if any(f'{domain}/accuracy' in run.metric_names for run in runs)
  ]
  if not names:
    return []
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(len(names), sharey=True)
    for panel, domain in zip(axes, names):
      _draw_models(panel, groups, f'{domain}/accuracy')
    # The panels share their limits, which the first call fixes.
    for panel, domain in zip(axes, names):
      text = f'{domain}\naccuracy'
      _metric_axis(panel, f'{domain}/accuracy', text, runs[0].num_classes)
    _round_axis(axes[-1])
    axes[0].set_title(_title('Accuracy by domain over rounds', groups))
    _legend(picture, groups, with_pools=True, with_chance=True)
    return [style.save(picture, out_dir, 'domains.png')]


def agreement(
  runs: Sequence[runs_lib.Run], out_dir: style.OutDir
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
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(2)
    for panel, column in zip(axes, columns):
      for algorithm, group in groups.items():
        series = _over_seeds(group, column)
        if series is not None:
          _draw(panel, *series, **_look(groups, algorithm))
    axes[0].set_ylabel('same top-1 label\n(% of examples)')
    axes[0].set_ylim(0, 1)
    axes[0].yaxis.set_major_formatter(style.PERCENT)
    axes[1].set_ylabel('KL between models\n(nats)')
    axes[1].set_ylim(bottom=0)
    _round_axis(axes[1])
    axes[0].set_title(_title('Agreement between the models', groups))
    if len(groups) > 1:
      _legend(picture, groups)
    return [style.save(picture, out_dir, 'agreement.png')]


def communication(
  runs: Sequence[runs_lib.Run],
  out_dir: style.OutDir,
  *,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws a metric over communication, e.g. `bytes_against_accuracy.png`.

  The x axis sums the bytes that the clients of the model's own pool sent and
  received up to each evaluation, in megabytes (10^6 bytes), on a log scale. The
  initial evaluation, before any byte, is not on it.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.
    metric: See `plot_run`.

  Returns:
    The file, named after the metric; empty if no run has counted bytes yet.

  Raises:
    ConfigError: If there are no runs, or one has no such metric.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = runs_lib.group_by_algorithm(runs)
  runs_lib.check_metric(runs, metric)
  groups = _select(groups, lambda run: _has_sent(run, metric))
  if not any(groups.values()):
    return []
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(1)
    for algorithm, group in groups.items():
      for pool in _pool_names(group):
        members = [run for run in group if run.evaluations(pool, metric)]
        if not members:
          continue
        rounds, values = _over_seeds(members, f'eval/{pool}/{metric}')
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
    _metric_axis(
      axes[0], metric, f'{metric}\non the evaluation data', runs[0].num_classes
    )
    # Models differ in size by orders of magnitude.
    axes[0].set_xscale('log')
    style.log_ticks(axes[0].xaxis)
    axes[0].set_xlabel(
      "up- and downlink of the model's pool so far (MB, 10⁶ bytes, log scale)"
    )
    title = f'{metrics_lib.title(metric)} against communication'
    axes[0].set_title(_title(title, groups))
    _legend(
      picture,
      groups,
      with_pools=True,
      with_chance=metrics_lib.has_chance(metric),
    )
    name = f'bytes_against_{metrics_lib.file_stem(metric)}.png'
    return [style.save(picture, out_dir, name)]


def norms(run: runs_lib.Run, out_dir: style.OutDir) -> list[pathlib.Path]:
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
  with matplotlib.rc_context(style.RC):
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
      style.log_ticks(axes[0].yaxis)
      notes.insert(0, 'log scale')
    axes[0].set_ylabel(f'L2 norm\n({", ".join(notes)})' if notes else 'L2 norm')
    axes[1].set_ylim(-1, 1)
    axes[1].axhline(0, color=style.GREY, linewidth=0.8, zorder=1)
    axes[1].set_ylabel('cosine between\nthe two')
    _round_axis(axes[1])
    title = _title('Federated and distillation pseudo-gradients', groups)
    if block_size > 1:
      title += f', mean and range of {block_size} rounds each'
    axes[0].set_title(title)
    handles = _model_handles(groups, by_style=False)
    handles += [
      lines.Line2D([], [], color=style.GREY, linestyle=dashes, label=label)
      for label, dashes in (('federated', '-'), ('distillation', '--'))
    ]
    picture.legend(handles=handles, loc='outside right center')
    return [style.save(picture, out_dir, 'norms.png')]


def _axes(
  rows: int, *, sharey: bool = False
) -> tuple[figure.Figure, Sequence[mpl_axes.Axes]]:
  """Returns a figure with panels one above the other, over the same rounds."""
  # Figure without pyplot: no global state, no choice of a screen's backend.
  picture = figure.Figure(
    figsize=(8.0, 4.4 if rows == 1 else 0.4 + 2.5 * rows), layout='constrained'
  )
  panels = picture.subplots(rows, 1, sharex=True, sharey=sharey, squeeze=False)
  return picture, panels[:, 0]


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


def _has_sent(run: runs_lib.Run, metric: str) -> bool:
  """Returns whether a run has measured the metric after its first bytes."""
  return any(
    _megabytes_until(run, pool, series[0])[-1] > 0
    for pool in run.pool_names
    for series in [run.evaluations(pool, metric)]
    if series
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
  rank = list(groups).index(algorithm) if len(groups) > 1 else index
  return {'color': style.colour(rank, len(kinds)), **style.line(index)}


def _draw_models(
  axes: mpl_axes.Axes, groups: dict[str, list[runs_lib.Run]], metric: str
) -> None:
  """Draws a metric of every model that has it over the rounds."""
  for algorithm, group in groups.items():
    for pool in _pool_names(group):
      series = _over_seeds(group, f'eval/{pool}/{metric}')
      if series is not None:
        _draw(axes, *series, **_look(groups, algorithm, pool))


def _draw(
  axes: mpl_axes.Axes, x: np.ndarray, values: np.ndarray, **look: object
) -> None:
  """Draws the mean of `values[run, x]`, and its range if there are more."""
  if x.size > style.MARKED_POINTS:
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


def _metric_axis(
  axes: mpl_axes.Axes, metric: str, label: str, num_classes: int
) -> None:
  """Sets scale and label for a metric; marks the accuracy of guessing."""
  if metrics_lib.has_chance(metric):
    axes.axhline(1 / num_classes, color=style.GREY, linewidth=0.8, zorder=1)
  if metrics_lib.is_fraction(metric):
    axes.set_ylim(0, min(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(style.PERCENT)
    label += ' (%)'
  elif metrics_lib.kind(metric) == 'perplexity':
    # From the vocabulary's size before training down to tens.
    axes.set_yscale('log')
    style.log_ticks(axes.yaxis)
    label += ' (log scale)'
  else:
    axes.set_ylim(bottom=0)
  axes.set_ylabel(label)


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
        color=style.GREY,
        linewidth=0.8,
        label=f'chance ({100 / run.num_classes:.3g}%)',
      )
    )
  picture.legend(handles=handles, loc='outside right center')
