"""Algorithms side by side: each model's metric, over seeds.

The number that counts is the mean of a metric, by default accuracy, over the
last evaluations, fixed before anybody sees the curve. The untrained model of
round 0 counts only if there is no other evaluation.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import numpy as np
from scipy import stats

from tff_codist import errors
from tff_codist.reports import groups as groups_lib
from tff_codist.reports import metrics as metrics_lib
from tff_codist.reports import privacy as privacy_lib
from tff_codist.reports import runs as runs_lib

# Relative to the values, far above what rounding leaves of equal differences
# and far below what seeds do.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A metric of one setting's model of one pool, over seeds.

  Accuracies and their differences are fractions of 1.

  Attributes:
    metric: Name of the metric, see `metrics`.
    pool: Name of the pool.
    model: Name of the pool's model.
    setting: Algorithm and privacy.
    seeds: Seeds of the runs, increasing.
    mean: Mean over the seeds of the runs' values.
    spread: Sample standard deviation over the seeds; None for one seed.
    difference: Mean minus that of fed_avg with the same privacy; None for
      fed_avg itself and where no run of it has this pool with this model.
    standard_error: Of the difference, 0 if it is no more than rounding leaves
      of equal values; None where there are too few seeds.
    p_value: Of the hypothesis that the difference is zero, by Student's t-test
      for pairs, else by Welch's, two-sided; None as the standard error, and
      where that is 0.
    is_paired: Whether the difference is the mean over pairs of runs with the
      same seed. It is if both algorithms have the same seeds; otherwise it is
      the difference of the means and its error that of two independent samples.
      None without a difference.
    epsilon: What the pool's releases have cost alone at the end, the highest
      over the seeds; None without privacy, or where no seed has recorded it.
    worst_epsilon: The same of the worst-off clients over all of their pools.
  """

  metric: str
  pool: str
  model: str
  setting: groups_lib.Setting
  seeds: tuple[int, ...]
  mean: float
  spread: Optional[float] = None
  difference: Optional[float] = None
  standard_error: Optional[float] = None
  p_value: Optional[float] = None
  is_paired: Optional[bool] = None
  epsilon: Optional[float] = None
  worst_epsilon: Optional[float] = None


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
  errors.check_above_0(last=last)
  series = run.evaluations(pool, metric)
  if series is None:
    return np.zeros(0)
  rounds, values = series
  trained = values[rounds > 0]
  return (trained if trained.size else values)[-last:]


def compare(
  runs: Sequence[runs_lib.Run],
  *,
  last: int = 5,
  metric: str = metrics_lib.DEFAULT,
) -> tuple[Comparison, ...]:
  """Compares algorithms, and what privacy costs them, model by model.

  Args:
    runs: Runs of one task; at most one for each algorithm, privacy and seed.
    last: Evaluations in a run's value (their mean), at least 1.
    metric: The metric, see `metrics`.

  Returns:
    A row for each model that has the metric and each setting: models in order
    of their first run, settings in that of `groups.group_runs`.

  Raises:
    ConfigError: If there are no runs, one has no such metric, or `last` is not
      positive.
    RunFolderError: If the runs cannot be compared, see `groups.group_runs`.
  """
  groups = groups_lib.group_runs(runs)
  runs_lib.check_metric(runs, metric)
  models: dict[tuple[str, str], groups_lib.Groups] = {}
  for setting, run in ((s, r) for s, group in groups.items() for r in group):
    for pool in run.pool_names:
      if run.evaluations(pool, metric):
        of_model = models.setdefault((pool, run.model(pool)), {})
        of_model.setdefault(setting, []).append(run)
  rows = []
  for (pool, model), of_model in models.items():
    values = {
      setting: {
        run.seed: float(
          last_evaluations(run, pool, last=last, metric=metric).mean()
        )
        for run in group
      }
      for setting, group in of_model.items()
    }
    baselines = {
      setting.privacy: by_seed
      for setting, by_seed in values.items()
      if setting.algorithm == groups_lib.BASELINE
    }
    for setting, group in of_model.items():
      seeds, samples = zip(*values[setting].items())
      row = Comparison(
        metric=metric,
        pool=pool,
        model=model,
        setting=setting,
        seeds=seeds,
        mean=float(np.mean(samples)),
        spread=float(np.std(samples, ddof=1)) if len(samples) > 1 else None,
        epsilon=_highest(privacy_lib.epsilon(run, pool) for run in group),
        worst_epsilon=_highest(map(privacy_lib.worst_epsilon, group)),
      )
      baseline = baselines.get(setting.privacy)
      if baseline and setting.algorithm != groups_lib.BASELINE:
        row = _with_difference(row, values[setting], baseline)
      rows.append(row)
  return tuple(rows)


def _with_difference(
  row: Comparison, by_seed: Mapping[int, float], baseline: Mapping[int, float]
) -> Comparison:
  """Returns a row with the difference of its values to those of fed_avg."""
  values = np.array(list(by_seed.values()))
  is_paired = set(baseline) == set(by_seed)
  if is_paired:
    differences = values - np.array([baseline[seed] for seed in by_seed])
    difference = float(differences.mean())
    samples = (differences,)
    test = functools.partial(stats.ttest_1samp, popmean=0.0)
  else:
    others = np.array(list(baseline.values()))
    difference = float(values.mean() - others.mean())
    samples = (values, others)
    test = functools.partial(stats.ttest_ind, equal_var=False)
  standard_error = p_value = None
  if all(sample.size > 1 for sample in samples):
    standard_error = math.sqrt(sum(s.var(ddof=1) / s.size for s in samples))
    largest = max(map(abs, (*by_seed.values(), *baseline.values())))
    if standard_error <= _ROUNDING * largest:
      standard_error = 0.0  # Equal differences have no spread, and no test.
    else:
      p_value = float(test(*samples).pvalue)
  return dataclasses.replace(
    row,
    difference=difference,
    standard_error=standard_error,
    p_value=p_value,
    is_paired=is_paired,
  )


def _highest(values: Iterable[Optional[float]]) -> Optional[float]:
  return max((value for value in values if value is not None), default=None)
