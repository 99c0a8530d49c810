import csv
import io
import math

import pytest

from tff_codist import errors
from tff_codist.reports import runs
from tff_codist.reports import tables


@pytest.fixture
def load(write_run):
  """Returns a function that writes a run folder and loads it."""
  return lambda *args, **kwargs: runs.load_run(write_run(*args, **kwargs))


@pytest.fixture
def three_seeds(load):
  """Accuracies of small: fed_avg 40, 42, 44 %; merged_codist 43, 44, 48 %."""
  final = {'fed_avg': (0.40, 0.42, 0.44), 'merged_codist': (0.43, 0.44, 0.48)}
  return [
    load(
      f'{algorithm}_{seed}',
      algorithm=algorithm,
      seed=seed,
      # The mean of rounds 10 and 20 is the intended value.
      accuracies={'small': [0.1, value - 0.01, value + 0.01]},
    )
    for algorithm, values in final.items()
    for seed, value in enumerate(values, start=1)
  ]


def test_last_evaluations_are_five_without_the_untrained_model(load):
  values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
  run = load(accuracies={'small': values}, rounds=range(0, 70, 10))
  assert tables.last_evaluations(run, 'small').tolist() == values[2:]
  assert tables.last_evaluations(run, 'small', last=1).tolist() == [0.7]
  assert tables.last_evaluations(run, 'small', last=99).tolist() == values[1:]


def test_last_evaluations_take_the_untrained_model_if_there_is_no_other(load):
  run = load(accuracies={'small': [0.1]}, rounds=[0])
  assert tables.last_evaluations(run, 'small').tolist() == [0.1]


@pytest.mark.parametrize('last', [0, -1])
def test_last_evaluations_must_be_at_least_one(load, last):
  with pytest.raises(errors.ConfigError, match='at least one evaluation'):
    tables.last_evaluations(load(), 'small', last=last)


def test_summary_table_of_two_pools_is_as_by_hand(load):
  run = load(
    algorithm='merged_codist',
    # Means of rounds 10 and 20: 0.625 and 0.45. The highest of small is not
    # its last.
    accuracies={'small': [0.1, 0.65, 0.6], 'large': [0.2, 0.4, 0.5]},
    metrics={
      'eval/small/loss': {0: 2.0, 20: 1.25},
      'train/small/loss': {1: 1.5, 2: 1.125},
      # 60 + 60 + 30 + 30 examples in 1.5 + 2.5 s; round 0 took 6 s.
      'train/small/examples': {1: 60, 2: 60},
      'train/large/examples': {1: 30, 2: 30},
      'train/small/clients_dropped': {1: 0, 2: 3},
      'time/round_seconds': {0: 6.0, 1: 1.5, 2: 2.5},
      'time/clients_seconds': {1: 1.0, 2: 2.0},
      'time/evaluation_seconds': {0: 6.0},
      # 2 * 6 MB up; 0.25 MB down.
      'cost/small/uplink_bytes': {1: 6_000_000, 2: 6_000_000},
      'cost/small/downlink_bytes': {1: 250_000},
      'exchange/agreement_top1': {0: 0.1, 20: 0.75},
      'exchange/agreement_kl': {1: 2.0, 20: 0.5},
    },
    clients={'small': {'a': [1, 2], 'b': [0, 0]}},
  )
  assert tables.summary_table(run).splitlines() == [
    'merged_codist on digits, seed 1: round 20, finished',
    '',
    '                                small        large',
    'model                       cnn_small    cnn_large',
    'parameters                  1,234,567    1,234,567',
    'clients                             2            1',
    'cohort                              1            1',
    'accuracy, mean of last 2       62.50%       45.00%',
    'accuracy, final                60.00%       50.00%',
    '  highest seen* (round)   65.00% (10)  50.00% (20)',
    'evaluation loss, final           1.25            -',
    'train loss, final               1.125            -',
    'clients dropped, total              3            -',
    'uplink, MB                       12.0            -',
    'downlink, MB                    0.250            -',
    '',
    '* picked on the evaluation data: too high, not a result to report.',
    '',
    'top-1 agreement     10.0% (round 0) -> 75.0% (round 20)',
    'agreement KL, nats  2 (round 1) -> 0.5 (round 20)',
    'seconds             10.0: clients 3.0, evaluation 6.0',
    'examples/s          45',
  ]


def test_summary_table_of_a_metric_where_lower_is_better(load):
  run = load(
    accuracies={'small': [0.1] * 3, 'large': [0.1] * 3},
    metrics={'eval/large/perplexity': {0: 9000.0, 10: 80.0, 20: 100.0}},
  )
  lines = tables.summary_table(run, metric='perplexity').splitlines()
  assert 'perplexity, mean of last 2          -         90' in lines
  assert 'perplexity, final                   -        100' in lines
  assert '  lowest seen* (round)              -    80 (10)' in lines
  assert lines[-1].startswith('* picked on the evaluation data: too low')


def test_summary_table_says_how_the_models_teach(load):
  run = load(
    accuracies={'small': [0.1] * 3, 'large': [0.1] * 3},
    metrics={
      'exchange/small/validation_accuracy': {0: 0.25, 10: 0.5},
      'exchange/small/entropy': {0: 2.0, 10: 1.5},
      'exchange/large/entropy': {0: 2.0, 10: 1.25},
      'exchange/large/teachers_refused': {1: 1, 2: 0, 3: 1},
    },
  )
  lines = tables.summary_table(run).splitlines()
  assert 'accuracy on validation, final         0.5           -' in lines
  assert 'entropy on U (nats), final            1.5        1.25' in lines
  assert 'teachers refused, total                 -           2' in lines
  assert not any(line.startswith('calibration') for line in lines)


def test_summary_table_with_one_evaluation_has_no_throughput(load):
  table = tables.summary_table(
    load(accuracies={'small': [0.1]}, rounds=[0], done=False)
  )
  assert 'round 0, not finished' in table
  assert 'mean of last 1      10.00%' in table
  assert 'examples/s' not in table
  assert 'agreement' not in table


def test_summary_table_of_a_diverged_run_has_no_highest_accuracy(load):
  table = tables.summary_table(load(accuracies={'small': ['nan'] * 3}))
  assert 'nan%' in table


def test_summary_table_says_why_a_run_failed(write_run):
  folder = write_run(done=False)
  (folder / 'FAILED.txt').write_text('NonFiniteModelError: Found NaN\n')
  table = tables.summary_table(runs.load_run(folder))
  assert 'failed: NonFiniteModelError: Found NaN' in table


def test_summary_table_of_many_pools_keeps_to_80_columns(load):
  names = [f'pool_of_capacity_{number}' for number in range(7)]
  table = tables.summary_table(
    load(accuracies={name: [0.1, 0.2, 0.3] for name in names})
  )
  assert max(map(len, table.splitlines())) <= 80
  assert all(name in table for name in names)
  assert table.count('parameters') > 1


def test_compare_pairs_by_seed_when_the_seeds_are_the_same(three_seeds):
  # Differences 3, 2 and 4 points: mean 3, deviation 1, error 1 / sqrt(3).
  # Deviations over seeds: fed_avg 2; merged_codist 45 -2, -1, +3: sqrt(7).
  base, merged = tables.compare(three_seeds)
  assert (base.pool, base.model) == ('small', 'cnn_small')
  assert base.algorithm == 'fed_avg'
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
  base, merged = tables.compare(
    [r for i, r in enumerate(three_seeds) if i != 4]
  )
  assert merged.seeds == (1, 3)
  assert merged.difference == pytest.approx(0.035)
  assert merged.standard_error == pytest.approx(0.01 * math.sqrt(4 / 3 + 6.25))
  assert merged.is_paired is False
  assert base.is_paired is None


def test_compare_with_one_seed_has_no_spread_and_no_error(three_seeds):
  base, merged = tables.compare([three_seeds[0], three_seeds[3]])
  assert base.spread is None
  assert merged.difference == pytest.approx(0.03)
  assert merged.standard_error is None
  assert merged.is_paired


def test_compare_takes_the_last_evaluation_alone(three_seeds):
  base, _ = tables.compare(three_seeds, last=1)
  assert base.mean == pytest.approx(0.43)


def test_compare_only_compares_the_same_model(load):
  rows = tables.compare(
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
  found = [(row.pool, row.algorithm, row.difference) for row in rows]
  assert found == [
    ('small', 'fed_avg', None),
    ('small', 'periodic_codist', pytest.approx(0.1)),
    ('large', 'merged_codist', None),
    ('large', 'periodic_codist', None),
  ]


def test_comparison_table_as_text_is_as_by_hand(three_seeds):
  assert tables.comparison_table(three_seeds, last=2).splitlines() == [
    'Accuracy on digits in percent, mean over the last 2 evaluations of each'
    ' run.',
    'Spread: sample standard deviation over the n seeds. Difference: to'
    ' fed_avg, in',
    'percentage points, with its standard error.',
    '',
    'algorithm          n  accuracy  spread  difference  error',
    '---------------------------------------------------------',
    'cnn_small (small)',
    '  fed_avg          3     42.00    2.00           -      -',
    '  merged_codist    3     45.00    2.65       +3.00   0.58  paired',
  ]


def test_comparison_table_as_markdown_is_as_by_hand(three_seeds):
  lines = tables.comparison_table(
    three_seeds, last=1, style='markdown'
  ).splitlines()
  assert lines[0].startswith(
    'Accuracy on digits in percent, at the last evaluation of each run. '
  )
  assert lines[2:] == [
    '| model (pool) | algorithm | n | accuracy | spread | difference | error |'
    ' |',
    '|---|---|---:|---:|---:|---:|---:|---|',
    '| cnn_small (small) | fed_avg | 3 | 43.00 | 2.00 | - | - |  |',
    '| cnn_small (small) | merged_codist | 3 | 46.00 | 2.65 | +3.00 | 0.58 |'
    ' paired |',
  ]


def test_comparison_of_another_metric_is_in_its_own_unit(load):
  runs_of_two = [
    load(
      algorithm,
      algorithm=algorithm,
      accuracies={'small': [0.1] * 3, 'large': [0.1] * 3},
      metrics={'eval/small/questions/perplexity': {10: value}},
    )
    for algorithm, value in (('fed_avg', 123.456), ('merged_codist', 120.0))
  ]
  metric = 'questions/perplexity'
  lines = tables.comparison_table(
    runs_of_two, last=1, metric=metric
  ).splitlines()
  assert lines[0].startswith('questions/perplexity on digits, at the last ')
  assert lines[4:] == [
    'algorithm          n  perplexity  spread  difference  error',
    '-----------------------------------------------------------',
    'cnn_small (small)',
    '  fed_avg          1       123.5       -           -      -',
    '  merged_codist    1         120       -      -3.456      -  paired',
  ]
  text = tables.comparison_csv(runs_of_two, last=1, metric=metric)
  rows = list(csv.DictReader(io.StringIO(text)))
  found = [(row['metric'], row['unit'], row['mean']) for row in rows]
  assert found == [(metric, '', '123.456'), (metric, '', '120')]
  with pytest.raises(errors.ConfigError, match='no metric'):
    tables.comparison_table(runs_of_two, metric='answers/perplexity')


def test_comparison_table_notes_what_weakens_it(load):
  table = tables.comparison_table(
    [
      load('a', config={'program': {'rounds': 20}, 'merged': {'steps': 1}}),
      load(
        'b',
        algorithm='merged_codist',
        seed=2,
        accuracies={'small': [0.1, 0.2]},
        rounds=(0, 5),
        config={'program': {'rounds': 5}, 'merged': {'steps': 1}},
        done=False,
      ),
      load(
        'c',
        algorithm='merged_codist',
        seed=3,
        accuracies={'small': [0.1, 0.2]},
        rounds=(0, 5),
        config={'program': {'rounds': 5}, 'merged': {'steps': 9}},
      ),
    ]
  )
  table = table.replace('\n', ' ')
  assert 'Unpaired: the seeds are not those of fed_avg' in table
  assert 'Not finished: merged_codist seed 2.' in table
  assert 'Fewer than 5 evaluations: fed_avg seed 1,' in table
  assert (
    'Runs end in different rounds: 5 (merged_codist seed 2, merged_codist seed'
    ' 3), 20 (fed_avg seed 1).'
  ) in table
  assert 'Runs of one algorithm differ in merged.steps.' in table
  assert 'The algorithms differ in program.rounds.' in table


def test_comparison_table_without_fed_avg_says_so(load):
  table = tables.comparison_table([load(algorithm='merged_codist')])
  assert 'No run of fed_avg: no differences.' in table


def test_comparison_table_keeps_to_80_columns(load):
  long = 'an_algorithm_with_a_name_that_somebody_made_far_too_long'
  table = tables.comparison_table(
    [
      load(
        'a', algorithm=f'{long}_{"x" * 50}', accuracies={'p' * 90: [0.1] * 3}
      ),
      load('b', accuracies={'p' * 90: [0.1] * 3}, done=False),
    ]
  )
  assert max(map(len, table.splitlines())) <= 80


def test_comparison_table_refuses_unknown_styles_and_different_tasks(load):
  run, other = load('a'), load('b', task='cifar100')
  with pytest.raises(errors.UnknownNameError, match="use 'markdown'"):
    tables.comparison_table([run], style='markdwon')
  with pytest.raises(errors.RunFolderError, match='different tasks'):
    tables.comparison_table([run, other])


def test_comparison_csv_has_the_numbers_in_percent(three_seeds):
  rows = list(csv.DictReader(io.StringIO(tables.comparison_csv(three_seeds))))
  assert rows[0] == {
    'task': 'digits',
    'pool': 'small',
    'model': 'cnn_small',
    'algorithm': 'fed_avg',
    'n': '3',
    'seeds': '1 2 3',
    'metric': 'accuracy',
    'unit': 'percent',
    'last_evaluations': '5',
    'mean': '42',
    'spread': '2',
    'difference': '',
    'standard_error': '',
    'is_paired': '',
  }
  assert rows[1]['difference'] == '3'
  assert rows[1]['standard_error'] == '0.577350269'
  assert rows[1]['is_paired'] == 'true'
