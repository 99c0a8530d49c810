"""bin/benchmark.py as a user runs it; no time is asserted."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUNTIMES = {
  'tff': 'stock',
  'tff_in_process': 'in_process',
  'stock': 'stock',
  'in_process': 'in_process',
  'bare': None,
  'bare_threads': None,
}
_PHASES = ('load', 'clients', 'exchange', 'server', 'other', 'round')

# Runs measurements that write the order of their turns into a file.
_TURNS = """
import os
import pathlib
import sys

sys.path[:0] = [{root!r}, {bin!r}]

from benchmarks import processes
from tff_codist.program import command


def count(name, num_turns):
  yield None
  for turn in range(num_turns):
    with open('order', 'a') as order:
      order.write(name)
    yield turn, os.getpid()


def die(name, num_turns):
  yield None
  os.kill(os.getpid(), 9)
  yield num_turns


def fail(name, num_turns):
  yield None
  raise ValueError('wrong weights')


def main(argv):
  results = processes.take_turns(
    {{'a': (count, 'a', 1), 'b': ({second}, 'b', 3)}}
  )
  turns = {{name: [turn for turn, _ in taken]
           for name, taken in results.items()}}
  pids = {{pid for taken in results.values() for _, pid in taken}}
  print(turns, pathlib.Path('order').read_text(), len(pids - {{os.getpid()}}))


if __name__ == '__main__':
  command.run(main)
"""


def _start(*flags, **env):
  return subprocess.Popen(
    [sys.executable, str(_ROOT / 'bin' / 'benchmark.py'), *map(str, flags)],
    env={**os.environ, **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process):
  output, error_output = process.communicate(timeout=240)
  return process.returncode, output, error_output


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
  """{workload: what was printed of it, and its part of the JSON file}."""
  folder = tmp_path_factory.mktemp('benchmark')
  temporary_dir = tmp_path_factory.mktemp('temporary')

  def start(path, names):
    flags = ('--workload', *names, '--quick', '--json', path)
    return _start(*flags, TMPDIR=str(temporary_dir))

  commands = {
    path: (names, start(path, names))
    for path, names in {
      folder / 'dense.json': ['dense'],
      folder / 'others.json': ['round', 'growth', 'clients'],
    }.items()
  }
  reports = {}
  for path, (names, process) in commands.items():
    returncode, output, error_output = _finish(process)
    assert (returncode, error_output) == (0, '')
    head, *sections = output.split('\n\n')
    assert 'tensorflow_federated: 0.87.0' in head
    report = json.loads(path.read_text())
    assert report['machine']['cores'] > 0
    assert report['warmup_rounds'] == 1
    for name, section in zip(names, sections):
      reports[name] = section, report['workloads'][name]
  # No process has left a file there, as those of TensorFlow's AutoGraph.
  assert not list(temporary_dir.iterdir())
  return reports


def test_every_competitor_has_its_row_and_numbers(quick):
  section, result = quick['dense']
  title, _, *rows = section.splitlines()
  assert title.startswith('dense: 169,462 weights, 2 clients of 40 examples')
  assert [row.split()[0] for row in rows] == list(_RUNTIMES)
  competitors = result['competitors']
  assert list(competitors) == list(_RUNTIMES)
  for name, numbers in competitors.items():
    assert len(numbers['round_seconds']) == 2
    best = 80 / min(numbers['round_seconds'])
    assert numbers['examples_per_second_best'] == pytest.approx(best)
    assert 0 < numbers['examples_per_second_median'] <= best
    assert numbers['ratio_to_tff'] == pytest.approx(
      best / competitors['tff']['examples_per_second_best']
    )
    assert numbers['ratio_to_bare'] == pytest.approx(
      best / competitors['bare']['examples_per_second_best']
    )
    assert numbers['first_round_seconds'] > 0
    peaks = numbers['peak_rss_bytes']
    assert min(peaks.values()) > 2**20
    assert ('worker' in peaks) == (_RUNTIMES[name] == 'stock')
  assert result['bare_threads'] in (1, 2)


def test_a_codist_round_is_split_and_set_against_its_parts(quick):
  section, result = quick['round']
  assert 'time/exchange_seconds' in section
  assert list(result) == ['stock', 'in_process']
  for runtime in result.values():
    assert runtime['first_round_seconds'] > 0
    for column in ('best_round', 'median'):
      assert min(n[column] for n in runtime['numbers'].values()) > 0
    best = {name: n['best_round'] for name, n in runtime['numbers'].items()}
    *phases, total = (best[f'time/{phase}_seconds'] for phase in _PHASES)
    assert sum(phases) == pytest.approx(total)
    parts = best['time/clients_seconds'] + best['bare_distillation_seconds']
    assert best['ratio_to_parts'] == pytest.approx(total / parts)


def test_growth_has_the_memory_of_clients_and_of_rounds(quick):
  section, result = quick['growth']
  assert 'a further client of a cohort costs' in section
  few, many = result['cohorts']
  assert (few['num_clients'], many['num_clients']) == (2, 4)
  for cohort in (few, many):
    assert cohort['seconds_per_client'] > 0
    assert cohort['peak_rss_bytes'] > 2**20
  more_bytes = many['peak_rss_bytes'] - few['peak_rss_bytes']
  assert result['bytes_per_client'] == more_bytes / 2
  rounds = result['rounds']
  assert (rounds['early'], rounds['late']) == (2, 6)
  more_bytes = rounds['late_rss_bytes'] - rounds['early_rss_bytes']
  assert rounds['bytes_per_round'] == more_bytes / 4


def test_clients_has_time_and_memory_by_their_number(quick):
  section, result = quick['clients']
  assert 'a further user costs' in section
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


@pytest.mark.parametrize('name', ['cnn', 'lstm'])
def test_other_models_train_without_federation(monkeypatch, name):
  monkeypatch.syspath_prepend(str(_ROOT / 'bin'))
  from benchmarks import averaging

  workload = averaging.WORKLOADS[name].quick()
  assert workload.keras_fn().count_params() == workload.num_weights
  imported, *rounds = averaging.run_rounds('bare', workload, 2)
  assert imported is None
  assert len(rounds) == 2
  assert min(one.seconds for one in rounds) > 0


def _take_turns(tmp_path, second):
  script = tmp_path / 'turns.py'
  script.write_text(
    _TURNS.format(root=str(_ROOT), bin=str(_ROOT / 'bin'), second=second)
  )
  return subprocess.run(
    [sys.executable, str(script)],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
    cwd=tmp_path,
  )


def test_processes_take_turns_until_all_have_ended(tmp_path):
  done = _take_turns(tmp_path, second='count')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == "{'a': [0], 'b': [0, 1, 2]} abbb 2\n"


@pytest.mark.parametrize(
  ('second', 'code', 'reason'),
  [('die', -9, ''), ('fail', 1, 'ValueError: wrong weights')],
)
def test_end_of_a_process_ends_the_benchmark(tmp_path, second, code, reason):
  done = _take_turns(tmp_path, second)
  assert done.returncode == 1
  *above, error = done.stderr.splitlines()
  assert error.startswith(
    f"error: Found that the process of 'b' ended with exit code {code};"
  )
  assert above[-1:] == [reason][: len(above)]
  assert bool(above) == bool(reason)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--workload', 'dens'], "use 'dense'"),
    (['--rounds', '0'], 'an integer above 0'),
    (['--quick', '--rounds', '20'], '--rounds with --quick'),
  ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
  tmp_path, flags, message
):
  returncode, _, error_output = _finish(
    _start(*flags, '--json', tmp_path / 'numbers.json')
  )
  assert returncode == 2
  assert message in error_output
  assert len(error_output.splitlines()) == 1
  assert not list(tmp_path.iterdir())
