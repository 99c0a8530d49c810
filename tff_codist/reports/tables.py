"""Tables of one run and of several, as text of at most 80 columns.

The number that counts is the mean over the last evaluations, see `comparison`.
The best evaluation of a run is picked on the evaluation data, so it is biased
and stands only in the summary, marked.
"""

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from tff_codist import errors
from tff_codist.reports import comparison
from tff_codist.reports import groups as groups_lib
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import privacy as privacy_lib
from tff_codist.reports import runs as runs_lib
from tff_codist.reports import text as text_lib

_VOID = 'No guarantee, as the noise was drawn from the seed'
# Names are broken in a table that has many other columns.
_NAME_WIDTH = 26
# A note counts runs beyond so many.
_NAMED_RUNS = 3
# Fields in which repetitions of one experiment may differ.
_FREE_FIELDS = ('seed', 'task.data_dir')
# Fields that two algorithms should share to be compared; the others tune one.
_SHARED_FIELDS = (
  'task.',
  'text.',
  'unlabelled.',
  'pools.',
  'client.',
  'program.rounds',
  'program.evaluation_clients',
)


def summary_table(
  run: runs_lib.Run, *, last: int = 5, metric: str = metrics_lib.DEFAULT
) -> str:
  """Returns the summary of one run, for a terminal of 80 columns.

  Args:
    run: The run, finished or not.
    last: Evaluations in the mean of the metric, at least 1.
    metric: The metric, see `metrics`.

  Returns:
    Lines of text. Megabytes are 10^6 bytes and sum all rounds; examples/s is
    the number of training examples of all pools over the seconds of the
    training rounds (without the initial evaluation).

  Raises:
    ConfigError: If `last` is not positive, or the run has no such metric.
  """
  runs_lib.check_metric([run], metric)
  if run.failure is not None:
    status = f'failed: {run.failure}'
  else:
    status = 'finished' if run.finished else 'not finished'
  lines = textwrap.wrap(
    f'{run.algorithm} on {run.task}, seed {run.seed}: '
    f'round {run.last_round}, {status}',
    text_lib.WIDTH,
  )
  counts = {
    comparison.last_evaluations(run, pool, last=last, metric=metric).size
    for pool in run.pool_names
    if run.evaluations(pool, metric)
  }
  count = f'{counts.pop()}' if len(counts) == 1 else f'{last} or fewer'
  way = 'lowest' if metrics_lib.is_better_if_lower(metric) else 'highest'
  more_rows = [*_teacher_rows(run), *_privacy_rows(run)]
  labels = [
    '',
    'model',
    'parameters',
    'clients',
    'cohort',
    f'{metric}, mean of last {count}',
    f'{metric}, final',
    f'  {way} seen* (round)',
    'evaluation loss, final',
    'train loss, final',
    'clients dropped, total',
    'uplink, MB',
    'downlink, MB',
    *(label for label, _ in more_rows),
  ]
  columns = [_pool_column(run, pool, last, metric) for pool in run.pool_names]
  for _, cells in more_rows:
    columns = [[*column, cell] for column, cell in zip(columns, cells)]
  lines += ['', *text_lib.columns(labels, columns), '']
  bias = 'low' if metrics_lib.is_better_if_lower(metric) else 'high'
  lines += [
    f'* picked on the evaluation data: too {bias}, not a result to report.'
  ]
  facts = [*_privacy_facts(run), *_agreement_facts(run), *_time_facts(run)]
  if facts:
    width = max(len(label) for label, _ in facts) + 2
    lines.append('')
    for label, fact in facts:
      lines += textwrap.wrap(
        label.ljust(width) + fact, text_lib.WIDTH, subsequent_indent=' ' * width
      )
  return '\n'.join(lines) + '\n'


def comparison_table(
  runs: Sequence[runs_lib.Run],
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
  style: str = 'text',
) -> str:
  """Returns the comparison of algorithms as a table with its caption.

  What a reader must know to trust it (seeds that differ, runs that ended early,
  settings that are not the same) is said in notes below the table.

  Args:
    runs: See `comparison.compare`.
    last: See `comparison.compare`.
    metric: See `comparison.compare`.
    style: `text`, at most 80 columns, or `markdown`.

  Returns:
    Lines of text: accuracies in percent, their differences in percentage
    points, other metrics as they are.

  Raises:
    ConfigError: See `comparison.compare`.
    RunFolderError: If the runs cannot be compared.
    UnknownNameError: If there is no such style.
  """
  styles = {'text': _text_table, 'markdown': _markdown_table}
  if style not in styles:
    raise errors.UnknownNameError('table style', style, styles)
  rows = comparison.compare(runs, last=last, metric=metric)
  is_fraction = metrics_lib.is_fraction(metric)
  is_private = any(map(privacy_lib.is_private, runs))
  caption = (
    f'{metrics_lib.title(metric)} on {runs[0].task}'
    f'{" in percent" if is_fraction else ""}, {which(last)} of each run. '
    'Spread: sample standard deviation over the n seeds. Difference: to '
    f'{groups_lib.BASELINE}{" with the same privacy" if is_private else ""}, '
    f'{"in percentage points, " if is_fraction else ""}'
    'with its standard error.'
  )
  return styles[style](caption, rows, notes(runs, rows, last))


def privacy_table(
  runs: Sequence[runs_lib.Run],
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> str:
  """Returns privacy against utility: epsilon beside each model's metric.

  Args:
    runs: See `comparison.compare`.
    last: See `comparison.compare`.
    metric: See `comparison.compare`.

  Returns:
    Lines of text of at most 80 columns, a row for each algorithm and privacy;
    empty if no run is private.

  Raises:
    ConfigError: See `comparison.compare`.
    RunFolderError: If the runs cannot be compared.
  """
  if not any(map(privacy_lib.is_private, runs)):
    return ''
  groups = groups_lib.group_runs(runs)
  rows = comparison.compare(runs, last=last, metric=metric)
  names = [
    textwrap.wrap(
      setting.name_without(privacy_lib.NOISE),
      _NAME_WIDTH,
      subsequent_indent='  ',
    )
    for setting in groups
  ]
  noise, *columns = [
    # A setting's cells stand beside the last line of its name.
    [*head, *itertools.chain(*map(_below, names, cells))]
    for *head, cells in _privacy_columns(rows, groups)
  ]
  labels = ['', 'algorithm', *itertools.chain(*names)]
  # Each block of columns has the name and the noise beside it.
  labels = text_lib.columns(labels, [noise])
  caption = _privacy_caption(rows, last)
  return '\n'.join(
    [
      *textwrap.wrap(caption, text_lib.WIDTH, break_on_hyphens=False),
      '',
      *text_lib.columns(labels, columns),
      '',
    ]
  )


def comparison_csv(
  runs: Sequence[runs_lib.Run],
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> str:
  """Returns the comparison of algorithms as the text of a csv file.

  Args:
    runs: See `comparison.compare`.
    last: See `comparison.compare`.
    metric: See `comparison.compare`.

  Returns:
    A header and one line for each row of `comparison.compare`, at full
    precision: seeds separated by spaces; mean, spread, difference and error in
    the `unit`, percent or none. If any run is private, further columns hold
    the fields of `privacy`, and epsilon of the pool alone and of the worst
    client. Cells without a value are empty.

  Raises:
    ConfigError: See `comparison.compare`.
    RunFolderError: If the runs cannot be compared.
  """
  rows = comparison.compare(runs, last=last, metric=metric)
  fields = dict.fromkeys(
    name for row in rows for name, _ in row.setting.privacy
  )
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    (
      'task',
      'pool',
      'model',
      'algorithm',
      'n',
      'seeds',
      'metric',
      'unit',
      'last_evaluations',
      'mean',
      'spread',
      'difference',
      'standard_error',
      'is_paired',
      *(f'privacy.{name}' for name in fields),
      *(('epsilon', 'worst_client_epsilon') if fields else ()),
    )
  )
  scale = 100 if metrics_lib.is_fraction(metric) else 1
  for row in rows:
    values = (row.mean, row.spread, row.difference, row.standard_error)
    privacy = dict(row.setting.privacy)
    epsilons = (row.epsilon, row.worst_epsilon) if fields else ()
    writer.writerow(
      (
        runs[0].task,
        row.pool,
        row.model,
        row.setting.algorithm,
        len(row.seeds),
        ' '.join(map(str, row.seeds)),
        metric,
        metrics_lib.unit(metric),
        last,
        # Nine digits: below any measurement's error, above binary's 41.199999.
        *('' if v is None else f'{scale * v:.9g}' for v in values),
        '' if row.is_paired is None else str(row.is_paired).lower(),
        *(privacy.get(name, '') for name in fields),
        *('' if v is None else f'{v:.9g}' for v in epsilons),
      )
    )
  return text.getvalue()


def which(last: int) -> str:
  """Returns in words which evaluations a value is from.

  Args:
    last: How many.
  """
  if last == 1:
    return 'at the last evaluation'
  return f'mean over the last {last} evaluations'


def _privacy_caption(rows: Sequence[comparison.Comparison], last: int) -> str:
  """Returns what the columns of the privacy table are, and what voids it."""
  metric = rows[0].metric
  private = {
    row.setting.label: dict(row.setting.privacy)
    for row in rows
    if row.setting.privacy
  }
  deltas = dict.fromkeys(privacy['delta'] for privacy in private.values())
  unit = ' in percent' if metrics_lib.is_fraction(metric) else ''
  sentences = [
    f'Privacy against {metric}. z: noise multiplier.',
    f"Epsilon, at delta {' or '.join(deltas)}: what each pool's releases cost "
    'alone, and what the worst-off clients lose to all of their pools; at the '
    'end of each run, the highest over the seeds.',
    f'{metrics_lib.title(metric)}{unit}: {which(last)} of each run; mean ± '
    'sample standard deviation over the n seeds.',
  ]
  if any(math.isinf(row.worst_epsilon or 0) for row in rows):
    sentences.append('inf: of clients in a pool without a mechanism.')
  void = [
    label
    for label, privacy in private.items()
    if 'reproducible_noise' in privacy
  ]
  if void:
    sentences.append(f'{_VOID}: {", ".join(void)}.')
  return ' '.join(sentences)


def _below(name: Sequence[str], cell: str) -> list[str]:
  """Returns as many lines as a name has, the last one a cell."""
  return [''] * (len(name) - 1) + [cell]


def _privacy_columns(
  rows: Sequence[comparison.Comparison], groups: groups_lib.Groups
) -> list[tuple[str, str, list[str]]]:
  """Returns two lines of a header and a cell for each setting, by column."""
  metric = rows[0].metric
  models: dict[tuple[str, str], dict[groups_lib.Setting, Any]] = {}
  for row in rows:
    models.setdefault((row.pool, row.model), {})[row.setting] = row
  pools = [pool for pool, _ in models]
  epsilons, values = [], []
  for (pool, model), by_setting in models.items():
    title = pool if pools.count(pool) == 1 else f'{model} ({pool})'
    of_model = [by_setting.get(setting) for setting in groups]
    cells = [_epsilon(row and row.epsilon) for row in of_model]
    epsilons.append(('epsilon', title, cells))
    values.append((metrics_lib.kind(metric), title, [*map(_value, of_model)]))
  noise = [dict(one.privacy).get(privacy_lib.NOISE, 'none') for one in groups]
  worst = {row.setting: row.worst_epsilon for row in rows}
  return [
    ('', 'z', noise),
    ('', 'n', [str(len(group)) for group in groups.values()]),
    *epsilons,
    ('epsilon', 'worst', [_epsilon(worst.get(one)) for one in groups]),
    *values,
  ]


def _epsilon(epsilon: Optional[float]) -> str:
  return '-' if epsilon is None else f'{epsilon:.4g}'


def _value(row: Optional[comparison.Comparison]) -> str:
  """Returns mean and spread of a row."""
  if row is None:
    return '-'
  mean = metrics_lib.number(row.metric, row.mean)
  if row.spread is None:
    return mean
  return f'{mean} ± {metrics_lib.number(row.metric, row.spread)}'


def _final(run: runs_lib.Run, column: str) -> str:
  series = run.metrics.get(column)
  return '-' if series is None else f'{series[1][-1]:.4g}'


def _count(total: Optional[float]) -> str:
  return '-' if total is None else f'{total:,.0f}'


def _megabytes(num_bytes: Optional[float]) -> str:
  if num_bytes is None:
    return '-'
  megabytes = num_bytes / runs_lib.BYTES_PER_MEGABYTE
  return f'{megabytes:,.1f}' if megabytes >= 10 else f'{megabytes:.3f}'


def _teacher_rows(run: runs_lib.Run) -> list[tuple[str, list[str]]]:
  """Returns the rows about the models as teachers, those that were measured."""
  rows = []
  for label, name in (
    ('accuracy on validation, final', 'validation_accuracy'),
    ('calibration error, final', 'calibration_error'),
    ('entropy on U (nats), final', 'entropy'),
    ('teachers refused, total', 'teachers_refused'),
  ):
    columns = [f'exchange/{pool}/{name}' for pool in run.pool_names]
    if run.metrics.keys().isdisjoint(columns):
      continue
    if name == 'teachers_refused':
      cells = [_count(run.total(column)) for column in columns]
    else:
      cells = [_final(run, column) for column in columns]
    rows.append((label, cells))
  return rows


def _privacy_rows(run: runs_lib.Run) -> list[tuple[str, list[str]]]:
  """Returns the rows about the privacy of the pools, if any is protected."""
  if not privacy_lib.is_private(run):
    return []
  noise = privacy_lib.of_pools(run, privacy_lib.NOISE)
  return [
    ('noise multiplier z', [privacy_lib.text(z) for z in noise.values()]),
    (
      'epsilon of the pool alone',
      [_epsilon(privacy_lib.epsilon(run, pool)) for pool in run.pool_names],
    ),
  ]


def _privacy_facts(run: runs_lib.Run) -> list[tuple[str, str]]:
  """Returns what the worst-off clients have lost, if it was recorded."""
  worst = privacy_lib.worst_epsilon(run)
  if worst is None:
    return []
  privacy = run.config['privacy']
  fact = f'epsilon {_epsilon(worst)} at delta {privacy["delta"]:g}'
  if privacy.get('reproducible_noise'):
    fact += f'. {_VOID}.'
  return [('worst-off clients', fact)]


def _evaluation_cells(
  run: runs_lib.Run, pool: str, last: int, metric: str
) -> list[str]:
  """Returns the mean of the last evaluations, the final and the best one."""
  series = run.evaluations(pool, metric)
  if series is None:
    return ['-'] * 3
  rounds, values = series
  best = '-'
  if not np.isnan(values).all():
    lower = metrics_lib.is_better_if_lower(metric)
    index = np.nanargmin(values) if lower else np.nanargmax(values)
    best = f'{metrics_lib.text(metric, values[index])} ({rounds[index]})'
  mean = comparison.last_evaluations(run, pool, last=last, metric=metric).mean()
  return [
    metrics_lib.text(metric, mean),
    metrics_lib.text(metric, values[-1]),
    best,
  ]


def _pool_column(
  run: runs_lib.Run, pool: str, last: int, metric: str
) -> list[str]:
  """Returns a pool's cells in the order of the summary's labels."""
  of_pool = run.pools['pools'][pool]
  return [
    pool,
    of_pool['model'],
    f'{of_pool["num_parameters"]:,}',
    f'{of_pool["num_clients"]:,}',
    f'{of_pool["cohort_size"]:,}',
    *_evaluation_cells(run, pool, last, metric),
    _final(run, f'eval/{pool}/loss'),
    _final(run, f'train/{pool}/loss'),
    _count(run.total(f'train/{pool}/clients_dropped')),
    _megabytes(run.total(f'cost/{pool}/uplink_bytes')),
    _megabytes(run.total(f'cost/{pool}/downlink_bytes')),
  ]


def _agreement_facts(run: runs_lib.Run) -> list[tuple[str, str]]:
  """Returns how agreement and KL between the pools went, if measured."""
  facts = []
  for label, column, form in (
    ('top-1 agreement', 'exchange/agreement_top1', '{:.1%}'),
    ('agreement KL, nats', 'exchange/agreement_kl', '{:.4g}'),
  ):
    if column in run.metrics:
      rounds, values = run.metrics[column]
      first, final = form.format(values[0]), form.format(values[-1])
      facts.append(
        (
          label,
          f'{first} (round {rounds[0]}) -> {final} (round {rounds[-1]})',
        )
      )
  return facts


def _time_facts(run: runs_lib.Run) -> list[tuple[str, str]]:
  """Returns the seconds by phase and the throughput, if measured."""
  if 'time/round_seconds' not in run.metrics:
    return []
  rounds, seconds = run.metrics['time/round_seconds']
  phases = []
  for phase in ('clients', 'exchange', 'server', 'evaluation'):
    total = run.total(f'time/{phase}_seconds')
    if total is not None:
      phases.append(f'{phase} {total:,.1f}')
  total = f'{seconds.sum():,.1f}'
  facts = [('seconds', f'{total}: {", ".join(phases)}' if phases else total)]
  examples = [run.total(f'train/{pool}/examples') for pool in run.pool_names]
  training_seconds = seconds[rounds > 0].sum()
  if None not in examples and training_seconds > 0:
    facts.append(('examples/s', f'{sum(examples) / training_seconds:,.0f}'))
  return facts


def _header(metric: str) -> tuple[str, ...]:
  return ('n', metrics_lib.kind(metric), 'spread', 'difference', 'error', '')


def _cells(row: comparison.Comparison) -> tuple[str, ...]:
  """Returns a row's numbers as text, in the order of the header."""

  def number(value: Optional[float], sign: str = '') -> str:
    return '-' if value is None else metrics_lib.number(row.metric, value, sign)

  return (
    str(len(row.seeds)),
    number(row.mean),
    number(row.spread),
    number(row.difference, '+'),
    number(row.standard_error),
    {None: '', True: 'paired', False: 'unpaired'}[row.is_paired],
  )


# Least widths of the columns; `unpaired` is the last one's longest cell.
_WIDTHS = (3, 8, 6, 10, 5, 8)


def _text_table(
  caption: str, rows: Sequence[comparison.Comparison], notes: Sequence[str]
) -> str:
  """Renders a block of lines for each model, an algorithm on each line."""
  table = [_header(rows[0].metric), *map(_cells, rows)]
  widths = [
    max(least, *map(len, column)) for least, column in zip(_WIDTHS, zip(*table))
  ]
  most = text_lib.WIDTH - sum(widths) - 2 * len(widths)
  names = [
    textwrap.wrap(
      row.setting.label, most, initial_indent='  ', subsequent_indent='    '
    )
    for row in rows
  ]
  width = max(map(len, ['algorithm', *itertools.chain(*names)]))

  def line(name: str, cells: Sequence[str]) -> str:
    aligned = [
      cell.ljust(size) if cell in ('paired', 'unpaired') else cell.rjust(size)
      for cell, size in zip(cells, widths)
    ]
    return '  '.join([name.ljust(width), *aligned]).rstrip()

  lines = [
    *textwrap.wrap(caption, text_lib.WIDTH),
    '',
    line('algorithm', table[0]),
  ]
  lines.append('-' * len(lines[-1]))
  model = None
  for (*start, name), row, cells in zip(names, rows, table[1:]):
    if model != (row.pool, row.model):
      model = (row.pool, row.model)
      title = f'{row.model} ({row.pool})'
      lines.append(text_lib.shorten(title, text_lib.WIDTH))
    lines += [*start, line(name, cells)]
  for note in notes:
    # Names of fields and folders are never broken: they are to be copied.
    wrapped = textwrap.wrap(note, text_lib.WIDTH, break_on_hyphens=False)
    lines += ['', *wrapped]
  return '\n'.join(lines) + '\n'


def _markdown_table(
  caption: str, rows: Sequence[comparison.Comparison], notes: Sequence[str]
) -> str:
  """Renders one Markdown table, without line breaks in the prose."""
  header = ' | '.join(_header(rows[0].metric))
  lines = [
    caption,
    '',
    f'| model (pool) | algorithm | {header}|',
    '|---|---|---:|---:|---:|---:|---:|---|',
  ]
  for row in rows:
    cells = (f'{row.model} ({row.pool})', row.setting.label, *_cells(row))
    lines.append(f'| {" | ".join(cells)} |')
  for note in notes:
    lines += ['', note]
  return '\n'.join(lines) + '\n'


def notes(
  runs: Sequence[runs_lib.Run], rows: Sequence[comparison.Comparison], last: int
) -> list[str]:
  """Returns what weakens a comparison, a sentence for each weakness.

  Args:
    runs: The runs.
    rows: Their comparison.
    last: Evaluations in the mean that was compared.
  """
  sentences, metric = [], rows[0].metric
  if all(row.setting.algorithm != groups_lib.BASELINE for row in rows):
    sentences.append(f'No run of {groups_lib.BASELINE}: no differences.')
  if any(row.is_paired is False for row in rows):
    sentences.append(
      f'Unpaired: the seeds are not those of {groups_lib.BASELINE}; the '
      'difference is that of the means.'
    )
  groups = groups_lib.group_runs(runs)
  names = {
    run: f'{setting.label} seed {run.seed}'
    for setting, group in groups.items()
    for run in group
  }
  unfinished = [names[run] for run in runs if not run.finished]
  if unfinished:
    sentences.append(f'Not finished: {", ".join(unfinished)}.')
  short = [
    names[run]
    for run in runs
    if any(
      len(comparison.last_evaluations(run, pool, last=last, metric=metric))
      < last
      for pool in run.pool_names
      if run.evaluations(pool, metric)
    )
  ]
  if short:
    sentences.append(f'Fewer than {last} evaluations: {", ".join(short)}.')
  ends: dict[int, list[str]] = {}
  for run in runs:
    ends.setdefault(run.last_round, []).append(names[run])
  if len(ends) > 1:
    parts = [
      f'{end} ({", ".join(ends[end])})'
      if len(ends[end]) <= _NAMED_RUNS
      else f'{end} ({len(ends[end])} runs)'
      for end in sorted(ends)
    ]
    sentences.append(f'Runs end in different rounds: {", ".join(parts)}.')
  within: set[str] = set()
  for group in groups.values():
    within |= _differing_fields(group)
  kind = 'row' if any(map(privacy_lib.is_private, runs)) else 'algorithm'
  if within:
    fields = ', '.join(sorted(within))
    sentences.append(f'Runs of one {kind} differ in {fields}.')
  between = _differing_fields(runs) - within
  between = {name for name in between if name.startswith(_SHARED_FIELDS)}
  if between:
    sentences.append(f'The {kind}s differ in {", ".join(sorted(between))}.')
  return sentences


def _differing_fields(runs: Sequence[runs_lib.Run]) -> set[str]:
  """Returns the full names of the config's fields that runs do not share.

  Those of `privacy` are in the names of the rows.
  """
  leaves = [_flatten(run.config) for run in runs]
  names = set(itertools.chain.from_iterable(leaves)) - set(_FREE_FIELDS)
  return {
    name
    for name in names
    if not name.startswith('privacy.')
    and any(leaf.get(name) != leaves[0].get(name) for leaf in leaves)
  }


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  leaves: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, dict):
      leaves.update(_flatten(value, f'{prefix}{name}.'))
    else:
      leaves[f'{prefix}{name}'] = value
  return leaves
