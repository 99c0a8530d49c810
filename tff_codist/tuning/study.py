"""The folder of a study: what it searches, and its trials.

study.json      settings, configuration, flags, and the values of all trials
trials/NNN/     the run folder of a trial
logs/NNN.txt    what its process printed
trials.csv      the trials with their results, also drawn in trials.png
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import files
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import runs as runs_lib

STATUSES = ('running', 'completed', 'stopped', 'infeasible')
# Settings that matter only when a trial ends.
_OF_VALUES = ('metric', 'pools', 'last')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What makes two studies of one configuration the same.

  Attributes:
    search: The parameters, as the command line has them.
    designer: Name of the designer.
    metric: The metric of the evaluation that is optimised.
    pools: The pools over which it is averaged.
    last: Evaluations at the end of a trial in its value (their mean).
    median_stopping: Whether trials that do worse than half are stopped.
    min_trials: Completed trials before the first is stopped.
  """

  search: tuple[str, ...]
  designer: str = 'quasi_random'
  metric: str = metrics_lib.DEFAULT
  pools: tuple[str, ...] = ()
  last: int = 3
  median_stopping: bool = True
  min_trials: int = 5

  def __post_init__(self):
    errors.check_above_0(last=self.last, min_trials=self.min_trials)

  @property
  def is_better_if_lower(self) -> bool:
    """Whether lower values are better."""
    return metrics_lib.is_better_if_lower(self.metric)


@dataclasses.dataclass(frozen=True)
class Trial:
  """One suggestion and what came of it.

  Attributes:
    number: From 1.
    values: By name of the parameter, as flags have them.
    status: `running`, also if it was interrupted; `completed`; `stopped` by the
      rule; or `infeasible`, if training failed.
    value: Mean of the last evaluations, on average over the pools; `None` while
      it runs, and if it is infeasible.
    rounds: The last round that counts in the value; `None` likewise.
    reason: Why it is infeasible.
  """

  number: int
  values: Mapping[str, str]
  status: str = 'running'
  value: Optional[float] = None
  rounds: Optional[int] = None
  reason: str = ''


class Study:
  """A study in its folder.

  Attributes:
    path: The folder.
    settings: What is searched, and how.
    config: The configuration of which the trials change some fields.
    flags: Flags of `bin/train.py` that give this configuration, without
      `--program.evaluate_on validation`.
  """

  def __init__(
    self,
    path: os.PathLike,
    *,
    settings: Settings,
    config: config_lib.Config,
    flags: Sequence[str],
    trials: Sequence[Trial] = (),
  ):
    self.path = pathlib.Path(path)
    self.settings = settings
    self.config = config
    self.flags = tuple(flags)
    self._trials = {trial.number: trial for trial in trials}
    # Of trials that have ended, which do not change any more.
    self._series: dict[int, runs_lib.Series] = {}

  @classmethod
  def load(cls, path: os.PathLike) -> 'Study':
    """Reads a study.

    Raises:
      RunFolderError: If there is none in the folder, or its file is damaged.
      ConfigError: If it is of another version of the package.
    """
    file = _file(path)
    try:
      content = json.loads(file.read_text())
      settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content['settings'].items()
      }
      return cls(
        path,
        settings=Settings(**settings),
        config=config_lib.from_json(json.dumps(content['config'])),
        flags=content['flags'],
        trials=[Trial(**trial) for trial in content['trials']],
      )
    except OSError as error:
      raise errors.RunFolderError(
        f'no study in {path} ({error.strerror})',
        expected='the --out of a study of bin/tune.py',
        fix='check the spelling, or start a study there with --search',
      ) from error
    except errors.ConfigError:
      raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise errors.RunFolderError(
        f'a damaged {file} ({error})',
        expected='the file as bin/tune.py wrote it',
        fix='put it back, or start the study in another folder',
      ) from error

  @property
  def trials(self) -> list[Trial]:
    """All trials, by number."""
    return [self._trials[number] for number in sorted(self._trials)]

  @property
  def ended(self) -> list[Trial]:
    """The trials that have a result, by number."""
    return [trial for trial in self.trials if trial.status != 'running']

  @property
  def winner(self) -> Optional[Trial]:
    """The best completed trial, the first of equals; `None` without any."""
    completed = [t for t in self.ranked() if t.status == 'completed']
    return completed[0] if completed else None

  def ranked(self) -> list[Trial]:
    """Returns the trials, best first; those without a value at the end."""
    sign = 1 if self.settings.is_better_if_lower else -1
    return sorted(
      self.trials,
      key=lambda t: (t.value is None, t.value and sign * t.value),
    )

  def trial(self, number: int) -> Optional[Trial]:
    """Returns a trial; `None` if it has not been suggested."""
    return self._trials.get(number)

  def run_dir(self, number: int) -> pathlib.Path:
    """Returns the run folder of a trial."""
    return self.path / 'trials' / f'{number:03d}'

  def is_done(self, number: int) -> bool:
    """Returns whether a trial was trained to its planned end."""
    return (self.run_dir(number) / 'DONE').exists()

  def log(self, number: int) -> pathlib.Path:
    """Returns the file with what a trial's process printed."""
    return self.path / 'logs' / f'{number:03d}.txt'

  def record(self, trial: Trial) -> None:
    """Writes a new trial, or what came of one.

    Raises:
      StorageError: If the file cannot be written.
    """
    self._trials[trial.number] = trial
    content = {
      'settings': dataclasses.asdict(self.settings),
      'config': dataclasses.asdict(self.config),
      'flags': self.flags,
      'trials': [dataclasses.asdict(trial) for trial in self.trials],
    }
    files.write(
      _file(self.path), (json.dumps(content, indent=1) + '\n').encode()
    )

  def resume(self) -> None:
    """Takes over the trials that the folder holds.

    As long as none has ended, the metric, its pools and the number of
    evaluations in it may be others than before.

    Raises:
      RunFolderError: If the folder belongs to another study, holds something
        else, or cannot be used.
    """
    if not files.holds(self.path, _file(self.path).name, what='a study'):
      return
    there = Study.load(self.path)
    different = {
      name: (value, getattr(self.settings, name))
      for name, value in dataclasses.asdict(there.settings).items()
      if value != getattr(self.settings, name)
      and (there.ended or name not in _OF_VALUES)
    }
    different |= config_lib.differences(there.config, self.config)
    if different:
      fields = config_lib.in_words(different)
      raise errors.RunFolderError(
        f'another study in {self.path} ({fields})',
        expected='the same study, to go on with it',
        fix='choose another --out or leave those as they are there',
      )
    self._trials, self._series = there._trials, {}

  def series(self, number: int) -> Optional[runs_lib.Series]:
    """Returns the objective of a trial after each evaluation.

    Args:
      number: The trial.

    Returns:
      Rounds, from the first evaluation after round 0 on, and values, the mean
      over the pools; `None` if there is no such evaluation yet. Those of a
      trial that has ended go up to the last that counts in its value: what a
      stopped one still did before the signal came depends on the clock.

    Raises:
      ConfigError: If the evaluations have no such metric for a pool.
      RunFolderError: If the trial is done and its metrics cannot be read.
    """
    if number in self._series:
      return self._series[number]
    series = self._read_series(number)
    trial = self.trial(number)
    if series is None or trial is None or trial.rounds is None:
      return series
    rounds, values = series
    counts = rounds <= trial.rounds
    self._series[number] = rounds[counts], values[counts]
    return self._series[number]

  def _read_series(self, number: int) -> Optional[runs_lib.Series]:
    # Asked first: a trial may be done after its folder could not be read.
    is_done = self.is_done(number)
    try:
      run = runs_lib.load_run(self.run_dir(number))
    except errors.RunFolderError:
      if is_done:
        raise
      return None  # Not yet evaluated, or a line is being written.
    runs_lib.check_metric([run], self.settings.metric)
    of_pools = []
    for pool in self.settings.pools:
      series = run.evaluations(pool, self.settings.metric)
      if series is None:
        raise errors.ConfigError(
          f'no metric {self.settings.metric!r} of pool {pool!r}',
          expected='a metric that every pool has',
          fix='choose other --pools or another --metric',
        )
      of_pools.append(dict(zip(*series)))
    rounds = sorted(set.intersection(*map(set, of_pools)) - {0})
    if not rounds:
      return None
    values = [np.mean([one[r] for one in of_pools]) for r in rounds]
    return np.array(rounds), np.array(values)


def _file(path: os.PathLike) -> pathlib.Path:
  return pathlib.Path(path) / 'study.json'
