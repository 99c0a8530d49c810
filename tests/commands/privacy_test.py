"""bin/privacy.py end to end."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PLAN = (
  *('--pools', 'small', 'large', '--population', '500', '100'),
  *('--cohort', '10', '--rounds', '1000', '--delta', '1e-4'),
)


def _run(*flags):
  return subprocess.run(
    [sys.executable, str(_ROOT / 'bin' / 'privacy.py'), *map(str, flags)],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def _rows(*flags):
  """Returns the words of each line that a command prints without an error."""
  done = _run(*flags)
  assert (done.returncode, done.stderr) == (0, '')
  return [line.split() for line in done.stdout.splitlines()]


def test_shows_pools_groups_and_the_worst_client():
  rows = _rows(*_PLAN, '--noise_multiplier', '1')
  for row in (
    ['small', 'large'],
    ['noise', 'multiplier', 'z', '1', '1'],
    ['epsilon', 'of', 'the', 'pool', 'alone', '3.307', '22.63'],
    ['small', 'only', '400', '3.307'],
    ['small', 'and', 'large', '100', '23.24', 'worst'],
  ):
    assert row in rows
  text = ' '.join(word for row in rows for word in row)
  assert 'one client with all of its data, added or removed' in text
  assert 'joins a round of large with probability 0.1' in text
  assert 'Not counted: metrics' in text


def test_disjoint_pools_and_a_budget_for_the_rounds():
  rows = _rows(
    *(*_PLAN, '--disjoint', '--accountant', 'rdp', '--sampling', 'fixed'),
    *('--noise_multiplier', '1', '2', '--target_epsilon', '5'),
  )
  assert ['clients', 'in', 'clients', 'epsilon'] in rows
  assert [row[:3] for row in rows if row[1:2] == ['only']] == [
    ['small', 'only', '500'],
    ['large', 'only', '100'],
  ]
  text = ' '.join(word for row in rows for word in row)
  assert '600 clients, delta 0.0001, accountant rdp' in text
  assert 'No client exceeds epsilon 5 in the first' in text
  assert 'an approximation, not a proven bound' in text


def test_finds_the_noise_for_a_target_and_draws(tmp_path):
  rows = _rows(
    *(*_PLAN, '--target_epsilon', '8', '--accountant', 'rdp'),
    *('--plot', tmp_path / 'new' / 'epsilon.png'),
  )
  rows = [row for row in rows if 'of' not in row]
  plans = {' '.join(row[:3]): row[3:] for row in rows if row[:1] == ['z']}
  assert plans.keys() == {'z the same', 'z like sqrt(q)', 'z like q'}
  ratios = []
  for small, large, _, worst in plans.values():
    assert 7.97 < float(worst) <= 8
    ratios.append(float(large) / float(small))
  assert ratios == pytest.approx([1, 5**0.5, 5], rel=2e-3)
  picture = tmp_path / 'new' / 'epsilon.png'
  assert rows[-1] == [str(picture)]
  assert picture.read_bytes().startswith(b'\x89PNG')


def test_noise_that_is_found_keeps_the_promise_when_given():
  flags = ('--population=500', '--cohort=40', '--rounds=200', '--delta=1e-4')
  mechanism = '--mechanism=adaptive_gaussian'
  label = ['noise', 'multiplier', 'z']
  found = _rows(*flags, mechanism, '--target_epsilon', '6')
  (z,) = [row[3] for row in found if row[:3] == label]
  given = _rows(*flags, mechanism, '--noise_multiplier', z)
  alone = ['epsilon', 'of', 'the', 'pool', 'alone']
  (epsilon,) = [row[5] for row in given if row[:5] == alone]
  assert 5.98 < float(epsilon) <= 6


def test_tree():
  rows = _rows(
    *('--population', '1280', '--cohort', '10', '--rounds', '512'),
    *('--delta', '1e-6', '--noise_multiplier', '2'),
    *('--mechanism', 'tree', '--sampling', 'epochs', '--accountant', 'rdp'),
  )
  assert ['epsilon', 'of', 'the', 'pool', 'alone', '17.86'] in rows


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--noise_multiplier', '0'], 'without noise there is no privacy'),
    (['--noise_multiplier', '1', '1', '1'], '3 values for 2 pools'),
    (['--noise_multiplier', '1', '--delta', '0.5'], 'delta = 0.5'),
    (['--noise_multiplier', '1', '--cohort', '200'], 'a cohort of 200 of 100'),
    (['--noise_multiplier', '1', '--mechanism', 'tre'], "use 'tree'"),
    (['--noise_multiplier', '1', '--pools', 'a', 'a'], 'all different'),
    (['--noise_multiplier', '1', '--rounds', '0'], '--rounds 0'),
    (['--noise_multiplier', '1', '--plot', 'a.pdf'], 'a .png file'),
    (['--target_epsilon', '-1'], 'a target epsilon of -1'),
    (['--target_epsilon=3', '--mechanism=adaptive_gaussian'], 'as much noise'),
    ([], 'neither --noise_multiplier nor --target_epsilon'),
  ],
)
def test_wrong_input_is_one_sentence(flags, message):
  done = _run(*_PLAN, *flags)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: Found ')
  assert message in done.stderr
  assert done.stderr.count('\n') == 1
