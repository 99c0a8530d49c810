"""The search: suggests trials, trains them, stops the bad ones.

Each trial is a process of `bin/train.py` in a run folder of its own. The same
seed gives the same suggestions, whether the study was interrupted or not, for
designers that do not look at results. For those that do, it does with one trial
at a time and without median stopping: whether a trial that the rule condemns is
stopped before it ends depends on the clock.
"""

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Optional

import tqdm

from tff_codist import errors
from tff_codist import files
from tff_codist.program import processes
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import runs as runs_lib
from tff_codist.tuning import designers
from tff_codist.tuning import space as space_lib
from tff_codist.tuning import stopping
from tff_codist.tuning import study as study_lib

# How a training ends on the signal; the second while it still imports.
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)


def trial_flags(
  study: study_lib.Study, values: dict[str, str]
) -> tuple[str, ...]:
  """Returns the flags of `bin/train.py` for a trial, without `--run_dir`."""
  flags = [*study.flags, f'--{space_lib.EVALUATE_ON}=validation']
  return tuple(space_lib.set_flags(flags, values, study.config))


def run_trials(
  study: study_lib.Study,
  *,
  num_trials: int,
  jobs: int = 1,
  train_command: Callable[..., tuple[str, ...]] = processes.train_command,
) -> None:
  """Runs the trials of a study that have not ended yet.

  A signal stops the trials that run, each with a checkpoint; the same call
  later goes on with them. One process at a time works in the folder.

  Args:
    study: The study, new or resumed; it takes over what its folder holds.
    num_trials: Trials that it has in the end, at least 1; fewer if the designer
      has no more.
    jobs: Trials that train at a time, at least 1.
    train_command: From flags to the command that trains.

  Raises:
    ConfigError: If a number is too small, a trial's configuration is refused or
      its evaluations have no such metric.
    RunFolderError: If another process works in the folder, or it is another
      study's.
    EnvironmentSetupError: If the designer or the training cannot run here, as
      on a full disk.
    StorageError: If the study or a log cannot be written.
    CodistError: If a trial was killed.
    StopRequested: After a signal.
  """
  errors.check_above_0(trials=num_trials, jobs=jobs)
  with files.lock(study.path):
    study.resume()
    _run_trials(study, num_trials, jobs, train_command)


def _run_trials(
  study: study_lib.Study,
  num_trials: int,
  jobs: int,
  train_command: Callable[..., tuple[str, ...]],
) -> None:
  suggest = build_suggest(study)
  numbers: dict[processes.Training, int] = {}
  # By trial that the rule stops, the evaluations up to its round.
  condemned: dict[int, runs_lib.Series] = {}

  def trainings() -> Iterator[processes.Training]:
    for number in range(1, num_trials + 1):
      trial = study.trial(number)
      if trial is None:
        values = suggest(number, study.ended)
        if values is None:
          return
        trial = study_lib.Trial(number=number, values=values)
        study.record(trial)
      if trial.status != 'running':
        continue
      flags = trial_flags(study, trial.values)
      run_dir = study.run_dir(number)
      training = processes.Training(
        command=train_command(*flags, f'--run_dir={run_dir}'),
        run_dir=run_dir,
        log=study.log(number),
      )
      numbers[training] = number
      bar.write(f'trial {number}: {shlex.join(training.command)}', sys.stderr)
      yield training

  def goes_on(training: processes.Training) -> bool:
    number = numbers[training]
    series = _series_to_stop(study, number)
    if series is not None:
      condemned[number] = series
    return series is None

  with tqdm.tqdm(
    total=num_trials,
    initial=len(study.ended),
    unit='trial',
    disable=None,
    dynamic_ncols=True,
    file=sys.stderr,
  ) as bar:
    running = processes.run(trainings(), jobs=jobs, watch=goes_on)
    # Closing ends the processes that are left, also after an error here.
    with contextlib.closing(running):
      for ended in running:
        number = numbers[ended.training]
        trial = _result(study, number, ended.exit_code, condemned.get(number))
        study.record(trial)
        bar.update()
        bar.write(_line(study, trial), sys.stderr)


def build_suggest(study: study_lib.Study) -> designers.Suggest:
  """Returns the study's designer.

  Raises:
    UnknownNameError: If there is none of that name, with the nearest one.
    ConfigError: If it cannot search this space.
    EnvironmentSetupError: If its packages are not installed.
  """
  settings = study.settings
  return designers.designers[settings.designer](
    space_lib.parse_space(settings.search, study.config),
    seed=study.config.seed,
    is_better_if_lower=settings.is_better_if_lower,
  )


def _series_to_stop(
  study: study_lib.Study, number: int
) -> Optional[runs_lib.Series]:
  """Returns a trial's evaluations up to that at which the rule stops it.

  A trial that was trained to its planned end is left to save and draw.
  """
  settings = study.settings
  completed = [t for t in study.ended if t.status == 'completed']
  own = study.series(number)
  if (
    own is None
    or not settings.median_stopping
    or len(completed) < settings.min_trials
    or own[0][-1] >= study.config.program.rounds
    or study.is_done(number)
  ):
    return None
  others = [
    study.series(trial.number)
    for trial in study.trials
    if trial.number != number and trial.status != 'infeasible'
  ]
  sign = -1 if settings.is_better_if_lower else 1
  rounds, values = own
  round_num = stopping.round_to_stop(
    (rounds, sign * values), [(r, sign * v) for r, v in filter(None, others)]
  )
  if round_num is None:
    return None
  return rounds[rounds <= round_num], values[rounds <= round_num]


def _result(
  study: study_lib.Study,
  number: int,
  exit_code: int,
  condemned: Optional[runs_lib.Series],
) -> study_lib.Trial:
  """Returns what came of a trial whose process has ended.

  Args:
    study: The study.
    number: The trial.
    exit_code: That of its process. It says nothing of a trial that is done,
      which may be stopped, or fail, when it draws.
    condemned: The evaluations up to that at which the rule stopped it, if it
      did.
  """
  trial = study.trial(number)
  if study.is_done(number):
    status, (rounds, values) = 'completed', study.series(number)
  elif condemned is not None and exit_code in _STOPPED:
    status, (rounds, values) = 'stopped', condemned
  elif exit_code == 1:
    reason = _last_words(study, number)
    return dataclasses.replace(trial, status='infeasible', reason=reason)
  else:
    raise _not_a_result(study, number, exit_code)
  value = float(values[-study.settings.last :].mean())
  if not math.isfinite(value):
    reason = f'{study.settings.metric} is {value}'
    return dataclasses.replace(trial, status='infeasible', reason=reason)
  return dataclasses.replace(
    trial, status=status, value=value, rounds=int(rounds[-1])
  )


def _not_a_result(
  study: study_lib.Study, number: int, exit_code: int
) -> errors.CodistError:
  """Returns the error for a process that says nothing about its values."""
  kinds = {2: errors.ConfigError, 3: errors.EnvironmentSetupError}
  return kinds.get(exit_code, errors.CodistError)(
    f'trial {number} that ended with exit code {exit_code} '
    f'({_last_words(study, number)})',
    expected='a training that ends, fails because of its values, or is stopped '
    'by the study',
    fix=f'mend what {study.log(number)} says; the same command then goes on '
    'with this trial',
  )


def _last_words(study: study_lib.Study, number: int) -> str:
  return processes.last_words(study.log(number)) or 'no output'


def _line(study: study_lib.Study, trial: study_lib.Trial) -> str:
  """Returns a sentence about a trial that has ended."""
  if trial.value is None:
    return f'trial {trial.number} is infeasible: {trial.reason}'
  metric = study.settings.metric
  found = metrics_lib.text(metric, trial.value)
  best = '' if study.winner is None else f', best so far {study.winner.number}'
  return (
    f'trial {trial.number} {trial.status} after round {trial.rounds}: '
    f'{metrics_lib.kind(metric)} {found}{best}'
  )
