"""Training the runs of a table, and reporting them."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Optional

import tqdm

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import files
from tff_codist.program import command_line
from tff_codist.program import processes
from tff_codist.program import run_folder
from tff_codist.reports import runs as runs_lib
from tff_codist.reproduction import rates as rates_lib
from tff_codist.reproduction import report
from tff_codist.reproduction import table as table_lib


def reproduce(
  name: str,
  *,
  scale: str,
  num_seeds: Optional[int],
  jobs: int,
  out_dir: pathlib.Path,
  report_only: bool = False,
) -> tuple[table_lib.Cell, ...]:
  """Trains what is missing of a table, prints and writes its report.

  Args:
    name: Name of the table.
    scale: One of `SCALES`.
    num_seeds: Seeds 1, 2, ... of each row; None is 3, or 1 if `quick`, or as
      many as the folder has if it has more.
    jobs: Trainings at a time.
    out_dir: The folder of the table; new, empty or of the same table and scale.
    report_only: Whether nothing is trained.

  Returns:
    The runs that have not finished, and are not in the report.

  Raises:
    UnknownNameError: If there is no such table or scale.
    ConfigError: If a number is not positive, or a row cannot be run.
    RunFolderError: If the folder belongs to something else, or another process
      works in it, and nothing is written; or if a file of a finished run is
      damaged.
    StorageError: If the disk has no room for the planned runs, or a file cannot
      be written.
    FailedRunsError: If runs failed; the report is there.
    StopRequested: After a signal, see `processes.run`.
  """
  table_fn = table_lib.tables[name]
  if scale not in table_lib.SCALES:
    raise errors.UnknownNameError('scale', scale, table_lib.SCALES)
  table = table_fn(scale)
  _check_folder(out_dir, name, scale, must_exist=report_only)
  seeds_there = _seeds_there(table, out_dir)
  if num_seeds is None:
    num_seeds = max({1 if scale == 'quick' else 3, *seeds_there})
  errors.check_above_0(seeds=num_seeds, jobs=jobs)
  cells = table_lib.cells(table, num_seeds=num_seeds, out_dir=out_dir)
  configs = {cell: _config(cell) for cell in cells}
  pending = []
  for cell, config in configs.items():
    folder = run_folder.RunFolder(cell.run_dir)
    folder.check(config)
    if not folder.is_done:
      pending.append(cell)
  codes: dict[table_lib.Cell, int] = {}
  # A report can be had while another process trains.
  with contextlib.nullcontext() if report_only else files.lock(out_dir):
    if pending and not report_only:
      files.write(
        out_dir / 'table.json',
        json.dumps({'table': name, 'scale': scale}).encode(),
      )
      configs = {cell: configs[cell] for cell in pending}
      if scale == 'quick':
        print(f'{len(pending)} of {len(cells)} runs to train.', flush=True)
      else:
        _announce(configs, len(cells), out_dir=out_dir, jobs=jobs)
      codes = _train(configs, jobs=jobs)
    missing = _report(name, table, cells, codes, scale=scale, out_dir=out_dir)
  left_out = sorted(seed for seed in seeds_there if seed > num_seeds)
  if left_out:
    print(f'Not in this report: seeds {", ".join(map(str, left_out))}.')
  failed = [cell for cell in missing if codes.get(cell)]
  if failed:
    raise errors.FailedRunsError(
      f'{len(failed)} of {len(cells)} runs that failed: '
      + ', '.join(cell.name for cell in failed),
      expected='runs that finish',
      fix='see their logs; the same command tries them again',
    )
  return missing


def _seeds_there(table: table_lib.Table, out_dir: pathlib.Path) -> set[int]:
  """Returns the seeds of which a folder has runs; it may hold others' too."""
  names = {row.name for row in table.rows}
  parts = (
    path.parent.name.rpartition('_')
    for path in (out_dir / 'runs').glob('*_*/config.json')
  )
  return {
    int(seed) for name, _, seed in parts if name in names and seed.isdecimal()
  }


def _config(cell: table_lib.Cell) -> config_lib.Config:
  return command_line.parse(cell.flags(), description='').config


def _check_folder(
  out_dir: pathlib.Path, name: str, scale: str, *, must_exist: bool
) -> None:
  """Checks that a folder is of the table and scale, or new or empty.

  Args:
    out_dir: The folder.
    name: Name of the table.
    scale: The scale.
    must_exist: Whether it has to have the table already.
  """
  path = out_dir / 'table.json'
  ours = {'table': name, 'scale': scale}
  if not files.holds(out_dir, path.name, what='a table'):
    if must_exist:
      raise errors.RunFolderError(
        f'no table in {out_dir}',
        expected='the --out of a table that has been trained',
        fix='check the spelling, or leave out --report_only',
      )
    return
  try:
    theirs = json.loads(path.read_text())
  except (OSError, ValueError):
    theirs = 'a damaged table.json'
  if theirs != ours:
    raise errors.RunFolderError(
      f'{theirs} in {out_dir}',
      expected=f'{ours}',
      fix='give another --out',
    )


def _announce(
  configs: Mapping[table_lib.Cell, config_lib.Config],
  num_cells: int,
  *,
  out_dir: pathlib.Path,
  jobs: int,
) -> None:
  """Measures the rows and says how long their runs will take."""
  rates = rates_lib.measure(configs, out_dir=out_dir, jobs=jobs)
  known = {c: config for c, config in configs.items() if c.row.name in rates}
  failed = sorted({cell.row.name for cell in configs} - rates.keys())
  seconds = sum(
    rates[cell.row.name].seconds(config, rounds_done=_rounds_done(cell))
    for cell, config in known.items()
  )
  # What interrupted runs have is on the disk already.
  missing_bytes = (
    rates[cell.row.name].num_bytes(config) - rates_lib.bytes_in(cell.run_dir)
    for cell, config in known.items()
  )
  rates_lib.check_disk(sum(max(0, n) for n in missing_bytes), out_dir)
  without = f', without {", ".join(failed)}, which failed' if failed else ''
  print(
    f'{len(configs)} of {num_cells} runs to train, {jobs} at a time: about '
    f'{rates_lib.in_words(seconds / min(jobs, len(configs)))}{without}.',
    flush=True,
  )


def _train(
  configs: Mapping[table_lib.Cell, config_lib.Config], *, jobs: int
) -> dict[table_lib.Cell, int]:
  """Trains the runs; returns their exit codes."""
  trainings = {
    processes.Training(
      processes.train_command(*cell.flags()), cell.run_dir, cell.log
    ): cell
    for cell in configs
  }
  codes: dict[table_lib.Cell, int] = {}
  rounds = {cell: _rounds_done(cell) for cell in configs}
  with tqdm.tqdm(
    total=sum(config.program.rounds for config in configs.values()),
    initial=sum(rounds.values()),
    unit='round',
    mininterval=1 if sys.stderr.isatty() else 60,
  ) as bar:

    def count(cell: table_lib.Cell) -> None:
      done = _rounds_done(cell)
      bar.update(done - rounds[cell])
      rounds[cell] = done

    def watch(training: processes.Training) -> bool:
      count(trainings[training])
      return True

    running = processes.run(trainings, jobs=jobs, watch=watch)
    # Closing ends the trainings that are left, also after an error here.
    with contextlib.closing(running):
      for ended in running:
        cell = trainings[ended.training]
        count(cell)
        codes[cell] = ended.exit_code
        # One that is done may be stopped, or fail, when it draws.
        if ended.exit_code and not run_folder.RunFolder(cell.run_dir).is_done:
          bar.write(f'{cell.name} failed, see {cell.log}')
  return codes


def _rounds_done(cell: table_lib.Cell) -> int:
  """Returns the rounds in a run's metrics.csv, without reading numbers."""
  path = cell.run_dir / 'metrics.csv'
  if not path.exists():
    return 0
  with open(path, 'rb') as file:
    # Without the header and round 0.
    return max(0, sum(1 for _ in file) - 2)


def _report(
  name: str,
  table: table_lib.Table,
  cells: Sequence[table_lib.Cell],
  codes: Mapping[table_lib.Cell, int],
  *,
  scale: str,
  out_dir: pathlib.Path,
) -> tuple[table_lib.Cell, ...]:
  """Writes and prints the report; returns the runs that are not in it."""
  runs, missing = {}, {}
  for cell in cells:
    if run_folder.RunFolder(cell.run_dir).is_done:
      runs[cell] = runs_lib.load_run(cell.run_dir)
    else:
      missing[cell] = _why_missing(cell, codes.get(cell))
  seeds = max(cell.seed for cell in cells)
  paths = report.write(
    name,
    table,
    runs,
    missing,
    out_dir=out_dir,
    command=f'bin/reproduce.py {name} --scale {scale} --seeds {seeds}',
  )
  results = report.from_csv((out_dir / 'report.csv').read_text())
  for metric in table.metrics if results else ():
    print(f'\n{metric}\n')
    print(report.results_table(results, metric))
  print()
  for cell, why in missing.items():
    print(f'{cell.name}: {why}')
  for path in paths:
    print(path)
  return tuple(missing)


def _why_missing(cell: table_lib.Cell, code: Optional[int]) -> str:
  words = processes.last_words(cell.log)
  has_failed = (cell.run_dir / 'FAILED.txt').exists()
  if code or has_failed or words.startswith('error: '):
    if code and code < 0:
      words = f'killed by signal {-code}'
    return f'failed: {words} (all in {cell.log})'
  return f'not finished, {_rounds_done(cell)} rounds'
