import math

import numpy as np
import pytest

from tff_codist.reports import heterogeneity
from tff_codist.reports import runs


def test_distance_is_as_by_hand():
  # The pool is (1/2, 1/2). Clients (1, 0) and (0, 1) are 1/2 from it, the
  # client (1/2, 1/2) is at it, and the one without examples does not count.
  counts = np.array([[2, 0], [0, 2], [3, 3], [0, 0]])
  assert heterogeneity.distance(counts) == pytest.approx(1 / 3)
  assert heterogeneity.distance(counts[2:3]) == 0


def test_distance_weights_the_pool_by_examples_and_not_the_clients():
  # The pool is (3/4, 1/4): distances 1/4 and 3/4.
  counts = np.array([[3, 0], [0, 1]])
  assert heterogeneity.distance(counts) == pytest.approx(1 / 2)


def test_effective_number_is_as_by_hand():
  # Four labels evenly: 4. One label: 1. (3/4, 1/4): 4 / 3^(3/4).
  counts = np.array([[1, 1, 1, 1], [9, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]])
  expected = (4 + 1 + 4 / 3**0.75) / 3
  assert heterogeneity.effective_number(counts) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ([5, 5, 5], 0),
    # Differences of ordered pairs: 4 * 1 + 2 * 2 = 8; 2 n^2 mean = 36.
    ([3, 1, 2], 8 / 36),
    # One has all: 1 - 1/n.
    ([0, 0, 0, 7], 3 / 4),
    ([0, 0], 0),
    ([4], 0),
  ],
)
def test_gini_is_as_by_hand(values, expected):
  assert heterogeneity.gini(np.array(values)) == pytest.approx(expected)


def test_measure_prefers_labels_to_domains_and_does_without_both():
  both = {'examples': 2, 'labels': [1, 1, 0], 'domains': [2, 0]}
  figures = heterogeneity.measure({'clients': {'a': both}})
  assert figures.categories == 'labels'
  assert figures.effective_number == pytest.approx(2)
  domains = {'examples': 4, 'domains': [4, 0]}
  none = {'examples': 0, 'domains': [0, 0]}
  figures = heterogeneity.measure({'clients': {'a': domains, 'b': none}})
  assert figures == heterogeneity.Heterogeneity(
    num_counted=2,
    num_empty=1,
    examples_mean=2,
    examples_median=2,
    examples_min=0,
    examples_max=4,
    gini=0.5,
    categories='domains',
    distance=0,
    effective_number=1,
  )
  for counts in (none, {'examples': 3}):
    figures = heterogeneity.measure({'clients': {'a': counts}})
    assert (figures.categories, figures.distance) == (None, None)
  assert math.isclose(figures.examples_mean, 3)


def _table(write_run, **kwargs):
  run = runs.load_run(write_run(**kwargs))
  return heterogeneity.membership_table(run.pools, task='digits', seed=1)


def test_membership_table_is_as_by_hand(write_run):
  table = _table(
    write_run,
    accuracies={'small': [0.5], 'large': [0.5]},
    rounds=[0],
    # All of small: (6, 2, 0). a is 1/4 from it, b 3/4.
    clients={
      'small': {'a': [6, 0, 0], 'b': [0, 2, 0]},
      'large': {'a': [6, 0, 0]},
    },
    num_classes=3,
  )
  assert table.splitlines() == [
    'digits, seed 1: 2 clients in overlapping pools',
    '',
    '                            small      large',
    'model                   cnn_small  cnn_large',
    'parameters              1,234,567  1,234,567',
    'clients                         2          1',
    '  share of all             100.0%      50.0%',
    'cohort                          1          1',
    'domains                       all        all',
    'clients counted                 2          1',
    '  without examples              0          0',
    'examples, mean                4.0        6.0',
    '  median                      4.0        6.0',
    '  lowest to highest        2 to 6     6 to 6',
    '  Gini coefficient          0.250      0.000',
    'categories                 labels     labels',
    "  distance from pool's      0.500      0.000",
    '  effective number           1.00       1.00',
    '',
    'Clients in common: small and large 1.',
    'A client of several pools sends updates of several models: its privacy'
    ' losses',
    '  add up.',
    'Distillation data: 1,000 examples (800 from clients, 200 from noise).',
    'Clients set aside from the pools for distillation: 3.',
    '',
    'share of labels  small   large',
    '  0              75.0%  100.0%',
    '  1              25.0%    0.0%',
    '  2               0.0%    0.0%',
  ]


def test_membership_table_of_disjoint_pools_and_domains(write_run):
  table = _table(
    write_run,
    accuracies={'small': [0.5], 'large': [0.5]},
    rounds=[0],
    clients={
      'small': {'a': {'examples': 3, 'domains': [3, 0]}},
      'large': {'b': {'examples': 4, 'domains': [1, 3]}},
    },
    num_classes=10_000,
    domains=('answers', 'questions'),
  )
  assert 'disjoint pools' in table
  assert 'in common' not in table
  assert 'privacy' not in table
  assert table.endswith(
    'share of domains   small  large\n'
    '  answers         100.0%  25.0%\n'
    '  questions         0.0%  75.0%\n'
  )


def test_membership_table_of_many_labels_lists_the_commonest(write_run):
  counts = list(range(100))
  table = _table(write_run, clients={'small': {'a': counts}}, num_classes=100)
  # 0 + ... + 99 = 4950; the ten commonest are 90 to 99, 945 of them.
  assert '  99              2.0%\n' in table
  assert table.endswith('  90 others      80.9%\n')
  assert '  89 ' not in table


def test_membership_table_without_counts_of_labels_keeps_to_80_columns(
  write_run,
):
  names = [f'pool_of_capacity_{number}' for number in range(5)]
  table = _table(
    write_run,
    accuracies={name: [0.5] for name in names},
    rounds=[0],
    clients={name: {'a': {'examples': 2}} for name in names},
    num_classes=10_000,
  )
  assert max(map(len, table.splitlines())) <= 80
  assert 'share of labels' not in table
  assert ' '.join(table.split()).count(' and pool_of_') == 10
