"""What designers suggest: reproducible, within the space, and all of a grid."""

import importlib.util
import itertools

import numpy as np
import pytest

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import tuning
from tff_codist.tuning import designers

_NAMES = ('merged.learning_rate', 'merged.steps', 'distillation.loss')
_SPACE = tuning.parse_space(
  [
    'merged.learning_rate=log:1e-6:1e-2',
    'merged.steps=int:1:4',
    'distillation.loss=kl,l2',
  ],
  config_lib.Config(),
)
_HAS_VIZIER = importlib.util.find_spec('equinox') is not None


def _build(name, space=_SPACE, *, seed=1, is_better_if_lower=False):
  return designers.designers[name](
    space, seed=seed, is_better_if_lower=is_better_if_lower
  )


@pytest.mark.parametrize('name', ['random', 'quasi_random'])
def test_suggestions_are_a_function_of_seed_and_number(name):
  suggest = _build(name)
  first = [suggest(number, []) for number in range(1, 9)]
  again = _build(name)
  assert [again(number, []) for number in range(8, 0, -1)] == first[::-1]
  assert len({tuple(values.values()) for values in first}) == 8
  assert _build(name, seed=2)(1, []) != first[0]
  for values in first:
    assert tuple(values) == _NAMES
    assert 1e-6 <= float(values['merged.learning_rate']) <= 1e-2
    assert values['merged.steps'] in ('1', '2', '3', '4')
    assert values['distillation.loss'] in ('kl', 'l2')


def test_quasi_random_fills_each_range_evenly():
  """Of eight points in base 2, one is in each eighth of the first range."""
  suggest = _build('quasi_random')
  rates = [
    float(suggest(number, [])['merged.learning_rate']) for number in range(1, 9)
  ]
  eighths = np.floor(8 * (np.log10(rates) + 6) / 4)
  assert sorted(eighths) == list(range(8))


def test_random_is_uniform_on_the_scale():
  suggest = _build('random')
  rates = [
    float(suggest(number, [])['merged.learning_rate'])
    for number in range(1, 401)
  ]
  counts, _ = np.histogram(np.log10(rates), bins=4, range=(-6, -2))
  # 100 in each decade, standard deviation 8.7.
  assert np.abs(counts - 100).max() < 5 * 8.7


def test_grid_has_every_combination_once_and_ends():
  suggest = _build('grid', _SPACE[1:])
  found = [tuple(suggest(number, []).values()) for number in range(1, 9)]
  assert sorted(found) == sorted(itertools.product('1234', ['kl', 'l2']))
  assert suggest(9, []) is None
  other = _build('grid', _SPACE[1:], seed=2)
  assert [tuple(other(n, []).values()) for n in range(1, 9)] != found


def test_grid_needs_lists():
  with pytest.raises(errors.ConfigError, match=r'merged\.learning_rate=v1'):
    _build('grid')


def test_unknown_designer():
  with pytest.raises(errors.UnknownNameError, match="use 'vizier'"):
    _build('visier')


@pytest.mark.skipif(_HAS_VIZIER, reason='its packages are installed')
def test_vizier_without_its_packages_names_the_lock():
  with pytest.raises(
    errors.EnvironmentSetupError, match=r'requirements-tune\.lock'
  ):
    _build('vizier')


@pytest.mark.skipif(
  not _HAS_VIZIER, reason='the packages of requirements-tune.lock are not here'
)
def test_vizier_learns_from_results():
  """It starts in the centre, and goes where results were good."""
  space = tuning.parse_space(
    ['merged.distillation_weight=linear:0:1', 'merged.steps=1,2,4'],
    config_lib.Config(),
  )
  suggest = _build('vizier', space, is_better_if_lower=True)
  first = suggest(1, [])
  assert first['merged.distillation_weight'] == '0.5'
  assert suggest(2, []) != first
  failed = {'merged.distillation_weight': '1.0', 'merged.steps': '2'}
  ended = [tuning.Trial(1, failed, status='infeasible', reason='nan')]
  for number in range(2, 11):
    x = number / 10 - 0.1
    ended.append(
      tuning.Trial(
        number,
        {
          'merged.distillation_weight': f'{x:.1f}',
          'merged.steps': '124'[number % 3],
        },
        status='completed',
        value=10 * (x - 0.7) ** 2,
        rounds=1,
      )
    )
  low = suggest(11, ended)
  assert low == suggest(11, ended)
  assert low['merged.steps'] in ('1', '2', '4')
  assert 0.5 < float(low['merged.distillation_weight']) < 0.9
  high = _build('vizier', space)(11, ended)
  assert float(high['merged.distillation_weight']) < 0.2
