"""Pictures of one run and of several.

Every function writes PNG files and returns their paths; a picture whose metrics
were not measured is left out. Where several seeds were run, lines are means and
bands reach from the lowest to the highest seed, over the rounds that every seed
has.
"""

import functools
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Union

import matplotlib
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure
from matplotlib import lines
from matplotlib import patches
from matplotlib import ticker

from tff_codist.reports import comparison
from tff_codist.reports import groups as groups_lib
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import pool_plots
from tff_codist.reports import privacy as privacy_lib
from tff_codist.reports import runs as runs_lib
from tff_codist.reports import style

# Noisy metrics of single rounds are drawn in at most so many blocks.
_BLOCKS = 50
# Characters in a line of the legend, unless one word is longer.
_LEGEND_WIDTH = 28


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
    *privacy(run, out_dir),
    *pool_plots.plot_membership(
      run.pools, out_dir, task=run.task, seed=run.seed
    ),
  ]


def plot_comparison(
  runs: Sequence[runs_lib.Run],
  out_dir: style.OutDir,
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws the pictures that compare several runs.

  Args:
    runs: Runs of one task; at most one for each algorithm, privacy and seed.
    out_dir: Where they go.
    last: Evaluations in the mean that is drawn against epsilon, at least 1.
    metric: See `plot_run`.

  Returns:
    The files.

  Raises:
    ConfigError: If there are no runs, one has no such metric, or `last` is not
      positive.
    RunFolderError: If the runs cannot be compared, see `groups.group_runs`.
    StorageError: If a file cannot be written.
  """
  return [
    *evaluations(runs, out_dir, metric=metric),
    *domains(runs, out_dir),
    *agreement(runs, out_dir),
    *communication(runs, out_dir, metric=metric),
    *privacy_against_utility(runs, out_dir, last=last, metric=metric),
  ]


def evaluations(
  runs: Sequence[runs_lib.Run],
  out_dir: style.OutDir,
  *,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws a metric of each model over the rounds, e.g. `accuracy.png`.

  With one algorithm and privacy, colour is the pool; with several, colour is
  the algorithm, paler with privacy, and line style the pool.

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
  groups = groups_lib.group_runs(runs)
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
  groups = groups_lib.group_runs(runs)
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
  groups = groups_lib.group_runs(runs)
  columns = ('exchange/agreement_top1', 'exchange/agreement_kl')
  groups = _select(
    groups, lambda run: not run.metrics.keys().isdisjoint(columns)
  )
  if not any(groups.values()):
    return []
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(2)
    for panel, column in zip(axes, columns):
      for setting, group in groups.items():
        series = _over_seeds(group, column)
        if series is not None:
          _draw(panel, *series, **_look(groups, setting))
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
  groups = groups_lib.group_runs(runs)
  runs_lib.check_metric(runs, metric)
  groups = _select(groups, lambda run: _has_sent(run, metric))
  if not any(groups.values()):
    return []
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(1)
    for setting, group in groups.items():
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
          **_look(groups, setting, pool),
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
  groups = groups_lib.group_runs([run])
  (setting,) = groups
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(2)
    has_zeros, has_positive, block_size = False, False, 1
    for pool, kind in measured:
      rounds, values = run.metrics[f'exchange/{pool}/{kind}']
      look = _look(groups, setting, pool)
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


def privacy(run: runs_lib.Run, out_dir: style.OutDir) -> list[pathlib.Path]:
  """Draws epsilon of the pools and the worst client, `privacy.png`.

  A pool's is that of its releases alone. An infinite one, of clients that a
  pool does not protect, stands in the legend only.

  Args:
    run: The run.
    out_dir: Where the picture goes.

  Returns:
    The file; empty if the run has recorded no epsilon.

  Raises:
    StorageError: If the file cannot be written.
  """
  measured = privacy_lib.series(run)
  if not measured:
    return []
  groups = groups_lib.group_runs([run])
  (setting,) = groups
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(1)
    for name, (rounds, epsilon) in measured.items():
      if name in run.pool_names:
        look = _look(groups, setting, name)
        label = f'{name} alone'
      else:
        # Above the pools' lines, of which one may be the same.
        look = {'color': 'black', 'linestyle': (0, (1, 2)), 'marker': 'x'}
        label = name
      if np.isinf(epsilon).any():
        label += ': infinite'
      shown = np.ma.masked_invalid(epsilon)[np.newaxis]
      _draw(axes[0], rounds, shown, label=label, **look)
    fields = run.config['privacy']
    if fields.get('max_epsilon') is not None:
      axes[0].axhline(
        fields['max_epsilon'], color=style.GREY, label='budget', zorder=1
      )
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(f'epsilon\nat delta {fields["delta"]:g}')
    _round_axis(axes[0])
    axes[0].set_title(_title('Privacy that clients lose', groups))
    picture.legend(loc='outside right center')
    return [style.save(picture, out_dir, 'privacy.png')]


def privacy_against_utility(
  runs: Sequence[runs_lib.Run],
  out_dir: style.OutDir,
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> list[pathlib.Path]:
  """Draws a metric over the worst client's epsilon, `privacy_utility.png`.

  A panel for each pool; in it a line for each algorithm, over runs that differ
  in noise, and a horizontal one for the runs without privacy. Bars and bands
  are one sample standard deviation over the seeds. Runs whose epsilon is
  infinite, or 0, are not on its log axis.

  Args:
    runs: See `plot_comparison`.
    out_dir: Where the picture goes.
    last: See `plot_comparison`.
    metric: See `plot_run`.

  Returns:
    The file; empty if no run has recorded a finite epsilon.

  Raises:
    ConfigError: If there are no runs, one has no such metric, or `last` is not
      positive.
    RunFolderError: If the runs cannot be compared.
    StorageError: If the file cannot be written.
  """
  groups = groups_lib.group_runs(runs)
  rows = comparison.compare(runs, last=last, metric=metric)
  shown = [row for row in rows if 0 < (row.worst_epsilon or 0) < np.inf]
  if not shown:
    return []
  models = list(dict.fromkeys((row.pool, row.model) for row in rows))
  families = {setting.family: setting.algorithm for setting in groups}
  looks = {
    family: {
      'color': _colour(family, families),
      'marker': style.line(index)['marker'],
    }
    for index, family in enumerate(families)
  }
  with matplotlib.rc_context(style.RC):
    picture, axes = _axes(len(models))
    for panel, (pool, model) in zip(axes, models):
      of_model = [row for row in rows if (row.pool, row.model) == (pool, model)]
      for family, look in looks.items():
        of_family = [row for row in of_model if row.setting.family == family]
        _draw_without_privacy(panel, of_family, look['color'])
        _draw_over_epsilon(panel, [r for r in of_family if r in shown], look)
      label = f'{model} ({pool})\n{metric}'
      _metric_axis(panel, metric, label, runs[0].num_classes)
    epsilons = [row.worst_epsilon for row in shown]
    axes[-1].set_xscale('log')
    # Wide enough for a few ticks.
    axes[-1].set_xlim(min(epsilons) / 2, max(epsilons) * 2)
    style.log_ticks(axes[-1].xaxis)
    axes[-1].set_xlabel(_epsilon_label(groups))
    title = f'{metrics_lib.title(metric)} against privacy'
    axes[0].set_title(_title(title, groups, 'mean, standard deviation'))
    drawn = {row.setting.family for row in shown}
    without = {one.family for one in groups if not one.privacy}
    handles = []
    for family, look in looks.items():
      if family in drawn:
        handles.append(lines.Line2D([], [], label=_in_lines(family), **look))
      elif family in without:
        look = {'color': look['color'], 'linestyle': '--'}
        handles.append(lines.Line2D([], [], label=_in_lines(family), **look))
    if without:
      look = {'color': '#404040', 'linestyle': '--'}
      handles.append(lines.Line2D([], [], label='without privacy', **look))
    if metrics_lib.has_chance(metric):
      handles.append(_chance_handle(runs[0].num_classes))
    picture.legend(handles=handles, loc='outside right center')
    return [style.save(picture, out_dir, 'privacy_utility.png')]


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
  groups: groups_lib.Groups,
  is_shown: Callable[[runs_lib.Run], bool],
) -> groups_lib.Groups:
  """Returns the groups with the runs that a picture can show.

  A group without any stays, empty: an algorithm has one colour in all pictures.
  """
  return {
    setting: [run for run in group if is_shown(run)]
    for setting, group in groups.items()
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
  return total / runs_lib.BYTES_PER_MEGABYTE


def _look(
  groups: groups_lib.Groups,
  setting: groups_lib.Setting,
  pool: Optional[str] = None,
) -> dict[str, object]:
  """Returns colour, line style and marker of a setting's pool.

  An algorithm has one colour, the paler the more noise.
  """
  names = _pool_names([run for group in groups.values() for run in group])
  index = 0 if pool is None else names.index(pool)
  if len(groups) == 1:
    colour = style.colour(index, len(names))
  else:
    colour = _colour(
      setting.label, {one.label: one.algorithm for one in groups}
    )
  return {'color': colour, **style.line(index)}


def _colour(name: str, algorithms: Mapping[str, str]) -> str:
  """Returns the colour of a setting or a family.

  Args:
    name: Its name.
    algorithms: By name, the algorithms of all that the picture shows.
  """
  ranks = list(dict.fromkeys(algorithms.values()))
  siblings = [n for n, a in algorithms.items() if a == algorithms[name]]
  return style.colour(
    ranks.index(algorithms[name]),
    len(ranks),
    siblings.index(name) / len(siblings),
  )


def _draw_models(
  axes: mpl_axes.Axes, groups: groups_lib.Groups, metric: str
) -> None:
  """Draws a metric of every model that has it over the rounds."""
  for setting, group in groups.items():
    for pool in _pool_names(group):
      series = _over_seeds(group, f'eval/{pool}/{metric}')
      if series is not None:
        _draw(axes, *series, **_look(groups, setting, pool))


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


def _draw_over_epsilon(
  axes: mpl_axes.Axes,
  rows: Sequence[comparison.Comparison],
  look: Mapping[str, Any],
) -> None:
  """Draws means over the worst client's epsilon, and their spread."""
  rows = sorted(rows, key=lambda row: row.worst_epsilon)
  axes.errorbar(
    [row.worst_epsilon for row in rows],
    [row.mean for row in rows],
    yerr=[np.nan if row.spread is None else row.spread for row in rows],
    capsize=3,
    zorder=3,
    **look,
  )


def _draw_without_privacy(
  axes: mpl_axes.Axes, rows: Sequence[comparison.Comparison], colour: str
) -> None:
  """Draws the means of runs without privacy for any epsilon."""
  for row in rows:
    if not row.setting.privacy:
      axes.axhline(row.mean, color=colour, linestyle='--', zorder=2)
      spread = row.spread or 0.0
      axes.axhspan(
        row.mean - spread,
        row.mean + spread,
        color=colour,
        alpha=0.15,
        linewidth=0,
        zorder=1,
      )


def _epsilon_label(groups: groups_lib.Groups) -> str:
  """Returns the label of an axis of the worst client's epsilon."""
  deltas = dict.fromkeys(
    dict(setting.privacy)['delta'] for setting in groups if setting.privacy
  )
  return (
    f'epsilon of the worst-off clients at delta {" or ".join(deltas)} '
    '(log scale)'
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


def _title(
  what: str,
  groups: groups_lib.Groups,
  drawn: str = 'line: mean, band: lowest to highest',
) -> str:
  """Returns a title with the task, the algorithm or seeds, and n.

  Args:
    what: What the picture shows.
    groups: The runs.
    drawn: What is drawn of several seeds.
  """
  runs = [run for group in groups.values() for run in group]
  sizes = sorted({len(group) for group in groups.values() if group})
  if len({run.setting for run in runs}) == 1:
    of = f'{runs[0].task}, {runs[0].setting}'
  else:
    of = runs[0].task
  if len(runs) == 1:
    of += f', seed {runs[0].seed} (n = 1)'
  elif sizes == [1]:
    of += ', n = 1 seed'
  elif len(sizes) == 1:
    of += f', n = {sizes[0]} seeds ({drawn})'
  else:
    of += f', n = {sizes[0]} to {sizes[-1]} seeds ({drawn})'
  return f'{what}\n{of}'


def _model_handles(
  groups: groups_lib.Groups, *, by_style: bool
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


def _in_lines(name: str) -> str:
  """Returns a name broken between its words for a narrow legend."""
  return textwrap.fill(
    name,
    _LEGEND_WIDTH,
    subsequent_indent='  ',
    break_long_words=False,
    break_on_hyphens=False,
  )


def _chance_handle(num_classes: int) -> lines.Line2D:
  """Returns the legend entry of the accuracy of guessing."""
  label = f'chance ({100 / num_classes:.3g}%)'
  return lines.Line2D([], [], color=style.GREY, linewidth=0.8, label=label)


def _legend(
  picture: figure.Figure,
  groups: groups_lib.Groups,
  *,
  with_pools: bool = False,
  with_chance: bool = False,
) -> None:
  """Puts the legend beside the axes, where it covers no line."""
  handles: list[Union[lines.Line2D, patches.Patch]] = []
  if len(groups) > 1:
    shown = {setting: group for setting, group in groups.items() if group}
    sizes = {len(group) for group in shown.values()}
    for setting, group in shown.items():
      label = _in_lines(setting.label)
      if len(sizes) > 1:
        label += f' (n={len(group)})'
      colour = _look(groups, setting)['color']
      handles.append(patches.Patch(color=colour, label=label))
  if with_pools:
    models = _model_handles(groups, by_style=True)
    if len(groups) == 1:
      for handle, pool in zip(models, _pool_names(next(iter(groups.values())))):
        handle.set_color(_look(groups, next(iter(groups)), pool)['color'])
    handles += models
  if with_chance:
    run = next(run for group in groups.values() for run in group)
    handles.append(_chance_handle(run.num_classes))
  picture.legend(handles=handles, loc='outside right center')
