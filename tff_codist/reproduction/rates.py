"""How long the runs of a table will take, and how much disk.

Measured by a training of a few rounds for each row, and kept in `rates.json`.
Client stores, which some methods fill for many rounds, count as far as that.
"""

import contextlib
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import files
from tff_codist.program import processes
from tff_codist.reports import runs as runs_lib
from tff_codist.reproduction import table as table_lib

# The first round of a measurement compiles, the second still tries how many
# clients to train at a time.
_ROUNDS = 5
_SKIPPED_ROUNDS = 2
# What brings exchanges into the rounds of a measurement, a first one that
# compiles and a later one.
_EARLY_EXCHANGE = {
  'merged_codist': {'merged.warmup_rounds': 0},
  'periodic_codist': {'periodic.period': 2},
}


class Rate(NamedTuple):
  """What a row's runs cost.

  Attributes:
    start_seconds: To start, to compile and to end.
    round_seconds: Of a round without exchange.
    exchange_seconds: Of an exchange.
    evaluation_seconds: Of an evaluation.
    checkpoint_bytes: Of a run folder with one checkpoint.
  """

  start_seconds: float
  round_seconds: float
  exchange_seconds: float
  evaluation_seconds: float
  checkpoint_bytes: float

  def seconds(
    self, config: config_lib.Config, *, rounds_done: int = 0
  ) -> float:
    """Returns the seconds that a run still takes.

    Args:
      config: Its configuration.
      rounds_done: Rounds that it has.
    """
    rounds = config.program.rounds - rounds_done
    evaluations = rounds // config.program.rounds_per_evaluation + 1
    exchanges = _exchanges(config, config.program.rounds) - _exchanges(
      config, rounds_done
    )
    return (
      self.start_seconds
      + rounds * self.round_seconds
      + exchanges * self.exchange_seconds
      + evaluations * self.evaluation_seconds
    )

  def num_bytes(self, config: config_lib.Config) -> float:
    """Returns about the bytes of a run folder."""
    return self.checkpoint_bytes * (config.program.checkpoints_kept + 1)


def measure(
  configs: Mapping[table_lib.Cell, config_lib.Config],
  *,
  out_dir: pathlib.Path,
  jobs: int,
) -> dict[str, Rate]:
  """Measures the rows of some runs, those that no earlier call has measured.

  Args:
    configs: The runs, with the configuration of each.
    out_dir: The folder of the table.
    jobs: Trainings at a time, as the runs will have it, at least 1.

  Returns:
    By row. A row whose training fails has none.

  Raises:
    RunFolderError: If `rates.json` is damaged.
    StopRequested: After a signal, see `processes.run`.
    StorageError: If `rates.json` or a log cannot be written.
  """
  # What a killed call has left. Its trainings may still be ending; the next
  # call removes the rest.
  for left in out_dir.glob('.rates.*'):
    shutil.rmtree(left, ignore_errors=True)
  path = out_dir / 'rates.json'
  rates = _read(path, jobs)
  rows = {cell.row.name: cell for cell in configs}
  unknown = {name: cell for name, cell in rows.items() if name not in rates}
  if not unknown:
    return rates
  print(f'Measuring some rounds of {", ".join(unknown)}.', flush=True)
  with tempfile.TemporaryDirectory(dir=out_dir, prefix='.rates.') as folder:
    trainings = {}
    for name, cell in unknown.items():
      run_dir = pathlib.Path(folder) / name
      flags = cell.flags(
        **{
          'run_dir': run_dir,
          'program.rounds': _ROUNDS,
          'program.rounds_per_evaluation': _ROUNDS,
          'program.rounds_per_checkpoint': _ROUNDS,
          **_EARLY_EXCHANGE.get(configs[cell].algorithm.name, {}),
        }
      )
      training = processes.Training(
        processes.train_command(*flags),
        run_dir,
        run_dir.with_name(f'{name}.log'),
      )
      trainings[training] = name
    started = {}

    def begin():
      for training in trainings:
        started[training] = time.monotonic()
        yield training

    with contextlib.closing(processes.run(begin(), jobs=jobs)) as running:
      for ended in running:
        if ended.exit_code == 0:
          seconds = time.monotonic() - started[ended.training]
          run = runs_lib.load_run(ended.training.run_dir)
          rates[trainings[ended.training]] = _rate(run, seconds)
          _write(path, rates, jobs)
  return rates


def check_disk(num_bytes: float, folder: pathlib.Path) -> None:
  """Checks that the planned runs have room.

  Args:
    num_bytes: What they need beyond what they have.
    folder: Where they will be; the disk of its nearest existing parent counts.

  Raises:
    StorageError: If there is less space.
  """
  parent = next(p for p in (folder, *folder.parents) if p.exists())
  free = shutil.disk_usage(parent).free
  if num_bytes > free:
    raise errors.StorageError(
      f'{free / 1e9:.1f} GB free for {folder}',
      expected=f'{num_bytes / 1e9:.1f} GB for the planned runs',
      fix='free space, give another --out, or lower --seeds',
    )


def bytes_in(folder: pathlib.Path) -> int:
  """Returns the size of all files of a folder, 0 if there is none."""
  return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


def in_words(seconds: float) -> str:
  """Returns a duration as `2 h 05 min`, `4 min` or `30 s`."""
  if seconds < 100:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min'


def _exchanges(config: config_lib.Config, rounds: int) -> int:
  """Returns the exchanges in the first rounds of a run."""
  if config.algorithm.name == 'merged_codist':
    return max(0, rounds - config.merged.warmup_rounds)
  if config.algorithm.name == 'periodic_codist':
    return rounds // config.periodic.period
  return 0


def _rate(run: runs_lib.Run, seconds: float) -> Rate:
  whole = run.metrics['time/round_seconds'][1]
  if run.algorithm in _EARLY_EXCHANGE:
    exchanges = run.metrics['time/exchange_seconds'][1]
  else:
    exchanges = np.zeros_like(whole)
  exchange = float(max(exchanges[_SKIPPED_ROUNDS:]))
  round_seconds = float(np.median((whole - exchanges)[_SKIPPED_ROUNDS:]))
  rounds, evaluations = run.metrics['time/evaluation_seconds']
  return Rate(
    start_seconds=max(
      0.0,
      seconds
      - run.last_round * round_seconds
      - float(exchanges.sum())
      - len(rounds) * float(evaluations[-1]),
    ),
    round_seconds=round_seconds,
    exchange_seconds=exchange,
    evaluation_seconds=float(evaluations[-1]),
    checkpoint_bytes=float(bytes_in(run.path)),
  )


def _write(path: pathlib.Path, rates: Mapping[str, Rate], jobs: int) -> None:
  content = {'jobs': jobs, 'rates': {n: r._asdict() for n, r in rates.items()}}
  files.write(path, json.dumps(content, indent=1).encode())


def _read(path: pathlib.Path, jobs: int) -> dict[str, Rate]:
  """Returns the rates of earlier calls with as many trainings at a time."""
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text())
    rates = {n: Rate(**r) for n, r in content['rates'].items()}
    return rates if content['jobs'] == jobs else {}
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise errors.RunFolderError(
      f'a damaged {path}',
      expected='the rates as bin/reproduce.py wrote them',
      fix='delete the file, and the rates are measured again',
    ) from error
