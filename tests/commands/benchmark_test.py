"""bin/benchmark.py as a user runs it; no time is asserted."""

import json
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_COMPETITORS = ('tff', 'tff_codist', 'bare')


def _benchmark(*flags):
  return subprocess.run(
    [sys.executable, str(_ROOT / 'bin' / 'benchmark.py'), *map(str, flags)],
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
  """All workloads in their smoke form: the output and the JSON file."""
  path = tmp_path_factory.mktemp('benchmark') / 'numbers.json'
  workloads = ('cnn', 'dense', 'lstm', 'round', 'clients')
  done = _benchmark('--workload', *workloads, '--quick', '--json', path)
  assert done.returncode == 0, done.stderr
  return done.stdout, json.loads(path.read_text())


def test_table_has_a_row_for_every_competitor(quick):
  output, _ = quick
  for title in (
    'cnn: 1,206,590 weights',
    'dense: 169,462 weights',
    'lstm: 4,050,748 weights',
  ):
    section = output.partition(title)[2].split('\n\n')[0]
    rows = [line.split()[0] for line in section.splitlines()[2:5]]
    assert rows == list(_COMPETITORS)
  assert 'tensorflow_federated: 0.87.0' in output
  assert 'time/exchange_seconds' in output


@pytest.mark.parametrize('workload', ['cnn', 'dense', 'lstm'])
def test_json_has_the_numbers_of_every_competitor(quick, workload):
  result = quick[1]['workloads'][workload]
  assert result['num_clients'] == 2
  assert tuple(result['competitors']) == _COMPETITORS
  for numbers in result['competitors'].values():
    # Two rounds, of which the first one is reported apart.
    (seconds,) = numbers['round_seconds']
    assert numbers['first_round_seconds'] > 0
    assert numbers['examples_per_second_best'] == pytest.approx(80 / seconds)
  assert result['competitors']['tff']['ratio_to_tff'] == 1
  assert min(result['peak_rss_bytes'].values()) > 2**20


def test_json_splits_a_codist_round_into_its_phases(quick):
  phases = quick[1]['workloads']['round']['phases']
  assert set(phases) == {
    f'time/{phase}_seconds'
    for phase in ('load', 'clients', 'exchange', 'server', 'other', 'round')
  }
  best = {name: numbers['best_round'] for name, numbers in phases.items()}
  total = best.pop('time/round_seconds')
  assert sum(best.values()) == pytest.approx(total)


def test_json_has_time_and_memory_by_the_number_of_clients(quick):
  output, report = quick
  result = report['workloads']['clients']
  assert 'a further user costs' in output
  few, many = result['files']
  assert (few['num_clients'], many['num_clients']) == (100, 1000)
  for file in (few, many):
    assert 0 < file['first_cohort_seconds'] < file['last_cohort_seconds']
    peaks = [
      file[f'{stage}_peak_rss_bytes']
      for stage in ('imported', 'opened', 'loaded')
    ]
    assert peaks == sorted(peaks)
  for name, bytes_per_client in result['bytes_per_client'].items():
    assert bytes_per_client == (many[name] - few[name]) / 900


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--workload', 'dens'], "use 'dense'"),
    (['--rounds', '1'], 'an integer above 1'),
  ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
  tmp_path, flags, message
):
  done = _benchmark(*flags, '--json', tmp_path / 'numbers.json')
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())
