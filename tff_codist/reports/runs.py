"""Run folders, read back and checked.

A run folder is what `bin/train.py` writes: `config.json`, `pools.json`,
`metrics.csv` and, at the end, `DONE` or `FAILED.txt`. Nothing is guessed: a
file that is torn is an error that names the file and the line.
"""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np

from tff_codist import errors

# The rounds in which a metric was measured, and its values.
Series = tuple[np.ndarray, np.ndarray]

# Reports have the decimal ones.
BYTES_PER_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run folder.

  Attributes:
    path: The folder.
    config: The nested configuration, as in `config.json`.
    pools: Who is in which pool, as in `pools.json`.
    metrics: By column of `metrics.csv`, the rounds in which the metric was
      measured (int64, strictly increasing; 0 is the initial evaluation) and its
      values (float64, same length). Columns without a value are not here.
      Accuracies are fractions in [0, 1], KL is in nats, times are in seconds.
    finished: Whether the run came to its planned end.
    failure: Last line of `FAILED.txt`, the error below its time and traceback;
      None if the run did not fail.
    label: What reports call the run's setting; None is its algorithm's name.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  pools: Mapping[str, Any]
  metrics: Mapping[str, Series]
  finished: bool
  failure: Optional[str] = None
  label: Optional[str] = None

  @property
  def setting(self) -> str:
    """What reports call the run's setting, without its privacy."""
    return self.label or self.algorithm

  @property
  def algorithm(self) -> str:
    """Name of the algorithm."""
    return self.config['algorithm']['name']

  @property
  def task(self) -> str:
    """Name of the task."""
    return self.config['task']['name']

  @property
  def seed(self) -> int:
    """Seed of every random choice of the run."""
    return self.config['seed']

  @property
  def pool_names(self) -> tuple[str, ...]:
    """Names of the pools, in the order of the configuration."""
    return tuple(self.config['pools']['names'])

  @property
  def num_classes(self) -> int:
    """Number of labels of the task."""
    return self.pools['num_classes']

  @property
  def domains(self) -> tuple[str, ...]:
    """Names of the task's domains; empty if it has none."""
    return tuple(self.pools['domains'])

  @property
  def metric_names(self) -> frozenset[str]:
    """Metrics of the evaluation that some pool has, e.g. `accuracy`."""
    return frozenset(
      column.removeprefix(f'eval/{pool}/')
      for column in self.metrics
      for pool in self.pool_names
      if column.startswith(f'eval/{pool}/')
    )

  @property
  def last_round(self) -> int:
    """The last round with any measurement."""
    return int(max(rounds[-1] for rounds, _ in self.metrics.values()))

  def model(self, pool: str) -> str:
    """Returns the name of a pool's model."""
    return self.pools['pools'][pool]['model']

  def evaluations(self, pool: str, metric: str) -> Optional[Series]:
    """Returns a metric of a pool's evaluations; None if it has none.

    Args:
      pool: Name of the pool.
      metric: See `reports.metrics`.
    """
    return self.metrics.get(f'eval/{pool}/{metric}')

  def total(self, column: str) -> Optional[float]:
    """Returns the sum of a column over the rounds; None if it has none."""
    series = self.metrics.get(column)
    return None if series is None else float(series[1].sum())


def load_run(
  run_dir: Union[str, os.PathLike], *, label: Optional[str] = None
) -> Run:
  """Reads a run folder, of a finished run or of one that still trains.

  Args:
    run_dir: The folder that `bin/train.py` was given as `--run_dir`.
    label: What reports call its setting; runs with one label are repetitions.
      None is the name of its algorithm.

  Returns:
    The run. Every pool has at least one evaluation.

  Raises:
    RunFolderError: If the folder is missing, cannot be read, is no run folder,
      has no evaluation of some pool yet, or holds a torn or corrupt file.
  """
  path = pathlib.Path(run_dir)
  try:
    is_there = path.is_dir()
  except OSError as error:
    raise _unreadable(path, error) from error
  if not is_there:
    raise errors.RunFolderError(
      f'no folder {path}',
      expected='the --run_dir of a run of bin/train.py',
      fix='check the spelling or train there first',
    )
  config = _read_json(path / 'config.json')
  names = _check_config(config, path / 'config.json')
  pools = _read_json(path / 'pools.json')
  _check_pools(pools, names, path / 'pools.json')
  metrics = _read_metrics(path / 'metrics.csv')
  for name in names:
    if f'eval/{name}/accuracy' not in metrics:
      raise _no_evaluation(path, f'of pool {name}')
  failure = None
  if (path / 'FAILED.txt').exists():
    lines = _read_text(path / 'FAILED.txt').strip().splitlines()
    failure = lines[-1] if lines else 'for no stated reason'
  return Run(
    path=path,
    config=config,
    pools=pools,
    metrics=metrics,
    finished=(path / 'DONE').exists(),
    failure=failure,
    label=label,
  )


def load_environment(run_dir: Union[str, os.PathLike]) -> dict[str, Any]:
  """Reads what a run was made with, from its `environment.json`.

  Args:
    run_dir: The run folder.

  Returns:
    `commit` ('' if unknown), `platform`, `python`, `cpus`, and `packages` with
    their versions, None for those not installed.

  Raises:
    RunFolderError: If the file is missing, torn or lacks one of them.
  """
  path = pathlib.Path(run_dir) / 'environment.json'
  environment = _read_json(path)
  for name in ('commit', 'platform', 'python'):
    _field(environment, name, str, path)
  _field(environment, 'cpus', int, path)
  _field(environment, 'packages', dict, path)
  return environment


def check_metric(runs: Sequence[Run], metric: str) -> None:
  """Checks that a report can be about a metric.

  Args:
    runs: The runs.
    metric: See `reports.metrics`. Pools may lack it: outside its domain a model
      that trains on all of them has nothing to measure.

  Raises:
    ConfigError: If no pool of one of the runs has it, with those that it has.
  """
  for run in runs:
    if metric not in run.metric_names:
      raise errors.ConfigError(
        f'no metric {metric!r} in {run.path / "metrics.csv"}',
        expected=f'one of {", ".join(sorted(run.metric_names))}',
        fix='give one of them with --metric',
      )


def _corrupt(path: pathlib.Path, line: int, what: str) -> errors.RunFolderError:
  return errors.RunFolderError(
    f'{path}, line {line}: {what}',
    expected='the file as bin/train.py wrote it',
    fix='restore the file, or resume the training to write it again',
  )


def _unreadable(path: pathlib.Path, error: OSError) -> errors.RunFolderError:
  return errors.RunFolderError(
    f'{path}, which cannot be read ({error.strerror})',
    expected='run folders and files that this user may read',
    fix='change their permissions, or check the spelling',
  )


def _no_evaluation(path: pathlib.Path, what: str) -> errors.RunFolderError:
  return errors.RunFolderError(
    f'no evaluation {what} in {path / "metrics.csv"} yet',
    expected='at least the initial evaluation, round 0',
    fix='wait for the first evaluation, or resume the training',
  )


def _read_text(path: pathlib.Path) -> str:
  # No newline translation: the csv module wants the line ends as they are.
  try:
    with open(path, encoding='utf-8', newline='') as file:
      return file.read()
  except UnicodeDecodeError as error:
    line = error.object[: error.start].count(b'\n') + 1
    raise _corrupt(path, line, 'bytes that are no text') from error
  except FileNotFoundError as error:
    raise errors.RunFolderError(
      f'{path.parent}, which has no {path.name}',
      expected='a run folder with all files that bin/train.py wrote',
      fix='give the --run_dir of a run of bin/train.py',
    ) from error
  except OSError as error:
    raise _unreadable(path, error) from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object; says in which line it is torn."""
  try:
    values = json.loads(_read_text(path))
  except json.JSONDecodeError as error:
    raise _corrupt(path, error.lineno, f'no JSON ({error.msg})') from error
  if not isinstance(values, dict):
    raise _corrupt(path, 1, f'a JSON {type(values).__name__}, no object')
  return values


def _field(
  values: Any, name: str, kind: type, path: pathlib.Path, where: str = ''
) -> Any:
  """Returns a nested field, `task.name`, after a check of its type."""
  for key in name.split('.'):
    values = values.get(key) if isinstance(values, dict) else None
  # A bool is an int to Python, but no seed and no count.
  if not isinstance(values, kind) or isinstance(values, bool) != (kind is bool):
    found = 'no value' if values is None else repr(values)
    raise errors.RunFolderError(
      f'{found} for {where}{name} in {path}',
      expected=f'a value of type {kind.__name__}',
      fix='give the --run_dir of a run that this version of bin/train.py wrote',
    )
  return values


def _check_config(config: dict[str, Any], path: pathlib.Path) -> list[str]:
  """Checks what every report needs; returns the names of the pools."""
  _field(config, 'task.name', str, path)
  _field(config, 'algorithm.name', str, path)
  _field(config, 'seed', int, path)
  names = _field(config, 'pools.names', list, path)
  if not names or not all(isinstance(name, str) for name in names):
    raise errors.RunFolderError(
      f'{names} for pools.names in {path}',
      expected='the name of at least one pool',
      fix='give the --run_dir of a run that bin/train.py wrote',
    )
  if 'privacy' in config:
    _check_privacy(config, len(names), path)
  return names


def _check_privacy(
  config: dict[str, Any], num_pools: int, path: pathlib.Path
) -> None:
  """Checks that `privacy` has a value for each pool, or one for all."""
  _field(config, 'privacy.delta', float, path)
  for name in ('mechanism', 'noise_multiplier', 'clip'):
    values = _field(config, f'privacy.{name}', list, path)
    if len(values) not in (1, num_pools):
      raise errors.RunFolderError(
        f'{len(values)} values for privacy.{name} in {path}',
        expected=f'one, or one for each of the {num_pools} pools',
        fix='restore the file from the run',
      )


def _check_pools(
  pools: dict[str, Any], names: Sequence[str], path: pathlib.Path
) -> None:
  """Checks the types of `pools.json`, and that it has the config's pools."""
  for name in (
    'num_classes',
    'num_clients',
    'distillation_clients',
    'distillation_examples',
    'validation_clients',
  ):
    _field(pools, name, int, path)
  _field(pools, 'overlaps', dict, path)
  _field(pools, 'disjoint', bool, path)
  _field(pools, 'distillation_origin', dict, path)
  sizes = {
    'labels': pools['num_classes'],
    'domains': len(_field(pools, 'domains', list, path)),
  }
  found = _field(pools, 'pools', dict, path)
  if set(found) != set(names):
    raise errors.RunFolderError(
      f'pools {", ".join(sorted(found))} in {path}',
      expected=f'the pools of config.json: {", ".join(sorted(names))}',
      fix='restore both files from the same run',
    )
  for name in names:
    where = f'pools.{name}.'
    _field(found[name], 'model', str, path, where)
    _field(found[name], 'num_parameters', int, path, where)
    _field(found[name], 'cohort_size', int, path, where)
    _field(found[name], 'num_clients', int, path, where)
    _field(found[name], 'domains', list, path, where)
    clients = _field(found[name], 'clients', dict, path, where)
    _check_clients(clients, sizes, path, f'{where}clients')


def _check_clients(
  clients: dict[str, Any],
  sizes: Mapping[str, int],
  path: pathlib.Path,
  where: str,
) -> None:
  """Checks the counts of a pool's clients, of which there must be one."""
  if not clients:
    raise errors.RunFolderError(
      f'no client in {where} in {path}',
      expected='at least one client in each pool',
      fix='restore the file from the run',
    )
  for client, counts in clients.items():
    of_client = f'{where}[{client!r}].'
    _field(counts, 'examples', int, path, of_client)
    for kind in sizes.keys() & counts.keys():
      values = _field(counts, kind, list, path, of_client)
      if len(values) != sizes[kind]:
        raise errors.RunFolderError(
          f'{of_client}{kind} in {path} without {sizes[kind]} counts',
          expected=f'the number of examples of each of the {kind}',
          fix='restore the file from the run',
        )


def _read_metrics(path: pathlib.Path) -> dict[str, Series]:
  """Reads `metrics.csv` strictly, without the empty cells."""
  if not path.exists():
    raise _no_evaluation(path.parent, 'of any pool')
  text = _read_text(path)
  if not text.strip():
    raise _no_evaluation(path.parent, 'of any pool')
  if not text.endswith('\n'):
    # The last cell may have lost digits, which nobody would see.
    raise _corrupt(path, text.count('\n') + 1, 'a torn line without its end')
  reader = csv.reader(text.splitlines(keepends=True), strict=True)
  columns: list[str] = []
  cells: dict[str, list[tuple[int, float]]] = {}
  last_round = -1
  try:
    for row in reader:
      if not columns:
        if row[:1] != ['round'] or len(set(row)) != len(row):
          raise _corrupt(
            path, reader.line_num, 'no header of different columns after round'
          )
        columns = row
        continue
      if len(row) != len(columns):
        raise _corrupt(
          path,
          reader.line_num,
          f'{len(row)} cells under {len(columns)} columns',
        )
      round_num = _round_num(row[0])
      if round_num is None or round_num <= last_round:
        raise _corrupt(
          path, reader.line_num, f'round {row[0]!r} after round {last_round}'
        )
      last_round = round_num
      for column, cell in zip(columns[1:], row[1:]):
        if not cell:
          continue
        try:
          value = float(cell)
        except ValueError:
          raise _corrupt(
            path, reader.line_num, f'{cell!r} as {column}, no number'
          ) from None
        cells.setdefault(column, []).append((round_num, value))
  except csv.Error as error:
    raise _corrupt(path, reader.line_num, str(error)) from error
  return {
    column: (
      np.array([round_num for round_num, _ in pairs], dtype=np.int64),
      np.array([value for _, value in pairs], dtype=np.float64),
    )
    for column, pairs in cells.items()
  }


def _round_num(cell: str) -> Optional[int]:
  """Returns the round of a cell like 3 or 3.0; None if it is no round."""
  try:
    value = float(cell)
  except ValueError:
    return None
  return int(value) if value.is_integer() and value >= 0 else None
