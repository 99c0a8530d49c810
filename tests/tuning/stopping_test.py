"""The median rule, on numbers that can be checked by hand."""

import numpy as np
import pytest

from tff_codist.tuning import stopping


def _series(*values, rounds=None):
  rounds = range(1, len(values) + 1) if rounds is None else rounds
  return np.array(list(rounds)), np.array(values, float)


# Running means: 1, 2, 3 and 5, 4, 3 and 2, 2, 2. Their medians: 2, 2, 3.
_OTHERS = [_series(1, 3, 5), _series(5, 3, 1), _series(2, 2, 2)]


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ((1.9,), 1),
    ((2,), None),  # Strictly worse only.
    ((2, 0, 0), 3),  # The best so far counts: 2 at round 2, below 3 at 3.
    ((2, 0), None),
    ((0, 9, 9), 1),
    ((3, 3, 3), None),
    ((2, 2, 3), None),
  ],
)
def test_best_so_far_against_the_median_of_running_means(values, expected):
  assert stopping.round_to_stop(_series(*values), _OTHERS) == expected


def test_only_trials_that_got_that_far_count():
  short, long = _series(9), _series(0, 1, 2)
  trial = _series(4.6, 4.6, 4.6)
  # Round 1: the median of 9 and 0 is 4.5; from round 2 on, only the bad one.
  assert stopping.round_to_stop(trial, [short, long]) is None
  assert stopping.round_to_stop(_series(4.4), [short, long]) == 1
  assert stopping.round_to_stop(trial, [short]) == 1


def test_rounds_need_not_be_the_same():
  other = _series(1, 5, rounds=(10, 20))
  # At 15 the other has the mean 1 of round 10; at 25 it had ended.
  assert stopping.round_to_stop(_series(2, rounds=(15,)), [other]) is None
  assert stopping.round_to_stop(_series(2, rounds=(20,)), [other]) == 20
  assert stopping.round_to_stop(_series(2, rounds=(25,)), [other]) is None


def test_nothing_is_stopped_without_others():
  assert stopping.round_to_stop(_series(0, 0), []) is None


def test_other_without_a_value_so_early_does_not_count():
  late = _series(9, rounds=(20,))
  assert stopping.round_to_stop(_series(1, rounds=(10,)), [late]) is None
