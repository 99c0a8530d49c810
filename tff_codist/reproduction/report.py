"""A table with its published numbers beside ours: Markdown, csv and one page.

The csv file holds every number; the Markdown table is made from it alone, so
that a document can be checked against the file.
"""

import base64
import csv
import dataclasses
import html
import io
import math
import pathlib
import re
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

import markdown

from tff_codist import errors
from tff_codist import files
from tff_codist.reports import comparison
from tff_codist.reports import groups as groups_lib
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import plots
from tff_codist.reports import pool_plots
from tff_codist.reports import runs as runs_lib
from tff_codist.reports import tables as tables_lib
from tff_codist.reproduction import rates
from tff_codist.reproduction import table as table_lib

_STYLE = """
body { max-width: 60em; margin: 2em auto; padding: 0 1em;
  font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1em 0; display: block;
  overflow-x: auto; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ccc;
  text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {
  text-align: left; }
img { max-width: 100%; }
code, pre { font-size: 90%; background: #f4f4f4; }
pre { padding: .8em; overflow-x: auto; }
"""


@dataclasses.dataclass(frozen=True)
class Result:
  """A line of the csv file: one model in one setting, in the metric's unit.

  Attributes:
    metric: The metric.
    pool: Name of the pool.
    model: Name of the pool's model.
    setting: Label of the rows, with the privacy if there is any.
    n: Number of seeds.
    mean: Mean over the seeds.
    error: Standard error of the mean; None for one seed.
    published: The source's value; None if it has none.
    gain: Difference to the baseline's mean; None for the baseline.
    gain_error: Its standard error; None for one seed.
    p_value: See `comparison.Comparison`.
    is_paired: Whether the gain is the mean over pairs with the same seed.
    published_gain: The source's difference; None if it has none.
    values: The seeds' values, by increasing seed, with spaces between.
  """

  metric: str
  pool: str
  model: str
  setting: str
  n: int
  mean: float
  error: Optional[float]
  published: Optional[float]
  gain: Optional[float]
  gain_error: Optional[float]
  p_value: Optional[float]
  is_paired: Optional[bool]
  published_gain: Optional[float]
  values: str


def write(
  name: str,
  table: table_lib.Table,
  runs: Mapping[table_lib.Cell, runs_lib.Run],
  missing: Mapping[table_lib.Cell, str],
  *,
  out_dir: pathlib.Path,
  command: str,
) -> list[pathlib.Path]:
  """Writes `report.md`, `report.csv` and `report.html`, and their pictures.

  Pictures of an earlier report stay until nothing links to them. Two processes
  may report one table at a time.

  Args:
    name: Name of the table.
    table: The table.
    runs: The finished runs.
    missing: Why the others are not in the table, `failed: ...` for instance.
    out_dir: The folder of the table.
    command: The command line that makes the table.

  Returns:
    The three files.

  Raises:
    RunFolderError: If a run has no `environment.json`, or a damaged one.
    StorageError: If a file cannot be written, or an old picture not removed.
  """
  labelled = {
    cell: dataclasses.replace(runs[cell], label=cell.row.label or cell.row.name)
    for cell in sorted(runs, key=_place(table))
  }
  numbers = to_csv(results_of(table, labelled))
  # The digits of the file, so that whoever reads it later rounds as we do.
  results = from_csv(numbers)
  pictures = _pictures(table, tuple(labelled.values())) if labelled else {}
  plots_dir = out_dir / 'plots'
  for picture, content in pictures.items():
    files.write(plots_dir / picture, content)
  text = _markdown(name, table, labelled, results, pictures, missing, command)
  paths = [out_dir / f'report.{end}' for end in ('md', 'csv', 'html')]
  for path, content in zip(
    paths, (text, numbers, _page(table.title, text, pictures))
  ):
    files.write(path, content.encode())
  files.remove(p for p in plots_dir.glob('*.png') if p.name not in pictures)
  return paths


def results_of(
  table: table_lib.Table, runs: Mapping[table_lib.Cell, runs_lib.Run]
) -> list[Result]:
  """Returns the results, metric by metric and model by model.

  Args:
    table: The table.
    runs: Its finished runs, with their labels, in the order of the table.
  """
  if not runs:
    return []
  ordered = tuple(runs.values())
  groups = groups_lib.group_runs(ordered)
  rows = {run: cell.row for cell, run in runs.items()}
  return [
    _result(
      compared,
      groups[compared.setting],
      rows[groups[compared.setting][0]],
      table,
    )
    for metric in table.metrics
    for compared in comparison.compare(ordered, last=table.last, metric=metric)
  ]


def to_csv(results: Iterable[Result]) -> str:
  """Returns results as the text of a csv file; None is an empty cell."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(field.name for field in dataclasses.fields(Result))
  for result in results:
    writer.writerow(
      '' if v is None else f'{v:.9g}' if isinstance(v, float) else v
      for v in dataclasses.astuple(result)
    )
  return text.getvalue()


def from_csv(text: str) -> list[Result]:
  """Returns the results of a csv file's text."""

  def value(name: str, cell: str) -> Any:
    if name in ('metric', 'pool', 'model', 'setting', 'values'):
      return cell
    if not cell:
      return None
    if name == 'is_paired':
      return cell == 'True'
    return int(cell) if name == 'n' else float(cell)

  return [
    Result(**{name: value(name, cell) for name, cell in line.items()})
    for line in csv.DictReader(io.StringIO(text))
  ]


def results_table(results: Sequence[Result], metric: str) -> str:
  """Returns the Markdown table of one metric.

  Args:
    results: The results.
    metric: The metric.

  Raises:
    UnknownNameError: If no result is of it.
  """
  known = {result.metric for result in results}
  if metric not in known:
    raise errors.UnknownNameError('metric', metric, known)
  header = (
    'model',
    'setting',
    'n',
    'published',
    'here',
    'published gain',
    'gain here',
    'p',
  )
  lines = [
    (
      f'{result.model} ({result.pool})',
      result.setting,
      str(result.n),
      _number(result.published),
      _with_error(result.mean, result.error),
      _number(result.published_gain, '+'),
      _with_error(result.gain, result.gain_error, '+'),
      '' if result.p_value is None else f'{result.p_value:.2g}',
    )
    for result in results
    if result.metric == metric
  ]
  return _pipes(header, lines)


def _place(
  table: table_lib.Table,
) -> Callable[[table_lib.Cell], tuple[int, int]]:
  """Returns the key by which runs are in the order of the table."""
  names = [row.name for row in table.rows]
  return lambda cell: (names.index(cell.row.name), cell.seed)


def _result(
  compared: comparison.Comparison,
  group: Sequence[runs_lib.Run],
  row: table_lib.Row,
  table: table_lib.Table,
) -> Result:
  scale = 100.0 if metrics_lib.is_fraction(compared.metric) else 1.0

  def scaled(value: Optional[float]) -> Optional[float]:
    return None if value is None else scale * value

  values = [
    scale
    * comparison.last_evaluations(
      run, compared.pool, last=table.last, metric=compared.metric
    ).mean()
    for run in group
    if run.evaluations(compared.pool, compared.metric)
  ]
  n = len(compared.seeds)
  return Result(
    metric=compared.metric,
    pool=compared.pool,
    model=compared.model,
    setting=compared.setting.label,
    n=n,
    mean=scale * compared.mean,
    error=None
    if compared.spread is None
    else scale * compared.spread / math.sqrt(n),
    published=row.published.get((compared.metric, compared.pool)),
    gain=scaled(compared.difference),
    gain_error=scaled(compared.standard_error),
    p_value=compared.p_value,
    is_paired=compared.is_paired,
    published_gain=_published_gain(
      table, row, (compared.metric, compared.pool)
    ),
    values=' '.join(f'{value:.6g}' for value in values),
  )


def _published_gain(
  table: table_lib.Table, row: table_lib.Row, key: tuple[str, str]
) -> Optional[float]:
  """Returns the source's difference to the baseline, if it has one."""
  if key in row.published_gain:
    return row.published_gain[key]
  baseline = next(
    (r for r in table.rows if (r.label or r.name) == groups_lib.BASELINE), row
  )
  if baseline is row or not {key} <= row.published.keys() & baseline.published:
    return None
  return row.published[key] - baseline.published[key]


def _pictures(
  table: table_lib.Table, runs: Sequence[runs_lib.Run]
) -> dict[str, bytes]:
  """Returns the pictures by the name of their file, in the report's order."""
  main = table.metrics[0]
  # Drawn where no other process replaces or removes them.
  with tempfile.TemporaryDirectory() as folder:
    paths = []
    for metric in table.metrics:
      paths += plots.evaluations(runs, folder, metric=metric)
    paths += plots.agreement(runs, folder)
    paths += plots.communication(runs, folder, metric=main)
    paths += plots.privacy_against_utility(
      runs, folder, last=table.last, metric=main
    )
    drawn = (plots.norms(run, folder) for run in runs)
    paths += next(filter(None, drawn), [])
    widest = max(runs, key=lambda run: len(run.pool_names))
    paths += pool_plots.plot_membership(
      widest.pools, folder, task=widest.task, seed=widest.seed
    )
    return {path.name: path.read_bytes() for path in paths}


def _markdown(
  name: str,
  table: table_lib.Table,
  runs: Mapping[table_lib.Cell, runs_lib.Run],
  results: Sequence[Result],
  pictures: Iterable[str],
  missing: Mapping[table_lib.Cell, str],
  command: str,
) -> str:
  lines = [
    f'# {table.title}',
    '',
    f'Source: {table.source}',
    '',
    table.claim,
    '',
    f'Chosen here: {table.choices}',
    '',
    f'    {command}',
    '',
  ]
  for metric in table.metrics:
    if not results:
      break
    unit = ' in percent' if metrics_lib.is_fraction(metric) else ''
    lines += [
      f'## {metrics_lib.title(metric)}',
      '',
      f'{metrics_lib.title(metric)}{unit}, {tables_lib.which(table.last)} of '
      'each run, ± the standard error over the n seeds. Gain: '
      f'difference to `{groups_lib.BASELINE}`, over pairs of runs with the '
      'same seed where both have the same seeds; p: the t-test of the pairs, '
      "else Welch's, two-sided.",
      '',
      results_table(results, metric),
      '',
    ]
  if runs:
    ordered = tuple(runs.values())
    rows = comparison.compare(ordered, last=table.last, metric=table.metrics[0])
    for note in tables_lib.notes(ordered, rows, table.last):
      lines += [f'* {note}']
    lines += ['']
  if missing:
    lines += ['## Runs that are not in the table', '']
    lines += [f'* {cell.name}: `{why}`' for cell, why in missing.items()]
    lines += ['']
  for picture in pictures:
    words = picture.removesuffix('.png').replace('_', ' ')
    lines += [f'![{words}](plots/{picture})', '']
  if runs:
    lines += ['## Costs', '', _costs(table, runs), '']
    lines += ['## Commands', '']
    lines += [
      f'    bin/train.py {shlex.join(table_lib.render(row.flags))}'
      for row in table.rows
    ]
    lines += ['', f'with `--seed` and `--run_dir`. {_environment(runs)}', '']
  return '\n'.join(lines)


def _costs(
  table: table_lib.Table, runs: Mapping[table_lib.Cell, runs_lib.Run]
) -> str:
  """Returns what the runs cost: means over the seeds."""
  lines = []
  for row in table.rows:
    group = [run for cell, run in runs.items() if cell.row.name == row.name]
    if not group:
      continue
    for pool in group[0].pool_names:
      cells = [f'`{row.name}`', pool]
      for way in ('downlink', 'uplink'):
        column = f'cost/{pool}/{way}_bytes'
        mean = _mean_total(group, column)
        cells.append(f'{mean / runs_lib.BYTES_PER_MEGABYTE:,.1f}')
      columns = ('time/round_seconds', 'time/evaluation_seconds')
      cells.append(rates.in_words(_mean_total(group, *columns)))
      lines.append(cells)
  header = (
    'run',
    'pool',
    'downlink, MB',
    'uplink, MB',
    'rounds and evaluations',
  )
  return _pipes(header, lines)


def _mean_total(runs: Sequence[runs_lib.Run], *columns: str) -> float:
  """Returns the total of some columns, on average over runs."""
  totals = [run.total(column) or 0.0 for run in runs for column in columns]
  return sum(totals) / len(runs)


def _environment(runs: Mapping[table_lib.Cell, runs_lib.Run]) -> str:
  """Returns commits, packages and machine of the runs."""
  environments = [runs_lib.load_environment(run.path) for run in runs.values()]

  def all_of(values: Iterable[object]) -> str:
    return ', '.join(dict.fromkeys(map(str, values)))

  # Versions of this package have written versions of different packages.
  packages = {
    name: all_of(e['packages'].get(name) or 'none' for e in environments)
    for name in dict.fromkeys(n for e in environments for n in e['packages'])
  }
  return (
    f'Commit {all_of(e["commit"] or "unknown" for e in environments)}; '
    f'{all_of(e["platform"] for e in environments)}, '
    f'{all_of(e["cpus"] for e in environments)} CPUs; Python '
    f'{all_of(e["python"].split()[0] for e in environments)}, '
    + ', '.join(f'{name} {version}' for name, version in packages.items())
    + '.'
  )


def _page(title: str, text: str, pictures: Mapping[str, bytes]) -> str:
  """Returns Markdown as a page that needs no other file."""
  converter = markdown.Markdown(extensions=['tables'])
  # What looks like HTML is text: an error's last line may hold anything.
  converter.preprocessors.deregister('html_block')
  converter.inlinePatterns.deregister('html')
  body = converter.convert(text)

  def inline(match: re.Match) -> str:
    data = base64.b64encode(pictures[html.unescape(match[2])]).decode()
    return f'{match[1]}src="data:image/png;base64,{data}"'

  body = re.sub(r'(<img [^>]*)src="plots/([^"]+)"', inline, body)
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n'
    f'</head>\n<body>\n{body}\n</body>\n</html>\n'
  )


def _number(value: Optional[float], sign: str = '') -> str:
  return '' if value is None else f'{value:{sign}.2f}'


def _with_error(
  value: Optional[float], error: Optional[float], sign: str = ''
) -> str:
  number = _number(value, sign)
  return number if error is None else f'{number} ± {error:.2f}'


def _pipes(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table that is aligned as text, too."""
  rows = [header, *lines]
  widths = [max(3, *map(len, column)) for column in zip(*rows)]
  padded = [
    [
      cell.ljust(width) if i < 2 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    ]
    for row in rows
  ]
  rule = [
    '-' * width if i < 2 else '-' * (width - 1) + ':'
    for i, width in enumerate(widths)
  ]
  return '\n'.join(
    f'| {" | ".join(cells)} |' for cells in (padded[0], rule, *padded[1:])
  )
