"""Ranges and lists: what they mean, and which flags they become."""

import numpy as np
import pytest

import tasks  # noqa: F401
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import tuning
from tff_codist.tuning import space as space_lib

_CONFIG = config_lib.Config()


def _parse(*texts, config=_CONFIG):
  return tuning.parse_space(texts, config)


@pytest.mark.parametrize(
  ('values', 'points'),
  [
    ('log:1e-6:1e-2', {0: '1e-06', 0.25: '1e-05', 0.5: '0.0001', 1: '0.01'}),
    ('linear:0.2:0.6', {0: '0.2', 0.25: '0.3', 0.999999999: '0.6'}),
    ('int:1:4', {0: '1', 0.249: '1', 0.25: '2', 0.75: '4', 1: '4'}),
    ('int:-2:1', {0: '-2', 0.49: '-1', 0.5: '0', 1: '1'}),
    ('a,b,c', {0: 'a', 0.33: 'a', 0.34: 'b', 0.67: 'c', 1: 'c'}),
  ],
)
def test_values_are_uniform_on_their_scale(values, points):
  (parameter,) = _parse(f'merged.learning_rate={values}')
  assert {u: parameter.at(u) for u in points} == points


def test_rounding_never_leaves_the_range():
  (parameter,) = _parse('merged.learning_rate=linear:0.1234564:0.8765436')
  assert parameter.at(0.5) == '0.5'
  assert (parameter.at(0), parameter.at(1)) == ('0.1234564', '0.8765436')
  assert parameter.extremes == ('0.1234564', '0.8765436')


def test_choices():
  real, whole, listed = _parse(
    'merged.learning_rate=linear:0:1',
    'merged.steps=int:2:4',
    'periodic.steps=7,5',
  )
  assert real.choices is None
  assert whole.choices == ('2', '3', '4')
  assert listed.choices == ('7', '5')


def test_flags():
  config = config_lib.change(
    _CONFIG,
    pools={
      'names': ('a', 'b', 'c'),
      'models': ('small',),
      'clients_fraction': (1.0,),
    },
    merged={'distillation_weight': (0.1, 0.2, 0.3)},
  )
  values = {
    'merged.learning_rate': '1e-05',
    'merged.distillation_weight[c]': '0.9',
    'merged.match_norm': 'true',
    'merged.rescale': 'false',
    'pools.cohort_size[a]': '3',
  }
  assert space_lib.set_flags([], values, config) == [
    '--merged.learning_rate=1e-05',
    *('--merged.distillation_weight', '0.1', '0.2', '0.9'),
    '--merged.match_norm',
    '--merged.norescale',
    # One value stands for every pool.
    *('--pools.cohort_size', '3', '10', '10'),
  ]


@pytest.mark.parametrize(
  ('given', 'of_pools'),
  [
    (['--merged.distillation_weight', '0.1', '0.2'], ['0.1', '0.7']),
    (['--pools.cohort_size=5'], ['5', '0.7']),
  ],
)
def test_flag_of_which_a_pool_is_searched_has_the_others_values(
  given, of_pools
):
  config = config_lib.change(
    _CONFIG,
    pools={'cohort_size': (5,)},
    merged={'distillation_weight': (0.1, 0.2)},
  )
  flag = given[0].partition('=')[0]
  assert space_lib.set_flags(
    ['--preset', 'digits', *given, '--quick'],
    {f'{flag[2:]}[large]': '0.7'},
    config,
  ) == ['--preset', 'digits', '--quick', flag, *of_pools]


def test_flag_that_is_searched_for_all_pools_stays_to_be_refused():
  given = ['--merged.steps=3']
  assert space_lib.set_flags(given, {'merged.steps': '4'}, _CONFIG) == [
    '--merged.steps=3',
    '--merged.steps=4',
  ]


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    (['merged.learning_rat=1,2'], "use 'merged.learning_rate'"),
    (['merged.steps'], 'NAME=log:LOW:HIGH'),
    (['merged.steps='], 'different values'),
    (['merged.steps=1,,2'], 'different values'),
    (['merged.steps=1,1'], 'different values'),
    (['merged.steps=int:3:3'], 'LOW below HIGH'),
    (['merged.steps=int:4:3'], 'LOW below HIGH'),
    (['merged.steps=int:1.5:3'], 'two numbers, int:LOW:HIGH'),
    (['merged.learning_rate=log:1'], 'two numbers, log:LOW:HIGH'),
    (['merged.learning_rate=log:0:1'], 'above 0 with log'),
    (['merged.learning_rate=log:-1:1'], 'above 0 with log'),
    (['merged.learning_rate=linear:0:inf'], 'finite'),
    (['merged.learning_rate=linear:nan:1'], 'finite'),
    (['merged.match_norm=yes,no'], 'true, false, or both'),
    (['merged.distillation_weight[larg]=0,1'], "use 'large'"),
    (['merged.steps[large]=1,2'], 'a value for each pool'),
    (['unlabelled.weights[large]=1,2'], 'a value for each pool'),
    (['merged.steps=1,2', 'merged.steps=3,4'], 'together with another'),
    (
      ['privacy.clip=1,2', 'privacy.clip[large]=1,2'],
      'together with another',
    ),
    (['program.evaluate_on=test,validation'], 'leave it out'),
    (['program.evaluation_clients=5,10'], 'measured alike'),
    (['program.evaluation_models=5,10'], 'measured alike'),
    (['program.rounds_per_evaluation=int:1:9'], 'measured alike'),
    (['program.rounds=10,20'], 'give --program.rounds one value'),
    (['seed=int:1:9'], 'give --seed one value'),
    (['task.validation_clients=5,10'], 'measured alike'),
    (['text.vocab_size=100,200'], 'measured alike'),
  ],
)
def test_wrong_search_is_one_sentence(texts, message):
  with pytest.raises(errors.ConfigError, match=message) as caught:
    _parse(*texts)
  assert caught.value.exit_code == 2
  assert '\n' not in str(caught.value)


def test_every_number_is_one_that_the_range_holds():
  space = _parse('merged.learning_rate=log:3e-7:0.2', 'merged.steps=int:1:3')
  for u in np.linspace(0, 1, 101):
    assert 3e-7 <= float(space[0].at(u)) <= 0.2
    assert int(space[1].at(u)) in (1, 2, 3)
