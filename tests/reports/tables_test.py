import csv
import io

import pytest

from tff_codist import errors
from tff_codist.reports import runs
from tff_codist.reports import tables


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


def test_summary_table_says_what_privacy_cost(load, load_private):
  run = load_private(
    noise=(1.0, 2.0), epsilons=(2.06612, 4.5, 4.90096), privacy={'delta': 1e-3}
  )
  lines = tables.summary_table(run).splitlines()
  assert 'noise multiplier z                   1            2' in lines
  assert 'epsilon of the pool alone        2.066          4.5' in lines
  assert lines[-1] == 'worst-off clients  epsilon 4.901 at delta 0.001'
  assert 'epsilon' not in tables.summary_table(load('without'))


def test_summary_table_of_a_pool_without_mechanism_and_of_void_noise(
  load_private,
):
  infinite = float('inf')
  run = load_private(
    epsilons=(2.0, infinite, infinite),
    privacy={'mechanism': ['gaussian', 'none'], 'reproducible_noise': True},
  )
  text = tables.summary_table(run)
  lines = text.splitlines()
  assert 'noise multiplier z                   1         none' in lines
  assert 'epsilon of the pool alone            2          inf' in lines
  assert 'worst-off clients  epsilon inf at delta 1e-05. No guarantee' in text


def test_summary_table_before_the_first_epsilon(load_private):
  run = load_private(
    accuracies={'small': [0.1], 'large': [0.1]}, rounds=[0], metrics={}
  )
  table = tables.summary_table(run)
  assert 'epsilon of the pool alone           -           -' in table
  assert 'worst-off' not in table


@pytest.fixture
def private_and_not(load, load_private):
  """Two seeds of fed_avg without and with privacy, one of merged_codist."""
  return [
    *(
      load(f'none_{seed}', seed=seed, accuracies=accuracies)
      for seed, accuracies in (
        (1, {'small': [0, 0.9, 0.9], 'large': [0, 0.8, 0.8]}),
        (2, {'small': [0, 0.92, 0.92], 'large': [0, 0.84, 0.84]}),
      )
    ),
    # Of small 70 and 72 %: 71 and the deviation sqrt(2).
    load_private(
      'private_1',
      seed=1,
      epsilons=(2.066, 4.481, 4.901),
      accuracies={'small': [0, 0.7, 0.7], 'large': [0, 0.6, 0.6]},
    ),
    load_private(
      'private_2',
      seed=2,
      epsilons=(2.0, 4.4, 4.8),
      accuracies={'small': [0, 0.72, 0.72], 'large': [0, 0.6, 0.6]},
    ),
    load_private(
      'merged',
      algorithm='merged_codist',
      noise=(0.5, 1.0),
      epsilons=(6.25, 4.5, 17.75),
      accuracies={'small': [0, 0.74, 0.76], 'large': [0, 0.66, 0.68]},
    ),
  ]


def test_privacy_table_is_as_by_hand(private_and_not):
  assert tables.privacy_table(private_and_not, last=2).splitlines() == [
    'Privacy against accuracy. z: noise multiplier. Epsilon, at delta 1e-05:'
    ' what',
    "each pool's releases cost alone, and what the worst-off clients lose to"
    ' all of',
    'their pools; at the end of each run, the highest over the seeds. Accuracy'
    ' in',
    'percent: mean over the last 2 evaluations of each run; mean ± sample'
    ' standard',
    'deviation over the n seeds.',
    '',
    '                         epsilon  epsilon  epsilon      accuracy'
    '      accuracy',
    'algorithm          z  n    small    large    worst         small'
    '         large',
    'fed_avg         none  2        -        -        -  91.00 ± 1.41'
    '  82.00 ± 2.83',
    'fed_avg            1  2    2.066    4.481    4.901  71.00 ± 1.41'
    '  60.00 ± 0.00',
    'merged_codist  0.5/1  1     6.25      4.5    17.75         75.00'
    '         67.00',
  ]


def test_comparison_table_of_private_runs_is_as_by_hand(private_and_not):
  lines = tables.comparison_table(private_and_not, last=2).splitlines()
  assert 'to fed_avg with the same privacy, in' in ' '.join(lines)
  start = lines.index('cnn_small (small)')
  assert lines[start + 1 : start + 4] == [
    '  fed_avg                  2     91.00    1.41           -      -',
    '  fed_avg z=1              2     71.00    1.41           -      -',
    '  merged_codist z=0.5/1    1     75.00       -           -      -',
  ]


def test_comparison_csv_of_private_runs_has_privacy_and_epsilon(
  private_and_not,
):
  text = tables.comparison_csv(private_and_not)
  first, second, third = list(csv.DictReader(io.StringIO(text)))[:3]
  assert first['algorithm'] == second['algorithm'] == 'fed_avg'
  assert first['privacy.mechanism'] == first['epsilon'] == ''
  assert second['privacy.mechanism'] == 'gaussian'
  assert second['privacy.delta'] == '1e-05'
  assert second['epsilon'] == '2.066'
  assert second['worst_client_epsilon'] == '4.901'
  assert third['privacy.noise_multiplier'] == '0.5/1'


def test_tables_without_privacy_do_not_mention_it(three_seeds):
  assert tables.privacy_table(three_seeds) == ''
  assert 'privacy' not in tables.comparison_table(three_seeds)
  assert 'epsilon' not in tables.comparison_csv(three_seeds)


def test_notes_do_not_repeat_the_privacy_that_names_the_rows(load_private):
  runs_of_two = [
    load_private('a', noise=(1.0,), seed=1),
    load_private('b', noise=(1.0, 1.0), seed=2),
    load_private('c', noise=(2.0,), seed=1, done=False),
  ]
  table = tables.comparison_table(runs_of_two, last=2)
  assert 'differ in' not in table
  assert 'Not finished: fed_avg z=2 seed 1.' in table


def test_privacy_table_says_what_is_infinite_and_what_is_void(
  load, load_private
):
  infinite = float('inf')
  unprotected = {'mechanism': ['gaussian', 'none']}
  several = [
    load('a'),
    load_private('b', privacy=unprotected, epsilons=(2.0, infinite, infinite)),
    load_private('c', privacy={'reproducible_noise': True, 'delta': 1e-3}),
  ]
  table = tables.privacy_table(several)
  assert max(map(len, table.splitlines())) <= 80
  words = ' '.join(table.split())
  assert 'inf: of clients in a pool without a mechanism.' in words
  assert 'at delta 1e-05 or 0.001:' in words
  assert 'No guarantee, as the noise was drawn from the seed: fed_avg' in words
  # The numbers stand beside the last line of a name that has several.
  lines = table.splitlines()
  row = lines.index('fed_avg gaussian/none')
  assert lines[row + 1 : row + 4] == [
    '  clip=0.1/none',
    '  delta=1e-05',
    '  reproducible_noise=none  1/none  1        2      inf      inf     65.00',
  ]


def test_privacy_table_of_many_pools_keeps_to_80_columns(load_private):
  names = [f'pool_of_capacity_{number}' for number in range(4)]
  runs_of_many = [
    load_private(
      f'{z}', noise=(z,), accuracies={name: [0.1, 0.2, 0.3] for name in names}
    )
    for z in (0.5, 1.0)
  ]
  lines = tables.privacy_table(runs_of_many).splitlines()
  assert max(map(len, lines)) <= 80
  # Each block of columns says which rows these are.
  blocks = sum(line.startswith('algorithm') for line in lines)
  assert blocks > 1
  assert sum(line.startswith('fed_avg    0.5') for line in lines) == blocks
