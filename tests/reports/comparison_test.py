import math

import pytest

from tff_codist import errors
from tff_codist.reports import comparison


def test_last_evaluations_are_five_without_the_untrained_model(load):
  values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
  run = load(accuracies={'small': values}, rounds=range(0, 70, 10))
  assert comparison.last_evaluations(run, 'small').tolist() == values[2:]
  assert comparison.last_evaluations(run, 'small', last=1).tolist() == [0.7]
  assert (
    comparison.last_evaluations(run, 'small', last=99).tolist() == values[1:]
  )


def test_last_evaluations_take_the_untrained_model_if_there_is_no_other(load):
  run = load(accuracies={'small': [0.1]}, rounds=[0])
  assert comparison.last_evaluations(run, 'small').tolist() == [0.1]


@pytest.mark.parametrize('last', [0, -1])
def test_last_evaluations_must_be_at_least_one(load, last):
  with pytest.raises(errors.ConfigError, match=f'--last {last}'):
    comparison.last_evaluations(load(), 'small', last=last)


def test_compare_pairs_by_seed_when_the_seeds_are_the_same(three_seeds):
  # Differences 3, 2 and 4 points: mean 3, deviation 1, error 1 / sqrt(3).
  # Deviations over seeds: fed_avg 2; merged_codist 45 -2, -1, +3: sqrt(7).
  base, merged = comparison.compare(three_seeds)
  assert (base.pool, base.model) == ('small', 'cnn_small')
  assert base.setting.algorithm == 'fed_avg'
  assert base.seeds == merged.seeds == (1, 2, 3)
  assert base.mean == pytest.approx(0.42)
  assert base.spread == pytest.approx(0.02)
  assert (base.difference, base.standard_error, base.is_paired) == (None,) * 3
  assert merged.mean == pytest.approx(0.45)
  assert merged.spread == pytest.approx(0.01 * math.sqrt(7))
  assert merged.difference == pytest.approx(0.03)
  assert merged.standard_error == pytest.approx(0.01 / math.sqrt(3))
  assert merged.is_paired


def test_compare_does_not_pair_when_a_seed_is_missing(three_seeds):
  # Without merged_codist's seed 2: 43 and 48, mean 45.5, variance 12.5.
  # fed_avg: mean 42, variance 4. Error: sqrt(4 / 3 + 12.5 / 2).
  base, merged = comparison.compare(
    [r for i, r in enumerate(three_seeds) if i != 4]
  )
  assert merged.seeds == (1, 3)
  assert merged.difference == pytest.approx(0.035)
  assert merged.standard_error == pytest.approx(0.01 * math.sqrt(4 / 3 + 6.25))
  assert merged.is_paired is False
  assert base.is_paired is None


def test_equal_differences_have_no_test(load):
  # In floating point, the differences are 0.03 up to 1e-16.
  runs = [
    load(
      f'{algorithm}_{seed}',
      algorithm=algorithm,
      seed=seed,
      accuracies={'small': [0.1, value + gain, value + gain]},
    )
    for algorithm, gain in {'fed_avg': 0.0, 'merged_codist': 0.03}.items()
    for seed, value in enumerate((0.40, 0.42, 0.46))
  ]
  _, merged = comparison.compare(runs)
  assert merged.difference == pytest.approx(0.03)
  assert (merged.standard_error, merged.p_value) == (0.0, None)


def test_compare_with_one_seed_has_no_spread_and_no_error(three_seeds):
  base, merged = comparison.compare([three_seeds[0], three_seeds[3]])
  assert base.spread is None
  assert merged.difference == pytest.approx(0.03)
  assert merged.standard_error is None
  assert merged.is_paired


def test_compare_takes_the_last_evaluation_alone(three_seeds):
  base, _ = comparison.compare(three_seeds, last=1)
  assert base.mean == pytest.approx(0.43)


def test_compare_only_compares_the_same_model(load):
  rows = comparison.compare(
    [
      load('a', algorithm='merged_codist', accuracies={'large': [0, 0.9, 0.9]}),
      load('b', accuracies={'small': [0, 0.8, 0.8]}),
      load(
        'c',
        algorithm='periodic_codist',
        accuracies={'small': [0, 0.9, 0.9], 'large': [0, 0.7, 0.7]},
      ),
    ]
  )
  found = [(row.pool, row.setting.algorithm, row.difference) for row in rows]
  assert found == [
    ('small', 'fed_avg', None),
    ('small', 'periodic_codist', pytest.approx(0.1)),
    ('large', 'merged_codist', None),
    ('large', 'periodic_codist', None),
  ]


def test_compare_takes_the_baseline_with_the_same_privacy(load, load_private):
  # Means of rounds 10 and 20 of small: 80 % without privacy; with z = 1, 65 %
  # and 70 %; with z = 2 there is only merged_codist.
  rows = comparison.compare(
    [
      load('a', accuracies={'small': [0, 0.8, 0.8]}),
      load_private('b', accuracies={'small': [0, 0.6, 0.7]}),
      load_private(
        'c', algorithm='merged_codist', accuracies={'small': [0, 0.7, 0.7]}
      ),
      load_private(
        'd',
        algorithm='merged_codist',
        noise=(2.0,),
        accuracies={'small': [0, 0.6, 0.6]},
      ),
    ]
  )
  found = [(row.setting.label, row.difference) for row in rows]
  assert found == [
    ('fed_avg', None),
    ('fed_avg z=1', None),
    ('merged_codist z=1', pytest.approx(0.05)),
    ('merged_codist z=2', None),
  ]


def test_compare_takes_the_highest_final_epsilon_of_the_seeds(
  load, load_private
):
  rows = comparison.compare(
    [
      load('a'),
      load_private('b', epsilons=(2.0, 4.0, 5.0), seed=1),
      load_private('c', epsilons=(2.5, 3.5, 4.5), seed=2),
      # Before its first evaluation.
      load_private('d', seed=3, metrics={}),
      load_private('e', noise=(2.0,), metrics={}),
    ]
  )
  found = [
    (row.pool, row.setting.label, row.epsilon, row.worst_epsilon)
    for row in rows
  ]
  assert found == [
    ('small', 'fed_avg', None, None),
    ('small', 'fed_avg z=1', 2.5, 5.0),
    ('small', 'fed_avg z=2', None, None),
    ('large', 'fed_avg z=1', 4.0, 5.0),
    ('large', 'fed_avg z=2', None, None),
  ]
