import pytest

from tff_codist import errors
from tff_codist.reports import groups

# Fields that no mechanism reads.
_OFF = {
  'mechanism': ['none'],
  'noise_multiplier': [1.0],
  'clip': [0.1],
  'delta': 1e-5,
}


def _labels(found):
  return [setting.label for setting in found]


def test_group_runs_puts_fed_avg_first_and_sorts_seeds(load):
  found = groups.group_runs(
    [
      load('a', algorithm='merged_codist', seed=2),
      load('b', algorithm='merged_codist', seed=1),
      load('c', algorithm='fed_avg', seed=1),
    ]
  )
  assert _labels(found) == ['fed_avg', 'merged_codist']
  seeds = [[run.seed for run in group] for group in found.values()]
  assert seeds == [[1], [1, 2]]


def test_group_runs_keeps_privacy_apart_by_increasing_noise(load, load_private):
  found = groups.group_runs(
    [
      load_private('a', noise=(2.0,), seed=1),
      load_private('b', noise=(0.5, 1.0), seed=1),
      # The same noise, written once for both pools or twice.
      load_private('c', noise=(2.0, 2.0), seed=2),
      load_private('d', algorithm='merged_codist'),
      load('e'),
      # What is configured but not used by a mechanism is no privacy.
      load('f', seed=2, config={'privacy': _OFF}),
    ]
  )
  assert _labels(found) == [
    'fed_avg',
    'fed_avg z=0.5/1',
    'fed_avg z=2',
    'merged_codist z=1',
  ]
  assert [setting.family for setting in found] == [
    'fed_avg',
    'fed_avg',
    'fed_avg',
    'merged_codist',
  ]
  seeds = [[run.seed for run in group] for group in found.values()]
  assert seeds == [[1, 2], [1], [1, 2], [1]]


def test_labels_name_what_private_runs_differ_in(load, load_private):
  tree = {'mechanism': ['tree', 'none'], 'clip': [0.1], 'max_epsilon': 8.0}
  found = groups.group_runs(
    [load('a'), load_private('b'), load_private('c', privacy=tree)]
  )
  # A pool without mechanism has no noise and no clip either.
  assert _labels(found) == [
    'fed_avg',
    'fed_avg tree/none z=1/none clip=0.1/none max_epsilon=8',
    'fed_avg gaussian z=1 clip=0.1 max_epsilon=none',
  ]
  # Curves of privacy against utility go along the noise and the budget.
  assert [setting.family for setting in found] == [
    'fed_avg',
    'fed_avg tree/none clip=0.1/none',
    'fed_avg gaussian clip=0.1',
  ]


def test_group_runs_refuses_what_cannot_be_compared(load, load_private):
  run, again = load('a'), load('b')
  other = load('c', task='cifar100', seed=2)
  wider = load('d', num_classes=3, seed=2)
  private = load_private('e', noise=(1.0,)), load_private('f', noise=(1.0, 1.0))
  with pytest.raises(errors.ConfigError, match='no runs'):
    groups.group_runs([])
  with pytest.raises(errors.RunFolderError, match='two runs of fed_avg with'):
    groups.group_runs([run, again])
  with pytest.raises(errors.RunFolderError, match='two runs of fed_avg z=1'):
    groups.group_runs(private)
  with pytest.raises(errors.RunFolderError, match='different tasks'):
    groups.group_runs([run, other])
  with pytest.raises(errors.RunFolderError, match='numbers of classes'):
    groups.group_runs([run, wider])
