"""The search: suggests trials, trains them, stops the bad ones.

Each trial is a process of `bin/train.py` in a run folder of its own. With one
at a time, the same seed gives the same suggestions, whether the study was
interrupted or not; with several, that holds for designers that do not look at
results.
"""

import contextlib
import dataclasses
import math
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Optional

import tqdm

from tff_codist import errors
from tff_codist.program import processes
from tff_codist.program import stopping as program_stopping
from tff_codist.reports import metrics as metrics_lib
from tff_codist.tuning import designers
from tff_codist.tuning import space as space_lib
from tff_codist.tuning import stopping
from tff_codist.tuning import study as study_lib

_STOPPED = 128 + signal.SIGTERM


def trial_flags(
  study: study_lib.Study, values: dict[str, str]
) -> tuple[str, ...]:
  """Returns the flags of `bin/train.py` for a trial, without `--run_dir`."""
  return (
    *study.flags,
    f'--{space_lib.EVALUATE_ON}=validation',
    *space_lib.flags(values, study.config),
  )


def run_trials(
  study: study_lib.Study,
  *,
  num_trials: int,
  jobs: int = 1,
  train_command: Callable[..., tuple[str, ...]] = processes.train_command,
) -> None:
  """Runs the trials of a study that have not ended yet.

  SIGINT and SIGTERM stop the trials that run, each with a checkpoint; the same
  call later goes on with them.

  Args:
    study: The study, new or resumed.
    num_trials: Trials that it has in the end, at least 1; fewer if the designer
      has no more.
    jobs: Trials that train at a time, at least 1.
    train_command: From flags to the command that trains.

  Raises:
    ConfigError: If a number is too small, a trial's configuration is refused or
      its evaluations have no such metric.
    EnvironmentSetupError: If the designer or the training cannot run here.
    CodistError: If a trial was killed.
    StopRequested: After SIGINT or SIGTERM.
  """
  for name, value in (('trials', num_trials), ('jobs', jobs)):
    if value < 1:
      raise errors.ConfigError(
        f'--{name} {value}',
        expected='an integer above 0',
        fix=f'correct --{name}',
      )
  suggest = build_suggest(study)
  numbers: dict[processes.Training, int] = {}
  stopped: dict[int, int] = {}

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
    round_num = _round_to_stop(study, number)
    if round_num is not None:
      stopped[number] = round_num
    return round_num is None

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
    with contextlib.closing(running), _resumable():
      for ended in running:
        number = numbers[ended.training]
        trial = _result(study, number, ended.exit_code, stopped.get(number))
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


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
  try:
    yield
  except program_stopping.StopRequested as request:
    request.has_checkpoint = True  # `study.json`, and those of the trials.
    raise


def _round_to_stop(study: study_lib.Study, number: int) -> Optional[int]:
  """Returns the round at which the rule stops a trial, if it does."""
  settings = study.settings
  completed = [t for t in study.ended if t.status == 'completed']
  own = study.series(number)
  if (
    own is None
    or not settings.median_stopping
    or len(completed) < settings.min_trials
  ):
    return None
  others = [
    study.series(trial.number)
    for trial in study.trials
    if trial.number != number and trial.status != 'infeasible'
  ]
  sign = -1 if settings.is_better_if_lower else 1
  return stopping.round_to_stop(
    (own[0], sign * own[1]),
    [(rounds, sign * values) for rounds, values in filter(None, others)],
  )


def _result(
  study: study_lib.Study,
  number: int,
  exit_code: int,
  stopped_at: Optional[int],
) -> study_lib.Trial:
  """Returns what came of a trial whose process has ended."""
  trial, log = study.trial(number), study.log(number)
  if exit_code == 0:
    status = 'completed'
  elif exit_code == _STOPPED and stopped_at is not None:
    status = 'stopped'
  elif exit_code == 1:
    return dataclasses.replace(
      trial, status='infeasible', reason=_last_words(log)
    )
  else:
    raise _not_a_result(number, exit_code, log)
  rounds, values = study.series(number)
  if status == 'stopped':
    # What it did before the signal came depends on the clock.
    values, rounds = values[rounds <= stopped_at], rounds[rounds <= stopped_at]
  value = float(values[-study.settings.last :].mean())
  if not math.isfinite(value):
    reason = f'{study.settings.metric} is {value}'
    return dataclasses.replace(trial, status='infeasible', reason=reason)
  return dataclasses.replace(
    trial, status=status, value=value, rounds=int(rounds[-1])
  )


def _not_a_result(
  number: int, exit_code: int, log: pathlib.Path
) -> errors.CodistError:
  """Returns the error for a process that says nothing about its values."""
  kinds = {2: errors.ConfigError, 3: errors.EnvironmentSetupError}
  return kinds.get(exit_code, errors.CodistError)(
    f'trial {number} that ended with exit code {exit_code} '
    f'({_last_words(log)})',
    expected='a training that ends, fails in a round, or is stopped by the '
    'study',
    fix=f'see {log}; the same command then goes on with this trial',
  )


def _last_words(log: pathlib.Path) -> str:
  lines = log.read_text(errors='replace').strip().splitlines()
  # Libraries may still print while the process ends.
  said = [line for line in lines if line.startswith('error: ')] or lines
  return said[-1].strip() if said else 'no output'


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
