"""bin/privacy.py end to end: from numbers, a configuration and a run."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import task as task_lib
from tff_codist.privacy import accounting

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_COMMAND = str(_ROOT / 'bin' / 'privacy.py')
_PLAN = (
  *('--pools', 'small', 'large', '--population', '500', '100'),
  *('--cohort', '10', '--rounds', '1000', '--delta', '1e-4'),
)
# A training on the 40 clients of digits; the large model is on 4 of them.
_DIGITS = (
  *('--preset', 'digits', '--quick', '--unlabelled.sources', 'noise'),
  *('--client.weighting', 'uniform', '--pools.cohort_size', '8', '2'),
  *('--privacy.delta', '1e-3', '--pools.sampling'),
)
_PRESET = (*_DIGITS, 'poisson')
_GAUSSIAN = (*_PRESET, '--privacy.mechanism', 'gaussian')
_GAUSSIAN_IN_NUMBERS = (
  *('--pools', 'small', 'large', '--population', '40', '4'),
  *('--cohort', '8', '2', '--rounds', '4', '--delta', '1e-3'),
)
_ALONE = ['epsilon', 'of', 'the', 'pool', 'alone']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns a function that runs the command where TensorFlow is an error."""
  modules = tmp_path_factory.mktemp('modules')
  (modules / 'tensorflow.py').write_text('raise AssertionError("imported")\n')

  def run_command(*flags):
    return subprocess.run(
      [sys.executable, _COMMAND, *map(str, flags)],
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
      env={**os.environ, 'PYTHONPATH': str(modules)},
    )

  return run_command


@pytest.fixture
def rows_of(capsys):
  """Returns a function: the words of each line that the command prints."""
  main = runpy.run_path(_COMMAND)['main']

  def rows(*flags):
    main([str(flag) for flag in flags])
    return _words(capsys.readouterr().out)

  return rows


def _words(output):
  return [line.split() for line in output.splitlines()]


def _text(rows):
  return ' '.join(word for row in rows for word in row)


def _after(rows, *words):
  """Returns the rest of the one row that starts with these words."""
  (rest,) = [row[len(words) :] for row in rows if row[: len(words)] == [*words]]
  return rest


def test_shows_pools_groups_and_the_worst_client(run):
  done = run(*_PLAN, '--noise_multiplier', '1')
  assert (done.returncode, done.stderr) == (0, '')
  rows = _words(done.stdout)
  for row in (
    ['small', 'large'],
    ['noise', 'multiplier', 'z', '1', '1'],
    [*_ALONE, '3.307', '22.63'],
    ['small', 'only', '400', '3.307'],
    ['small', 'and', 'large', '100', '23.24', 'worst'],
  ):
    assert row in rows
  text = _text(rows)
  assert 'one client with all of its data, added or removed' in text
  assert 'joins a round of large with probability 0.1' in text
  assert 'Not counted: metrics' in text


def test_disjoint_pools_and_a_budget_for_the_rounds(rows_of):
  rows = rows_of(
    *(*_PLAN, '--disjoint', '--accountant', 'rdp', '--sampling', 'fixed'),
    *('--noise_multiplier', '1', '2', '--target_epsilon', '5'),
  )
  assert ['clients', 'in', 'clients', 'epsilon'] in rows
  assert [row[:3] for row in rows if row[1:2] == ['only']] == [
    ['small', 'only', '500'],
    ['large', 'only', '100'],
  ]
  text = _text(rows)
  assert '600 clients, delta 0.0001, accountant rdp' in text
  assert 'No client exceeds epsilon 5 in the first' in text
  assert 'an approximation, not a proven bound' in text


def test_finds_the_noise_for_a_target_and_draws(rows_of, tmp_path):
  rows = rows_of(
    *(*_PLAN, '--target_epsilon', '8', '--accountant', 'rdp'),
    *('--plot', tmp_path / 'new' / 'epsilon.png'),
  )
  ratios = []
  for division in (
    ['z', 'the', 'same'],
    ['z', 'like', 'sqrt(q)'],
    ['z', 'like', 'q'],
  ):
    found, flag = [
      row[3:] for row in rows if row[:3] == division and 'of' not in row
    ]
    small, large, _, worst = found
    assert 7.97 < float(worst) <= 8
    assert flag == ['--privacy.noise_multiplier', small, large]
    ratios.append(float(large) / float(small))
  assert ratios == pytest.approx([1, 5**0.5, 5], rel=2e-3)
  picture = tmp_path / 'new' / 'epsilon.png'
  assert rows[-1] == [str(picture)]
  assert picture.read_bytes().startswith(b'\x89PNG')


def test_noise_that_is_found_keeps_the_promise_when_given(rows_of):
  flags = (
    *('--population=500', '--cohort=40', '--rounds=200', '--delta=1e-4'),
    *('--mechanism=adaptive_gaussian', '--metrics_noise_multiplier=3'),
  )
  found = rows_of(*flags, '--target_epsilon', '6')
  (z,) = _after(found, 'noise', 'multiplier', 'z')
  flag = ['--privacy.noise_multiplier', z]
  assert ['In', 'bin/train.py:', *flag] in found
  given = rows_of(*flags, '--noise_multiplier', z)
  (epsilon,) = _after(given, *_ALONE)
  assert 5.98 < float(epsilon) <= 6


def test_noise_on_the_count_allows_more_noise_in_all(rows_of):
  flags = (*_PLAN, '--noise_multiplier', '1', '3')
  rows = rows_of(
    *(*flags, '--mechanism', 'adaptive_gaussian'),
    *('--clipped_count_stddev', '1', '2'),
  )
  # z_Δ = (z⁻² − (2 σ_b)⁻²)^−1/2: (1 − 1/4)^−1/2 and (1/9 − 1/16)^−1/2.
  assert _after(rows, 'z', 'of', 'the', 'sum', 'alone') == ['1.155', '4.536']
  assert _after(rows, 'noise', 'on', 'the', 'count,', 'sigma_b') == ['1', '2']
  # The sum and the count together are one Gaussian mechanism with z.
  assert _after(rows, *_ALONE) == _after(rows_of(*flags), *_ALONE)


def test_one_sigma_b_is_for_the_pools_that_have_a_count(rows_of):
  rows = rows_of(
    *(*_PLAN, '--noise_multiplier', '1', '--clipped_count_stddev', '2'),
    *('--mechanism', 'gaussian', 'adaptive_gaussian'),
  )
  assert _after(rows, 'z', 'of', 'the', 'sum', 'alone') == ['1', '1.033']
  assert _after(rows, 'noise', 'on', 'the', 'count,', 'sigma_b') == ['-', '2']


def test_metrics_are_released_with_the_updates(rows_of):
  # Both with 2: z⁻² = 2⁻² + 2⁻², the square root of 2.
  released = rows_of(
    *_PLAN, *('--noise_multiplier', '2', '--metrics_noise_multiplier', '2')
  )
  assert _after(released, 'z', 'of', 'the', 'metrics') == ['2', '2']
  both = rows_of(*_PLAN, '--noise_multiplier', 2**0.5)
  assert _after(released, *_ALONE) == _after(both, *_ALONE)


def test_tree(rows_of):
  rows = rows_of(
    *('--population', '1280', '--cohort', '10', '--rounds', '512'),
    *('--delta', '1e-6', '--noise_multiplier', '2'),
    *('--mechanism', 'tree', '--sampling', 'epochs', '--accountant', 'rdp'),
  )
  assert [*_ALONE, '17.86'] in rows


def test_help_explains_the_three_ways(run):
  done = run('--help')
  assert done.returncode == 0
  for command in (
    'bin/privacy.py --pools small large --population 500 100',
    'bin/privacy.py --preset emnist --privacy.mechanism gaussian',
    'bin/privacy.py --run_dir runs/private',
  ):
    assert command in done.stdout


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
    (
      ['--noise_multiplier=1', '--clipped_count_stddev=2'],
      '--clipped_count_stddev with --mechanism gaussian',
    ),
    (
      ['--noise_multiplier=1', '--metrics_noise_multiplier=0'],
      'without noise there is no privacy',
    ),
    (['--noise_multipler', '1'], "'--noise_multipler' together with --popu"),
    (['--preset', 'digits'], '--population together with --preset'),
    (['--run_dir', 'r'], '--population together with --run_dir'),
    ([], 'neither --noise_multiplier nor --target_epsilon'),
  ],
)
def test_wrong_numbers_are_refused(rows_of, flags, message):
  _assert_refused(rows_of, (*_PLAN, *flags), message)


def _assert_refused(rows_of, flags, message):
  with pytest.raises(errors.CodistError) as caught:
    rows_of(*flags)
  assert message in str(caught.value)
  assert caught.value.exit_code == 2


def test_error_is_one_line(run):
  done = run(*_PLAN)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: Found neither --noise_multiplier')
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'none of --population, --preset, --run_dir'),
    (['--preset=digits', '--run_dir=r'], '--preset together with --run_dir'),
    (['--preset=digits', '--cohort=3'], "'--cohort' together with --preset"),
    (['--run_dir=r', '--delta=1e-5'], "'--delta' together with --run_dir"),
    (['--run_dir=r', '--privacy.clip=1'], "'--privacy.clip=1' together with"),
    (['--population', '9', '--delta=1e-5'], 'without --cohort and --rounds'),
  ],
)
def test_ways_that_exclude_each_other_are_refused(rows_of, flags, message):
  _assert_refused(rows_of, flags, message)


def test_configuration_costs_what_its_numbers_cost(rows_of):
  noise = ('1.5', '2.5')
  rows = rows_of(*_GAUSSIAN, '--privacy.noise_multiplier', *noise)
  assert rows == rows_of(*_GAUSSIAN_IN_NUMBERS, '--noise_multiplier', *noise)
  assert ['small', 'and', 'large', '4'] in [row[:4] for row in rows]


def test_configuration_with_all_that_is_released(rows_of):
  adaptive = ('adaptive_gaussian', '--clipped_count_stddev', '3')
  rows = rows_of(
    *(*_PRESET, '--privacy.mechanism', 'adaptive_gaussian'),
    *('--privacy.clipped_count_stddev', '3'),
    *('--privacy.metrics_noise_multiplier', '2'),
  )
  assert rows == rows_of(
    *(*_GAUSSIAN_IN_NUMBERS, '--noise_multiplier', '1'),
    *('--mechanism', *adaptive, '--metrics_noise_multiplier', '2'),
  )


def test_noise_found_for_a_configuration_can_be_trained_with(rows_of):
  # The default z = 1 is more than the noise on the count allows.
  flags = (
    *(*_DIGITS, 'epochs', '--privacy.mechanism', 'adaptive_gaussian'),
    *('--privacy.clipped_count_stddev', '0.45'),
  )
  _assert_refused(rows_of, flags, 'noise of 0.45 on the count')
  found = rows_of(*flags, '--target_epsilon', '30')
  z = _after(found, 'z', 'the', 'same', '--privacy.noise_multiplier')
  given = rows_of(*flags, '--privacy.noise_multiplier', *z)
  worst = _after(given, 'small', 'and', 'large')
  assert 29.9 < float(worst[1]) <= 30


def test_budget_ends_the_training_of_a_configuration(rows_of):
  noise = ('--noise_multiplier', '1', '--rounds', '3')
  three_rounds = rows_of(*_GAUSSIAN_IN_NUMBERS, *noise)
  budget = 1.01 * float(_after(three_rounds, 'small', 'and', 'large')[1])
  flags = (*_GAUSSIAN, '--privacy.noise_multiplier', '1')
  rows = rows_of(*flags, '--privacy.max_epsilon', budget)
  assert ['rounds', '3', '3'] in rows
  assert 'Training ends after 3 of 4 rounds' in _text(rows)
  # With the noise given, a target is a question about the rounds.
  rows = rows_of(*flags, '--target_epsilon', budget)
  assert ['rounds', '4', '4'] in rows
  assert 'in the first 3 of 4 rounds' in _text(rows)


def test_pool_without_a_mechanism_in_a_configuration(rows_of, tmp_path):
  flags = (*_PRESET, '--privacy.mechanism', 'gaussian', 'none')
  rows = rows_of(*flags, '--plot', tmp_path / 'epsilon.png')
  assert ['small', 'and', 'large', '4', 'inf', 'worst'] in rows
  assert 'Nothing protects the clients in large' in _text(rows)
  assert (tmp_path / 'epsilon.png').exists()
  with pytest.raises(errors.ConfigError, match='a mechanism for every pool'):
    rows_of(*flags, '--target_epsilon', '8')


def test_noise_that_can_be_drawn_again_is_no_guarantee(rows_of):
  text = _text(rows_of(*_GAUSSIAN, '--privacy.reproducible_noise'))
  assert 'There is no guarantee' in text


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--preset', 'digit'], "use 'digits'"),
    (['--preset', 'digits'], '--privacy.mechanism none'),
    (
      ['--preset', 'digits', '--privacy.noise_multiplier', '1'],
      "no effect with 'none' (--privacy.mechanism)",
    ),
    ([*_GAUSSIAN, '--privacy.clp', '1'], "use '--privacy.clip'"),
    ([*_GAUSSIAN, '--privacy.clipped_count_stddev', '2'], 'no effect with'),
    ([*_GAUSSIAN, '--client.epochs', '1', '--client.epochs', '2'], '2 times'),
    (
      ['--preset', 'digits', '--privacy.mechanism', 'gaussian'],
      'with differential privacy',
    ),
    (
      [*_GAUSSIAN, '--target_epsilon', '8', '--privacy.max_epsilon', '2'],
      'ends training earlier',
    ),
    ([*_GAUSSIAN, '--privacy.max_epsilon', '1e-3'], 'at least one round'),
  ],
)
def test_untrainable_configuration_is_refused(rows_of, flags, message):
  _assert_refused(rows_of, flags, message)


@pytest.fixture(scope='module')
def private_run(tmp_path_factory):
  """The folder of a run of three pools in its second round of four."""
  import tasks  # noqa: F401  Registers the presets.
  from tff_codist import experiment
  from tff_codist.program import run_folder

  config = config_lib.change(
    task_lib.presets['digits'](True),
    client={'weighting': 'uniform'},
    unlabelled={'sources': ('noise',)},
    pools={
      'names': ('small', 'medium', 'large'),
      'models': ('small', 'medium', 'large'),
      'clients_fraction': (1.0, 0.5, 0.25),
      'cohort_size': (8, 4, 2),
      'sampling': 'poisson',
    },
    merged={'distillation_weight': (0.1,)},
    privacy={
      'mechanism': ('gaussian',),
      'noise_multiplier': (1.0, 2.0, 3.0),
      'delta': 1e-3,
    },
  )
  folder = run_folder.RunFolder(tmp_path_factory.mktemp('runs') / 'private')
  folder.start(experiment.build_experiment(config), command='')
  columns = [f'eval/{pool}/accuracy' for pool in config.pools.names]
  folder.metrics.write_text(
    f'round,{",".join(columns)},cost/bytes\n0,0.1,0.1,0.1,\n1,,,,8\n2,,,,8\n'
  )
  return folder.path


def _losses_of_the_run(rounds):
  """Returns what the clients of `private_run` lose, by their pools."""
  # A quarter of 40 clients is in all pools, a half in small and medium.
  releases = [
    accounting.Releases(
      pool, clients, cohort, rounds=rounds, noise_multiplier=z
    )
    for pool, clients, cohort, z in (
      ('small', 40, 8, 1.0),
      ('medium', 20, 4, 2.0),
      ('large', 10, 2, 3.0),
    )
  ]
  return [
    f'{accounting.epsilon(releases[:count], delta=1e-3):.4g}'
    for count in (1, 2, 3)
  ]


def test_run_so_far_and_at_the_end(private_run, run, tmp_path):
  done = run('--run_dir', private_run, '--plot', tmp_path / 'epsilon.png')
  assert (done.returncode, done.stderr) == (0, '')
  rows = _words(done.stdout)
  assert ['rounds', 'so', 'far', '2', '2', '2'] in rows
  assert ['rounds', 'at', 'the', 'end', '4', '4', '4'] in rows
  header = ['clients', 'in', 'clients', 'epsilon', 'so', 'far']
  assert [*header, 'epsilon', 'at', 'the', 'end'] in rows
  groups = (
    (['small', 'only', '20'], []),
    (['small', 'and', 'medium', '10'], []),
    (['small', 'and', 'medium', 'and', 'large', '10'], ['worst']),
  )
  for (name, worst), *epsilons in zip(
    groups, _losses_of_the_run(2), _losses_of_the_run(4)
  ):
    assert [*name, *epsilons, *worst] in rows
  assert (tmp_path / 'epsilon.png').exists()


def test_run_at_its_end_has_one_moment(private_run, rows_of, tmp_path):
  folder = _copy(private_run, tmp_path)
  with open(folder / 'metrics.csv', 'a') as file:
    file.write('3,,,,8\n4,0.2,0.2,0.2,8\n')
  rows = rows_of('--run_dir', folder, '--target_epsilon', '5')
  assert ['rounds', '4', '4', '4'] in rows
  assert 'so far' not in _text(rows)
  assert 'No client exceeds epsilon 5 in the first' in _text(rows)


def _copy(run_dir, tmp_path):
  """Returns a copy of what a run folder says of a run."""
  for name in ('config.json', 'pools.json', 'metrics.csv'):
    (tmp_path / name).write_text((run_dir / name).read_text())
  return tmp_path


def test_folder_without_a_private_run_is_refused(
  private_run, rows_of, tmp_path
):
  def refuses(folder, message):
    _assert_refused(rows_of, ['--run_dir', folder], message)

  refuses(tmp_path / 'nowhere', 'no folder')
  refuses(tmp_path, 'has no config.json')
  folder = _copy(private_run, tmp_path)
  pools = json.loads((folder / 'pools.json').read_text())
  del pools['groups']
  (folder / 'pools.json').write_text(json.dumps(pools))
  refuses(folder, 'no groups of clients')
  config = json.loads((folder / 'config.json').read_text())
  config['privacy']['mechanism'] = ['none']
  (folder / 'config.json').write_text(json.dumps(config))
  refuses(folder, '--privacy.mechanism none')
