"""Who suggests the next trial.

A designer is built for a space and a seed. What it suggests is a function of
the seed, the number of the trial, and the trials that have ended before:
nothing is kept in between, and a study that resumes gets the same suggestions.
"""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

from scipy.stats import qmc

from tff_codist import errors
from tff_codist import randomness
from tff_codist import registry
from tff_codist.tuning import space as space_lib
from tff_codist.tuning import study

# From the number of a trial, from 1, and the trials that have ended, to the
# trial's values by parameter; `None` if there are no more.
Suggest = Callable[[int, Sequence[study.Trial]], Optional[dict[str, str]]]

# Of functions `(space, *, seed, is_better_if_lower) -> Suggest`.
designers: registry.Registry = registry.Registry('designer')


@designers.register('random')
def build_random(
  space: space_lib.Space, *, seed: int, is_better_if_lower: bool
) -> Suggest:
  """Draws every value by itself, uniformly on its scale."""
  del is_better_if_lower

  def suggest(number, ended):
    del ended
    rng = randomness.derive_rng(seed, 'tuning', 'random', number)
    return {parameter.name: parameter.at(rng.uniform()) for parameter in space}

  return suggest


@designers.register('quasi_random')
def build_quasi_random(
  space: space_lib.Space, *, seed: int, is_better_if_lower: bool
) -> Suggest:
  """Takes points that fill the space evenly: a scrambled Halton sequence."""
  del is_better_if_lower

  def suggest(number, ended):
    del ended
    rng = randomness.derive_rng(seed, 'tuning', 'quasi_random')
    sequence = qmc.Halton(len(space), scramble=True, seed=rng)
    (point,) = sequence.fast_forward(number - 1).random(1)
    return {p.name: p.at(u) for p, u in zip(space, point)}

  return suggest


@designers.register('grid')
def build_grid(
  space: space_lib.Space, *, seed: int, is_better_if_lower: bool
) -> Suggest:
  """Takes all combinations, in an order that the seed draws.

  Fewer trials than combinations are then a sample without replacement.

  Raises:
    ConfigError: If a parameter is a range of real numbers.
  """
  del is_better_if_lower
  for parameter in space:
    if parameter.choices is None:
      raise errors.ConfigError(
        f'--designer grid with a range of real numbers, {parameter.name}',
        expected='lists of values, or int:LOW:HIGH',
        fix=f'list the values, --search {parameter.name}=v1,v2,...',
      )
  grid = list(itertools.product(*(parameter.choices for parameter in space)))
  order = randomness.derive_rng(seed, 'tuning', 'grid').permutation(len(grid))

  def suggest(number, ended):
    del ended
    if number > len(grid):
      return None
    return dict(zip((p.name for p in space), grid[order[number - 1]]))

  return suggest


@designers.register('vizier')
def build_vizier(
  space: space_lib.Space, *, seed: int, is_better_if_lower: bool
) -> Suggest:
  """Asks the Gaussian-process bandit of OSS Vizier (Song et al., 2022).

  The first trial is the centre of the space. A stopped trial counts with the
  value that it had, one that failed with the worst of all: the process of this
  version does not learn from data with an infeasible trial. Trials that run at
  the same time are not known to it.

  Raises:
    EnvironmentSetupError: If what it imports is not installed.
  """
  try:
    import jax
    from vizier import algorithms
    from vizier import pyvizier
    from vizier._src.algorithms.designers import gp_bandit
  except ImportError as error:
    raise errors.EnvironmentSetupError(
      f'--designer vizier without what it imports ({error})',
      expected='the packages of the extra tune',
      fix='add them to the environment: python -m pip install --no-deps '
      '--require-hashes -r requirements-tune.lock',
    ) from error
  problem = _vizier_problem(pyvizier, space, is_better_if_lower)
  # Names of its own: Vizier reads brackets in a name as an index.
  keys = {parameter.name: f'x{i}' for i, parameter in enumerate(space)}
  before_any_result = build_quasi_random(
    space, seed=seed, is_better_if_lower=is_better_if_lower
  )
  key = jax.random.PRNGKey(
    int(randomness.derive_rng(seed, 'tuning', 'vizier').integers(2**31))
  )

  def completed(trial, value):
    parameters = {
      keys[p.name]: _vizier_value(p, trial.values[p.name]) for p in space
    }
    result = pyvizier.Trial(id=trial.number, parameters=parameters)
    result.complete(pyvizier.Measurement(metrics={'value': value}))
    return result

  def suggest(number, ended):
    values = [trial.value for trial in ended if trial.value is not None]
    if number > 1 and not values:
      return before_any_result(number, ended)
    worst = (max if is_better_if_lower else min)(values, default=0.0)
    results = [
      completed(trial, worst if trial.value is None else trial.value)
      for trial in ended
    ]
    with _without_absl_log():
      designer = gp_bandit.VizierGPBandit(
        problem, rng=jax.random.fold_in(key, number)
      )
      designer.update(
        algorithms.CompletedTrials(results), algorithms.ActiveTrials()
      )
      (suggestion,) = designer.suggest(1)
    found = {
      name: suggestion.parameters.get_value(x) for name, x in keys.items()
    }
    return {p.name: _from_vizier(p, found[p.name]) for p in space}

  return suggest


def _vizier_problem(
  pyvizier: Any, space: space_lib.Space, is_better_if_lower: bool
) -> Any:
  """Returns Vizier's statement of the problem."""
  goals = pyvizier.ObjectiveMetricGoal
  problem = pyvizier.ProblemStatement()
  problem.metric_information.append(
    pyvizier.MetricInformation(
      'value', goal=goals.MINIMIZE if is_better_if_lower else goals.MAXIMIZE
    )
  )
  root = problem.search_space.root
  for i, parameter in enumerate(space):
    name, low, high = f'x{i}', parameter.low, parameter.high
    if parameter.scale == 'int':
      root.add_int_param(name, int(low), int(high))
    elif _numbers(parameter):
      root.add_discrete_param(name, sorted(_numbers(parameter)))
    elif parameter.scale == 'list':
      root.add_categorical_param(name, list(parameter.values))
    else:
      scale = {'log': 'LOG', 'linear': 'LINEAR'}[parameter.scale]
      root.add_float_param(
        name, low, high, scale_type=pyvizier.ScaleType[scale]
      )
  return problem


@functools.cache
def _numbers(parameter: space_lib.Parameter) -> dict[float, str]:
  """Returns the texts of a list by their number; empty if one is none."""
  try:
    return {float(value): value for value in parameter.values}
  except ValueError:
    return {}


def _vizier_value(parameter: space_lib.Parameter, text: str) -> Any:
  if parameter.scale == 'int':
    return int(text)
  if parameter.scale == 'list' and not _numbers(parameter):
    return text
  return float(text)


def _from_vizier(parameter: space_lib.Parameter, value: Any) -> str:
  if parameter.scale != 'list':
    return parameter.text(value)
  return _numbers(parameter)[value] if _numbers(parameter) else str(value)


@contextlib.contextmanager
def _without_absl_log() -> Iterator[None]:
  """Keeps back what Vizier logs as errors when it rounds to a list's values."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)
