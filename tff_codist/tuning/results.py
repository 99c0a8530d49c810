"""What a study has found: a table, a file, a picture, and a command."""

import csv
import io
import math
import pathlib
import shlex
import textwrap

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure
from matplotlib import ticker

from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import style
from tff_codist.reports import text as text_lib
from tff_codist.tuning import space as space_lib
from tff_codist.tuning import study as study_lib

_COLUMNS = 3
# A trial's mark by its status; those without a value stand on the axis.
_MARKS = {
  'completed': {'marker': 'o', 'color': style.colour(0, 3)},
  'stopped': {
    'marker': 'v',
    'edgecolors': style.GREY,
    'facecolors': 'none',
  },
  'infeasible': {'marker': 'x', 'color': style.colour(1, 3)},
}


def trials_table(study: study_lib.Study) -> str:
  """Returns the trials as text, best first, in 80 columns."""
  settings, names = study.settings, _names(study)
  trials = study.ranked()
  metric = settings.metric
  columns = [
    ('status', [t.status for t in trials]),
    (
      f'{metric} {metrics_lib.unit(metric)}'.strip(),
      [
        '-' if t.value is None else metrics_lib.number(metric, t.value)
        for t in trials
      ],
    ),
    ('round', ['-' if t.rounds is None else f'{t.rounds}' for t in trials]),
    *((name, [t.values[name] for t in trials]) for name in names),
  ]
  lines = [
    f'{settings.designer}: {_counts(study)}',
    *textwrap.wrap(
      f'Value: {metric} on the validation clients, mean over '
      f'{", ".join(settings.pools)} and the last {settings.last} evaluations.',
      text_lib.WIDTH,
    ),
    '',
    *text_lib.columns(
      ['trial', *(str(t.number) for t in trials)],
      [[title, *cells] for title, cells in columns],
    ),
  ]
  reasons = [
    line
    for t in trials
    if t.reason
    for line in textwrap.wrap(
      f'Trial {t.number} is infeasible: {t.reason}', text_lib.WIDTH
    )
  ]
  return '\n'.join([*lines, *([''] if reasons else []), *reasons]) + '\n'


def trials_csv(study: study_lib.Study) -> str:
  """Returns the trials as CSV, by number.

  Columns: `trial`, `status`, `value` (in the metric's own unit, accuracies as
  fractions), `rounds`, a column for each parameter, `reason`.
  """
  text = io.StringIO()
  names = _names(study)
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['trial', 'status', 'value', 'rounds', *names, 'reason'])
  for trial in study.trials:
    values = [trial.values[name] for name in names]
    writer.writerow(
      [
        trial.number,
        trial.status,
        '' if trial.value is None else repr(trial.value),
        '' if trial.rounds is None else trial.rounds,
        *values,
        trial.reason,
      ]
    )
  return text.getvalue()


def winner_command(study: study_lib.Study) -> str:
  """Returns the command that trains with the best values; '' without any.

  It evaluates on the test clients. What validated the trials is still set
  aside, so that training is the same.
  """
  if study.winner is None:
    return ''
  flags = space_lib.set_flags(study.flags, study.winner.values, study.config)
  command = ['python', 'bin/train.py', *flags]
  return shlex.join([*command, f'--run_dir={study.path / "best"}'])


def plot_trials(study: study_lib.Study) -> pathlib.Path:
  """Draws the value over each parameter; returns the file.

  Raises:
    StorageError: If it cannot be written.
  """
  space = space_lib.parse_space(study.settings.search, study.config)
  columns = min(_COLUMNS, len(space))
  rows = math.ceil(len(space) / columns)
  metric = study.settings.metric
  with matplotlib.rc_context(style.RC):
    picture = figure.Figure(
      figsize=(0.6 + 3.2 * columns, 0.9 + 2.6 * rows), layout='constrained'
    )
    panels = picture.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, parameter in zip(panels.flat, space):
      _draw(panel, study, parameter)
    for panel in panels.flat[len(space) :]:
      panel.remove()
    for panel in panels[:, 0]:
      panel.set_ylabel(metric)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    picture.legend(
      handles,
      labels,
      loc='outside lower center',
      ncols=2 if columns == 1 else len(labels) or 1,
    )
    picture.suptitle(
      f'{metrics_lib.title(metric)} on the validation clients',
      x=0.01,
      ha='left',
      fontsize=11,
    )
    return style.save(picture, study.path, 'trials.png')


def _draw(
  axes: mpl_axes.Axes, study: study_lib.Study, parameter: space_lib.Parameter
) -> None:
  """Draws the trials over one parameter."""
  if parameter.scale == 'list':
    places = {value: i for i, value in enumerate(parameter.values)}
    axes.set_xticks(range(len(places)), parameter.values)
    axes.set_xlim(-0.5, len(places) - 0.5)
  else:
    places = None
    if parameter.scale == 'log':
      axes.set_xscale('log')
    # A margin, so that marks at the ends are whole.
    axes.set_xlim(*_with_margin(parameter))
    if parameter.scale == 'log':
      style.log_ticks(axes.xaxis)
    if parameter.scale == 'int':
      axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  for status, mark in _MARKS.items():
    trials = [t for t in study.trials if t.status == status]
    if not trials:
      continue
    x = [t.values[parameter.name] for t in trials]
    x = [float(value) if places is None else places[value] for value in x]
    if status == 'infeasible':
      y, transform = [0.03] * len(x), axes.get_xaxis_transform()
    else:
      y, transform = [t.value for t in trials], axes.transData
    axes.scatter(x, y, s=28, label=status, transform=transform, **mark)
  best = study.winner
  if best is not None:
    value = best.values[parameter.name]
    axes.scatter(
      [float(value) if places is None else places[value]],
      [best.value],
      s=110,
      facecolors='none',
      edgecolors=style.colour(2, 3),
      linewidths=1.6,
      label='best',
    )
  axes.set_xlabel(parameter.name)
  if metrics_lib.is_fraction(study.settings.metric):
    axes.yaxis.set_major_formatter(style.PERCENT)


def _with_margin(parameter: space_lib.Parameter) -> tuple[float, float]:
  low, high = parameter.low, parameter.high
  if parameter.scale == 'log':
    factor = (high / low) ** 0.05
    return low / factor, high * factor
  margin = 0.05 * (high - low)
  return low - margin, high + margin


def _names(study: study_lib.Study) -> list[str]:
  space = space_lib.parse_space(study.settings.search, study.config)
  return [parameter.name for parameter in space]


def _counts(study: study_lib.Study) -> str:
  statuses = [trial.status for trial in study.trials]
  return ', '.join(
    f'{statuses.count(status)} {status}'
    for status in study_lib.STATUSES
    if status in statuses
  )
