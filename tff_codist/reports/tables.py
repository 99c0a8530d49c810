"""Tables of one run and of several, as text of at most 80 columns.

The number that counts is the mean of a metric, by default accuracy, over the
last evaluations, fixed before anybody sees the curve. The best evaluation of a
run is picked on the evaluation data, so it is biased and stands only in the
summary, marked. The untrained model of round 0 counts only if there is no other
evaluation.
"""

import csv
import dataclasses
import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from tff_codist import errors
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import runs as runs_lib
from tff_codist.reports import text as text_lib

_BASELINE = 'fed_avg'
_BYTES_PER_MEGABYTE = 1e6
# A note counts runs beyond so many.
_NAMED_RUNS = 3
# Fields in which repetitions of one experiment may differ.
_FREE_FIELDS = ('seed', 'preset', 'task.data_dir', 'program.run_dir')
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


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A metric of one algorithm's model of one pool, over seeds.

  Accuracies and their differences are fractions of 1.

  Attributes:
    metric: Name of the metric, see `metrics`.
    pool: Name of the pool.
    model: Name of the pool's model.
    algorithm: Name of the algorithm.
    seeds: Seeds of the runs, increasing.
    mean: Mean over the seeds of the runs' values.
    spread: Sample standard deviation over the seeds; None for one seed.
    difference: Mean minus that of fed_avg; None for fed_avg itself and
      where no run of it has this pool with this model.
    standard_error: Of the difference; None where there are too few seeds.
    is_paired: Whether the difference is the mean over pairs of runs with the
      same seed. It is if both algorithms have the same seeds; otherwise it is
      the difference of the means and its error that of two independent samples.
      None without a difference.
  """

  metric: str
  pool: str
  model: str
  algorithm: str
  seeds: tuple[int, ...]
  mean: float
  spread: Optional[float] = None
  difference: Optional[float] = None
  standard_error: Optional[float] = None
  is_paired: Optional[bool] = None


def last_evaluations(
  run: runs_lib.Run,
  pool: str,
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> np.ndarray:
  """Returns a metric of a model at its last evaluations.

  Args:
    run: The run.
    pool: Name of the pool.
    last: Number of evaluations, at least 1.
    metric: The metric, see `metrics`.

  Returns:
    The values; at most `last`, at least one if the pool has the metric at all.
    Round 0 is left out if there is any later evaluation.

  Raises:
    ConfigError: If `last` is not positive.
  """
  if last < 1:
    raise errors.ConfigError(
      f'last = {last}',
      expected='at least one evaluation',
      fix='give an integer above 0',
    )
  series = run.evaluations(pool, metric)
  if series is None:
    return np.zeros(0)
  rounds, values = series
  trained = values[rounds > 0]
  return (trained if trained.size else values)[-last:]


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
    last_evaluations(run, pool, last=last, metric=metric).size
    for pool in run.pool_names
    if run.evaluations(pool, metric)
  }
  count = f'{counts.pop()}' if len(counts) == 1 else f'{last} or fewer'
  way = 'lowest' if metrics_lib.is_better_if_lower(metric) else 'highest'
  teacher_rows = _teacher_rows(run)
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
    *(label for label, _ in teacher_rows),
  ]
  columns = [_pool_column(run, pool, last, metric) for pool in run.pool_names]
  for _, cells in teacher_rows:
    columns = [[*column, cell] for column, cell in zip(columns, cells)]
  lines += ['', *text_lib.columns(labels, columns), '']
  bias = 'low' if metrics_lib.is_better_if_lower(metric) else 'high'
  lines += [
    f'* picked on the evaluation data: too {bias}, not a result to report.'
  ]
  facts = [*_agreement_facts(run), *_time_facts(run)]
  if facts:
    width = max(len(label) for label, _ in facts) + 2
    lines.append('')
    for label, fact in facts:
      lines += textwrap.wrap(
        label.ljust(width) + fact, text_lib.WIDTH, subsequent_indent=' ' * width
      )
  return '\n'.join(lines) + '\n'


def compare(
  runs: Sequence[runs_lib.Run],
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> tuple[Comparison, ...]:
  """Compares algorithms over seeds, model by model.

  Args:
    runs: Runs of one task; at most one for each algorithm and seed.
    last: Evaluations in a run's value (their mean), at least 1.
    metric: The metric, see `metrics`.

  Returns:
    A row for each algorithm and model that has the metric: models in order of
    their first run, fed_avg before the other algorithms.

  Raises:
    ConfigError: If there are no runs, one has no such metric, or `last` is not
      positive.
    RunFolderError: If the runs cannot be compared, see
      `runs.group_by_algorithm`.
  """
  groups = runs_lib.group_by_algorithm(runs)
  runs_lib.check_metric(runs, metric)
  values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
  for algorithm, run in ((a, r) for a, group in groups.items() for r in group):
    for pool in run.pool_names:
      evaluations = last_evaluations(run, pool, last=last, metric=metric)
      if evaluations.size:
        of_model = values.setdefault((pool, run.model(pool)), {})
        by_seed = of_model.setdefault(algorithm, {})
        by_seed[run.seed] = float(evaluations.mean())
  return tuple(
    _comparison(
      by_seed,
      of_model.get(_BASELINE),
      metric=metric,
      pool=pool,
      model=model,
      algorithm=algorithm,
    )
    for (pool, model), of_model in values.items()
    for algorithm, by_seed in of_model.items()
  )


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
    runs: See `compare`.
    last: See `compare`.
    metric: See `compare`.
    style: `text`, at most 80 columns, or `markdown`.

  Returns:
    Lines of text: accuracies in percent, their differences in percentage
    points, other metrics as they are.

  Raises:
    ConfigError: See `compare`.
    RunFolderError: If the runs cannot be compared.
    UnknownNameError: If there is no such style.
  """
  styles = {'text': _text_table, 'markdown': _markdown_table}
  if style not in styles:
    raise errors.UnknownNameError('table style', style, styles)
  rows = compare(runs, last=last, metric=metric)
  which = (
    'at the last evaluation'
    if last == 1
    else f'mean over the last {last} evaluations'
  )
  is_fraction = metrics_lib.is_fraction(metric)
  caption = (
    f'{metrics_lib.title(metric)} on {runs[0].task}'
    f'{" in percent" if is_fraction else ""}, {which} of each run. Spread: '
    'sample standard deviation over the n seeds. Difference: to '
    f'{_BASELINE}, {"in percentage points, " if is_fraction else ""}'
    'with its standard error.'
  )
  return styles[style](caption, rows, _notes(runs, rows, last))


def comparison_csv(
  runs: Sequence[runs_lib.Run],
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> str:
  """Returns the comparison of algorithms as the text of a csv file.

  Args:
    runs: See `compare`.
    last: See `compare`.
    metric: See `compare`.

  Returns:
    A header and one line for each row of `compare`, at full precision: seeds
    separated by spaces; mean, spread, difference and error in the `unit`,
    percent or none. Cells without a value are empty.

  Raises:
    ConfigError: See `compare`.
    RunFolderError: If the runs cannot be compared.
  """
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
    )
  )
  scale = 100 if metrics_lib.is_fraction(metric) else 1
  for row in compare(runs, last=last, metric=metric):
    values = (row.mean, row.spread, row.difference, row.standard_error)
    writer.writerow(
      (
        runs[0].task,
        row.pool,
        row.model,
        row.algorithm,
        len(row.seeds),
        ' '.join(map(str, row.seeds)),
        metric,
        metrics_lib.unit(metric),
        last,
        # Nine digits: below any measurement's error, above binary's 41.199999.
        *('' if v is None else f'{scale * v:.9g}' for v in values),
        '' if row.is_paired is None else str(row.is_paired).lower(),
      )
    )
  return text.getvalue()


def _comparison(
  by_seed: Mapping[int, float],
  baseline: Optional[Mapping[int, float]],
  *,
  metric: str,
  pool: str,
  model: str,
  algorithm: str,
) -> Comparison:
  """Builds one row from the values of the runs and of fed_avg's."""
  seeds = tuple(sorted(by_seed))
  values = np.array([by_seed[seed] for seed in seeds])
  row = Comparison(
    metric=metric,
    pool=pool,
    model=model,
    algorithm=algorithm,
    seeds=seeds,
    mean=float(values.mean()),
    spread=_sample_deviation(values),
  )
  if algorithm == _BASELINE or baseline is None:
    return row
  is_paired = set(baseline) == set(seeds)
  if is_paired:
    differences = values - np.array([baseline[seed] for seed in seeds])
    difference = float(differences.mean())
    samples = (differences,)
  else:
    others = np.array(list(baseline.values()))
    difference = float(values.mean() - others.mean())
    samples = (values, others)
  standard_error = None
  if all(sample.size > 1 for sample in samples):
    standard_error = math.sqrt(sum(s.var(ddof=1) / s.size for s in samples))
  return dataclasses.replace(
    row,
    difference=difference,
    standard_error=standard_error,
    is_paired=is_paired,
  )


def _sample_deviation(values: np.ndarray) -> Optional[float]:
  return float(values.std(ddof=1)) if values.size > 1 else None


def _total(run: runs_lib.Run, column: str) -> Optional[float]:
  series = run.metrics.get(column)
  return None if series is None else float(series[1].sum())


def _final(run: runs_lib.Run, column: str) -> str:
  series = run.metrics.get(column)
  return '-' if series is None else f'{series[1][-1]:.4g}'


def _count(total: Optional[float]) -> str:
  return '-' if total is None else f'{total:,.0f}'


def _megabytes(num_bytes: Optional[float]) -> str:
  if num_bytes is None:
    return '-'
  megabytes = num_bytes / _BYTES_PER_MEGABYTE
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
      cells = [_count(_total(run, column)) for column in columns]
    else:
      cells = [_final(run, column) for column in columns]
    rows.append((label, cells))
  return rows


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
  mean = last_evaluations(run, pool, last=last, metric=metric).mean()
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
    _count(_total(run, f'train/{pool}/clients_dropped')),
    _megabytes(_total(run, f'cost/{pool}/uplink_bytes')),
    _megabytes(_total(run, f'cost/{pool}/downlink_bytes')),
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
    total = _total(run, f'time/{phase}_seconds')
    if total is not None:
      phases.append(f'{phase} {total:,.1f}')
  total = f'{seconds.sum():,.1f}'
  facts = [('seconds', f'{total}: {", ".join(phases)}' if phases else total)]
  examples = [_total(run, f'train/{pool}/examples') for pool in run.pool_names]
  training_seconds = seconds[rounds > 0].sum()
  if None not in examples and training_seconds > 0:
    facts.append(('examples/s', f'{sum(examples) / training_seconds:,.0f}'))
  return facts


def _header(metric: str) -> tuple[str, ...]:
  return ('n', metrics_lib.kind(metric), 'spread', 'difference', 'error', '')


def _cells(row: Comparison) -> tuple[str, ...]:
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
  caption: str, rows: Sequence[Comparison], notes: Sequence[str]
) -> str:
  """Renders a block of lines for each model, an algorithm on each line."""
  table = [_header(rows[0].metric), *map(_cells, rows)]
  widths = [
    max(least, *map(len, column)) for least, column in zip(_WIDTHS, zip(*table))
  ]
  most = text_lib.WIDTH - sum(widths) - 2 * len(widths)
  names = [text_lib.shorten(f'  {row.algorithm}', most) for row in rows]
  width = max(map(len, [*names, 'algorithm']))

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
  for name, row, cells in zip(names, rows, table[1:]):
    if model != (row.pool, row.model):
      model = (row.pool, row.model)
      title = f'{row.model} ({row.pool})'
      lines.append(text_lib.shorten(title, text_lib.WIDTH))
    lines.append(line(name, cells))
  for note in notes:
    # Names of fields and folders are never broken: they are to be copied.
    wrapped = textwrap.wrap(note, text_lib.WIDTH, break_on_hyphens=False)
    lines += ['', *wrapped]
  return '\n'.join(lines) + '\n'


def _markdown_table(
  caption: str, rows: Sequence[Comparison], notes: Sequence[str]
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
    cells = (f'{row.model} ({row.pool})', row.algorithm, *_cells(row))
    lines.append(f'| {" | ".join(cells)} |')
  for note in notes:
    lines += ['', note]
  return '\n'.join(lines) + '\n'


def _notes(
  runs: Sequence[runs_lib.Run], rows: Sequence[Comparison], last: int
) -> list[str]:
  """Returns what weakens a comparison, a sentence for each weakness."""
  notes, metric = [], rows[0].metric
  if all(row.algorithm != _BASELINE for row in rows):
    notes.append(f'No run of {_BASELINE}: no differences.')
  if any(row.is_paired is False for row in rows):
    notes.append(
      f'Unpaired: the seeds are not those of {_BASELINE}; the difference is '
      'that of the means.'
    )
  unfinished = [_name(run) for run in runs if not run.finished]
  if unfinished:
    notes.append(f'Not finished: {", ".join(unfinished)}.')
  short = [
    _name(run)
    for run in runs
    if any(
      last_evaluations(run, pool, last=last, metric=metric).size < last
      for pool in run.pool_names
      if run.evaluations(pool, metric)
    )
  ]
  if short:
    notes.append(f'Fewer than {last} evaluations: {", ".join(short)}.')
  ends: dict[int, list[str]] = {}
  for run in runs:
    ends.setdefault(run.last_round, []).append(_name(run))
  if len(ends) > 1:
    parts = [
      f'{end} ({", ".join(ends[end])})'
      if len(ends[end]) <= _NAMED_RUNS
      else f'{end} ({len(ends[end])} runs)'
      for end in sorted(ends)
    ]
    notes.append(f'Runs end in different rounds: {", ".join(parts)}.')
  within: set[str] = set()
  for group in runs_lib.group_by_algorithm(runs).values():
    within |= _differing_fields(group)
  if within:
    notes.append(
      f'Runs of one algorithm differ in {", ".join(sorted(within))}.'
    )
  between = _differing_fields(runs) - within
  between = {name for name in between if name.startswith(_SHARED_FIELDS)}
  if between:
    notes.append(f'The algorithms differ in {", ".join(sorted(between))}.')
  return notes


def _name(run: runs_lib.Run) -> str:
  return f'{run.algorithm} seed {run.seed}'


def _differing_fields(runs: Sequence[runs_lib.Run]) -> set[str]:
  """Returns the full names of the config's fields that runs do not share."""
  leaves = [_flatten(run.config) for run in runs]
  names = set(itertools.chain.from_iterable(leaves)) - set(_FREE_FIELDS)
  return {
    name
    for name in names
    if any(leaf.get(name) != leaves[0].get(name) for leaf in leaves)
  }


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  leaves: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, dict):
      leaves.update(_flatten(value, f'{prefix}{name}.'))
    else:
      leaves[f'{prefix}{name}'] = value
  return leaves
