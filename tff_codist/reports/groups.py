"""Runs that repeat one experiment: one algorithm, one privacy, many seeds."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

from tff_codist import errors
from tff_codist.reports import privacy as privacy_lib
from tff_codist.reports import runs as runs_lib

BASELINE = 'fed_avg'


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the runs of a group share.

  Attributes:
    algorithm: Name of the algorithm, or the label that the runs have.
    privacy: Name and value of the fields of `privacy` that are set, see
      `privacy.fields`; empty without privacy.
    distinctive: The fields of `privacy` that name the group beside the others,
      see `privacy.distinctive`.
  """

  algorithm: str
  privacy: tuple[tuple[str, str], ...]
  distinctive: tuple[str, ...]

  @property
  def label(self) -> str:
    """Names the group beside the others: `fed_avg tree z=1 clip=0.1`."""
    return self.name_without()

  @property
  def family(self) -> str:
    """Names the groups that trade privacy against utility in one way.

    The label without what is chosen to keep to a budget, the noise multiplier
    and `max_epsilon`.
    """
    return self.name_without(privacy_lib.NOISE, 'max_epsilon')

  def name_without(self, *fields: str) -> str:
    """Returns the label without some of the fields of `privacy`."""
    values = dict(self.privacy)
    symbols = {'mechanism': '', privacy_lib.NOISE: 'z='}
    parts = [
      symbols.get(name, f'{name}=') + values.get(name, 'none')
      for name in self.distinctive
      if values and name not in fields
    ]
    return ' '.join([self.algorithm, *parts])


# By setting, the runs by increasing seed.
Groups = dict[Setting, list[runs_lib.Run]]


def group_runs(runs: Sequence[runs_lib.Run]) -> Groups:
  """Groups runs that may be compared.

  Args:
    runs: Runs of one task; at most one for each algorithm, privacy and seed.

  Returns:
    The groups: `fed_avg` first, the other algorithms in the order of their
    first run; of an algorithm first those without privacy, then by increasing
    noise.

  Raises:
    ConfigError: If there are no runs.
    RunFolderError: If the runs are of different tasks, or two of them have the
      same algorithm, privacy and seed: they would count as independent when
      they are not.
  """
  _check_comparable(runs)
  algorithms = list(dict.fromkeys([BASELINE, *(r.setting for r in runs)]))
  runs = sorted(
    runs, key=lambda run: (algorithms.index(run.setting), *_noise(run))
  )
  privacies = [privacy_lib.fields(run) for run in runs]
  distinctive = tuple(privacy_lib.distinctive(privacies))
  groups: dict[Setting, dict[int, runs_lib.Run]] = {}
  for run, privacy in zip(runs, privacies):
    setting = Setting(
      algorithm=run.setting,
      privacy=tuple(privacy.items()),
      distinctive=distinctive,
    )
    group = groups.setdefault(setting, {})
    if run.seed in group:
      raise errors.RunFolderError(
        f'two runs of {setting.label} with seed {run.seed}: '
        f'{group[run.seed].path} and {run.path}',
        expected='one run for each algorithm and seed',
        fix='leave one of them out, or give the runs different seeds',
      )
    group[run.seed] = run
  return {
    setting: [group[seed] for seed in sorted(group)]
    for setting, group in groups.items()
  }


def _check_comparable(runs: Sequence[runs_lib.Run]) -> None:
  """Checks that the runs are of one task on the same data."""
  if not runs:
    raise errors.ConfigError(
      'no runs',
      expected='at least one run to report',
      fix='name the run folders',
    )
  _check_alike(
    runs,
    lambda run: run.task,
    found='runs of different tasks',
    expected='runs of one task',
    fix='compare the runs of each task by themselves',
  )
  _check_alike(
    runs,
    lambda run: run.num_classes,
    found='runs with different numbers of classes',
    expected='runs of one task on the same data',
    fix='compare the runs of each data set by themselves',
  )
  _check_alike(
    runs,
    lambda run: run.config.get('program', {}).get('evaluate_on', 'test'),
    found='runs evaluated on different clients',
    expected='runs that are all evaluated on the same clients',
    fix='leave out those with --program.evaluate_on validation',
  )


def _check_alike(
  runs: Sequence[runs_lib.Run],
  value_of: Callable[[runs_lib.Run], Hashable],
  *,
  found: str,
  expected: str,
  fix: str,
) -> None:
  examples = {value_of(run): run.path for run in runs}
  if len(examples) > 1:
    raise errors.RunFolderError(
      f'{found}: '
      + ', '.join(f'{value} ({path})' for value, path in examples.items()),
      expected=expected,
      fix=fix,
    )


def _noise(run: runs_lib.Run) -> list[float]:
  """Returns the pools' noise multipliers, by which groups are in order."""
  if not privacy_lib.is_private(run):
    return []
  noise = privacy_lib.of_pools(run, privacy_lib.NOISE)
  return [z or 0.0 for z in noise.values()]
