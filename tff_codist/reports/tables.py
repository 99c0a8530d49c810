"""Tables of one run and of several, as text of at most 80 columns.

The number that counts is the mean accuracy over the last evaluations, fixed
before anybody sees the curve. The highest accuracy of a run is picked on the
evaluation data, so it is biased upwards and stands only in the summary, marked.
The untrained model of round 0 counts only if there is no other evaluation.
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
from tff_codist.reports import runs as runs_lib

_WIDTH = 80
_BASELINE = 'fed_avg'
_BYTES_PER_MEGABYTE = 1e6
# A note counts runs beyond so many.
_NAMED_RUNS = 3
# Fields in which repetitions of one experiment may differ.
_FREE_FIELDS = ('seed', 'preset', 'task.data_dir', 'program.run_dir')
# Fields that two algorithms should share to be compared; the others tune one.
_SHARED_FIELDS = ('task.', 'pools.', 'client.', 'program.rounds')


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Accuracy of one algorithm on one pool's model, over seeds.

  Accuracies and their differences are fractions of 1.

  Attributes:
    pool: Name of the pool.
    model: Name of the pool's model.
    algorithm: Name of the algorithm.
    seeds: Seeds of the runs, increasing.
    accuracy: Mean over the seeds of the runs' accuracies.
    spread: Sample standard deviation over the seeds; None for one seed.
    difference: Accuracy minus that of fed_avg; None for fed_avg itself and
      where no run of it has this pool with this model.
    standard_error: Of the difference; None where there are too few seeds.
    is_paired: Whether the difference is the mean over pairs of runs with the
      same seed. It is if both algorithms have the same seeds; otherwise it is
      the difference of the means and its error that of two independent samples.
      None without a difference.
  """

  pool: str
  model: str
  algorithm: str
  seeds: tuple[int, ...]
  accuracy: float
  spread: Optional[float] = None
  difference: Optional[float] = None
  standard_error: Optional[float] = None
  is_paired: Optional[bool] = None


def last_evaluations(
  run: runs_lib.Run, pool: str, *, last: int = 5
) -> np.ndarray:
  """Returns a model's accuracies at its last evaluations.

  Args:
    run: The run.
    pool: Name of the pool.
    last: Number of evaluations, at least 1.

  Returns:
    The accuracies, fractions in [0, 1]; at most `last`, at least one. Round 0
    is left out if there is any later evaluation.

  Raises:
    ConfigError: If `last` is not positive.
  """
  if last < 1:
    raise errors.ConfigError(
      f'last = {last}',
      expected='at least one evaluation',
      fix='give an integer above 0',
    )
  rounds, accuracies = run.metrics[f'eval/{pool}/accuracy']
  trained = accuracies[rounds > 0]
  return (trained if trained.size else accuracies)[-last:]


def summary_table(run: runs_lib.Run, *, last: int = 5) -> str:
  """Returns the summary of one run, for a terminal of 80 columns.

  Args:
    run: The run, finished or not.
    last: Evaluations in the mean accuracy, at least 1.

  Returns:
    Lines of text. Megabytes are 10^6 bytes and sum all rounds; examples/s is
    the number of training examples of all pools over the seconds of the
    training rounds (without the initial evaluation).

  Raises:
    ConfigError: If `last` is not positive.
  """
  if run.failure is not None:
    status = f'failed: {run.failure}'
  else:
    status = 'finished' if run.finished else 'not finished'
  lines = textwrap.wrap(
    f'{run.algorithm} on {run.task}, seed {run.seed}: '
    f'round {run.last_round}, {status}',
    _WIDTH,
  )
  counts = {last_evaluations(run, p, last=last).size for p in run.pool_names}
  count = f'{counts.pop()}' if len(counts) == 1 else f'{last} or fewer'
  labels = [
    '',
    'model',
    'parameters',
    'clients',
    'cohort',
    f'accuracy, mean of last {count}',
    'accuracy, final',
    '  highest seen* (round)',
    'evaluation loss, final',
    'train loss, final',
    'clients dropped, total',
    'uplink, MB',
    'downlink, MB',
  ]
  columns = [_pool_column(run, pool, last) for pool in run.pool_names]
  lines += ['', *_columns(labels, columns), '']
  lines += [
    '* picked on the evaluation data: too high, not a result to report.'
  ]
  facts = [*_agreement_facts(run), *_time_facts(run)]
  if facts:
    width = max(len(label) for label, _ in facts) + 2
    lines.append('')
    for label, fact in facts:
      lines += textwrap.wrap(
        label.ljust(width) + fact, _WIDTH, subsequent_indent=' ' * width
      )
  return '\n'.join(lines) + '\n'


def compare(
  runs: Sequence[runs_lib.Run], *, last: int = 5
) -> tuple[Comparison, ...]:
  """Compares algorithms over seeds, model by model.

  Args:
    runs: Runs of one task; at most one for each algorithm and seed.
    last: Evaluations in a run's accuracy (their mean), at least 1.

  Returns:
    A row for each model and algorithm: models in order of their first run,
    fed_avg before the other algorithms.

  Raises:
    ConfigError: If there are no runs or `last` is not positive.
    RunFolderError: If the runs cannot be compared, see
      `runs.group_by_algorithm`.
  """
  groups = runs_lib.group_by_algorithm(runs)
  accuracies: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
  for algorithm, run in ((a, r) for a, group in groups.items() for r in group):
    for pool in run.pool_names:
      of_model = accuracies.setdefault((pool, run.model(pool)), {})
      of_model.setdefault(algorithm, {})[run.seed] = float(
        last_evaluations(run, pool, last=last).mean()
      )
  return tuple(
    _comparison(
      by_seed,
      of_model.get(_BASELINE),
      pool=pool,
      model=model,
      algorithm=algorithm,
    )
    for (pool, model), of_model in accuracies.items()
    for algorithm, by_seed in of_model.items()
  )


def comparison_table(
  runs: Sequence[runs_lib.Run], *, last: int = 5, style: str = 'text'
) -> str:
  """Returns the comparison of algorithms as a table with its caption.

  What a reader must know to trust it (seeds that differ, runs that ended early,
  settings that are not the same) is said in notes below the table.

  Args:
    runs: See `compare`.
    last: See `compare`.
    style: `text`, at most 80 columns, or `markdown`.

  Returns:
    Lines of text: accuracies in percent, differences in percentage points.

  Raises:
    ConfigError: If there are no runs or `last` is not positive.
    RunFolderError: If the runs cannot be compared.
    UnknownNameError: If there is no such style.
  """
  styles = {'text': _text_table, 'markdown': _markdown_table}
  if style not in styles:
    raise errors.UnknownNameError('table style', style, styles)
  rows = compare(runs, last=last)
  which = (
    'at the last evaluation'
    if last == 1
    else f'mean over the last {last} evaluations'
  )
  caption = (
    f'Accuracy on {runs[0].task} in percent, {which} of each run. Spread: '
    'sample standard deviation over the n seeds. Difference: to '
    f'{_BASELINE}, in percentage points, with its standard error.'
  )
  return styles[style](caption, rows, _notes(runs, rows, last))


def comparison_csv(runs: Sequence[runs_lib.Run], *, last: int = 5) -> str:
  """Returns the comparison of algorithms as the text of a csv file.

  Args:
    runs: See `compare`.
    last: See `compare`.

  Returns:
    A header and one line for each row of `compare`, at full precision:
    accuracies in percent, spread, difference and error in percentage points,
    seeds separated by spaces. Cells without a value are empty.

  Raises:
    ConfigError: If there are no runs or `last` is not positive.
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
      'last_evaluations',
      'accuracy_percent',
      'spread_points',
      'difference_points',
      'standard_error_points',
      'is_paired',
    )
  )
  for row in compare(runs, last=last):
    values = (row.accuracy, row.spread, row.difference, row.standard_error)
    writer.writerow(
      (
        runs[0].task,
        row.pool,
        row.model,
        row.algorithm,
        len(row.seeds),
        ' '.join(map(str, row.seeds)),
        last,
        # Nine digits: below any measurement's error, above binary's 41.199999.
        *('' if v is None else f'{100 * v:.9g}' for v in values),
        '' if row.is_paired is None else str(row.is_paired).lower(),
      )
    )
  return text.getvalue()


def _comparison(
  by_seed: Mapping[int, float],
  baseline: Optional[Mapping[int, float]],
  *,
  pool: str,
  model: str,
  algorithm: str,
) -> Comparison:
  """Builds one row from the accuracies of the runs and of fed_avg's."""
  seeds = tuple(sorted(by_seed))
  values = np.array([by_seed[seed] for seed in seeds])
  row = Comparison(
    pool=pool,
    model=model,
    algorithm=algorithm,
    seeds=seeds,
    accuracy=float(values.mean()),
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


def _megabytes(num_bytes: Optional[float]) -> str:
  if num_bytes is None:
    return '-'
  megabytes = num_bytes / _BYTES_PER_MEGABYTE
  return f'{megabytes:,.1f}' if megabytes >= 10 else f'{megabytes:.3f}'


def _pool_column(run: runs_lib.Run, pool: str, last: int) -> list[str]:
  """Returns a pool's cells in the order of the summary's labels."""
  of_pool = run.pools['pools'][pool]
  rounds, accuracies = run.metrics[f'eval/{pool}/accuracy']
  dropped = _total(run, f'train/{pool}/clients_dropped')
  highest = '-'
  if not np.isnan(accuracies).all():
    index = np.nanargmax(accuracies)
    highest = f'{100 * accuracies[index]:.2f}% ({rounds[index]})'
  return [
    pool,
    of_pool['model'],
    f'{of_pool["num_parameters"]:,}',
    f'{len(of_pool["clients"]):,}',
    f'{of_pool["cohort_size"]:,}',
    f'{100 * last_evaluations(run, pool, last=last).mean():.2f}%',
    f'{100 * accuracies[-1]:.2f}%',
    highest,
    _final(run, f'eval/{pool}/loss'),
    _final(run, f'train/{pool}/loss'),
    '-' if dropped is None else f'{dropped:,.0f}',
    _megabytes(_total(run, f'cost/{pool}/uplink_bytes')),
    _megabytes(_total(run, f'cost/{pool}/downlink_bytes')),
  ]


def _columns(
  labels: Sequence[str], columns: Sequence[Sequence[str]]
) -> list[str]:
  """Aligns columns beside the labels; breaks them into blocks of 80 columns."""
  label_width = max(map(len, labels))
  blocks: list[list[list[str]]] = [[]]
  used = label_width
  for column in columns:
    width = max(map(len, column)) + 2
    if blocks[-1] and used + width > _WIDTH:
      blocks.append([])
      used = label_width
    used += width
    blocks[-1].append([cell.rjust(width) for cell in column])
  lines: list[str] = []
  for block in blocks:
    lines += [''] if lines else []
    for label, *cells in zip(labels, *block):
      lines.append((label.ljust(label_width) + ''.join(cells)).rstrip())
  return lines


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


def _cells(row: Comparison) -> tuple[str, ...]:
  """Returns a row's numbers as text: n, accuracy, spread, difference, error."""

  def points(value: Optional[float], sign: str = '') -> str:
    return '-' if value is None else f'{100 * value:{sign}.2f}'

  return (
    str(len(row.seeds)),
    points(row.accuracy),
    points(row.spread),
    points(row.difference, '+'),
    points(row.standard_error),
    {None: '', True: 'paired', False: 'unpaired'}[row.is_paired],
  )


_HEADER = ('n', 'accuracy', 'spread', 'difference', 'error', '')
# Widths of the header's columns; `unpaired` is the last one's longest cell.
_WIDTHS = (3, 8, 6, 10, 5, 8)
_NAME_WIDTH = _WIDTH - sum(_WIDTHS) - 2 * len(_WIDTHS)


def _shorten(text: str, width: int) -> str:
  return text if len(text) <= width else text[: width - 3] + '...'


def _text_table(
  caption: str, rows: Sequence[Comparison], notes: Sequence[str]
) -> str:
  """Renders a block of lines for each model, an algorithm on each line."""
  names = [_shorten(f'  {row.algorithm}', _NAME_WIDTH) for row in rows]
  width = max(map(len, [*names, 'algorithm']))

  def line(name: str, cells: Sequence[str]) -> str:
    aligned = [
      cell.ljust(size) if cell in ('paired', 'unpaired') else cell.rjust(size)
      for cell, size in zip(cells, _WIDTHS)
    ]
    return '  '.join([name.ljust(width), *aligned]).rstrip()

  lines = [*textwrap.wrap(caption, _WIDTH), '', line('algorithm', _HEADER)]
  lines.append('-' * len(lines[-1]))
  model = None
  for name, row in zip(names, rows):
    if model != (row.pool, row.model):
      model = (row.pool, row.model)
      lines.append(_shorten(f'{row.model} ({row.pool})', _WIDTH))
    lines.append(line(name, _cells(row)))
  for note in notes:
    # Names of fields and folders are never broken: they are to be copied.
    lines += ['', *textwrap.wrap(note, _WIDTH, break_on_hyphens=False)]
  return '\n'.join(lines) + '\n'


def _markdown_table(
  caption: str, rows: Sequence[Comparison], notes: Sequence[str]
) -> str:
  """Renders one Markdown table, without line breaks in the prose."""
  lines = [
    caption,
    '',
    '| model (pool) | algorithm | n | accuracy | spread | difference | error |'
    ' |',
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
  notes = []
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
      last_evaluations(run, pool, last=last).size < last
      for pool in run.pool_names
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
