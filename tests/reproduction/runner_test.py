"""A small table on digits, trained by processes from the first to the last."""

import json
import pathlib
import re
import shutil

import pytest

import tables  # noqa: F401  Registers them.
import tasks  # noqa: F401  Registers digits.
from tff_codist import errors
from tff_codist import files
from tff_codist import registry
from tff_codist import reproduction
from tff_codist.program import processes
from tff_codist.reproduction import report
from tff_codist.reproduction import runner
from tff_codist.reproduction import table

_FLAGS = {
  'preset': 'digits',
  'program.rounds': 4,
  'program.rounds_per_evaluation': 2,
  'pools.cohort_size': 2,
}


_TABLES = registry.Registry('table')


@_TABLES.register('digits')
def _digits(scale):
  flags = _FLAGS | ({'program.rounds': 2} if scale == 'quick' else {})
  flags['algorithm.name'] = 'fed_avg'
  rows = [
    reproduction.Row('fed_avg', flags),
    reproduction.Row('no_list', {**flags, 'pools.client_lists': ('a', 'b')}),
  ]
  return reproduction.Table(
    'Digits', 'Nobody.', 'None.', 'all.', tuple(rows), last=1
  )


@_TABLES.register('wrong')
def _wrong(scale):
  del scale
  row = reproduction.Row('fed_avg', {**_FLAGS, 'server.learning_rat': 1})
  return reproduction.Table('Wrong', 'Nobody.', 'None.', 'all.', (row,))


def _reproduce(out_dir, **changes):
  arguments = {
    'name': 'digits',
    'scale': 'quick',
    'num_seeds': None,
    'jobs': 2,
    'out_dir': out_dir,
    **changes,
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(table, 'tables', _TABLES)
    return runner.reproduce(arguments.pop('name'), **arguments)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of the table at scale `machine`, one seed, and its error."""
  out_dir = tmp_path_factory.mktemp('reproduce') / 'out'
  with pytest.raises(errors.FailedRunsError) as raised:
    _reproduce(out_dir, scale='machine', num_seeds=1)
  return out_dir, raised.value


def test_one_run_finishes_and_the_other_is_reported_as_failed(trained):
  out_dir, error = trained
  assert '1 of 2 runs that failed: no_list, seed 1' in str(error)
  (result,) = report.from_csv((out_dir / 'report.csv').read_text())[:1]
  assert (result.setting, result.n) == ('fed_avg', 1)
  text = (out_dir / 'report.md').read_text()
  (line,) = [x for x in text.splitlines() if x.startswith('* no_list')]
  assert 'error: Found' in line
  assert str(out_dir / 'runs' / 'no_list_1.log') in line
  assert (out_dir / 'runs' / 'no_list_1.log').exists()


def test_rates_were_measured_before(trained):
  rates = json.loads((trained[0] / 'rates.json').read_text())['rates']
  assert set(rates) == {'fed_avg'}
  assert rates['fed_avg']['round_seconds'] > 0
  assert rates['fed_avg']['checkpoint_bytes'] > 1000
  assert not list(trained[0].glob('.rates.*'))


def test_run_that_fails_when_it_draws_has_not_failed(
  trained, tmp_path, capsys, monkeypatch
):
  out_dir = tmp_path / 'out'
  shutil.copytree(trained[0], out_dir)
  (out_dir / 'runs' / 'fed_avg_1' / 'DONE').unlink()

  def run(trainings, **_):
    for training in trainings:
      if training.run_dir.name == 'fed_avg_1':
        (training.run_dir / 'DONE').touch()
      yield processes.Ended(training, 1)

  monkeypatch.setattr(processes, 'run', run)
  message = '1 of 2 runs that failed: no_list, seed 1;'
  with pytest.raises(errors.FailedRunsError, match=message):
    _reproduce(out_dir, scale='machine', num_seeds=1)
  assert 'fed_avg, seed 1 failed' not in capsys.readouterr().out


def test_finished_runs_are_kept_and_a_report_trains_nothing(
  trained, capsys, monkeypatch
):
  out_dir, _ = trained
  monkeypatch.setattr(runner.processes, 'run', None)
  before = (out_dir / 'report.csv').read_bytes()
  missing = _reproduce(out_dir, scale='machine', num_seeds=2, report_only=True)
  assert [cell.name for cell in missing] == [
    'no_list, seed 1',
    'fed_avg, seed 2',
    'no_list, seed 2',
  ]
  assert (out_dir / 'report.csv').read_bytes() == before
  printed = capsys.readouterr().out
  assert 'fed_avg, seed 2: not finished, 0 rounds' in printed
  assert 'no_list, seed 1: failed' in printed
  assert str(out_dir / 'report.html') in printed


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'digist'}, "use 'digits'"),
    ({'scale': 'machin'}, "use 'machine'"),
    ({'num_seeds': 0}, '--seeds 0'),
    ({'jobs': -1}, '--jobs -1'),
    ({'name': 'wrong'}, "use '--server.learning_rate'"),
  ],
)
def test_wrong_input(tmp_path, changes, message):
  with pytest.raises(errors.ConfigError, match=message):
    _reproduce(tmp_path / 'out', **changes)
  assert not (tmp_path / 'out').exists()


def test_folder_of_another_table(trained):
  with pytest.raises(errors.RunFolderError, match="'scale': 'quick'"):
    _reproduce(trained[0])


def test_default_is_as_many_seeds_as_the_folder_has(trained, tmp_path, capsys):
  out_dir = tmp_path / 'out'
  shutil.copytree(trained[0], out_dir)
  for seed in (2, 3, 4):
    folder = out_dir / 'runs' / f'fed_avg_{seed}'
    shutil.copytree(out_dir / 'runs' / 'fed_avg_1', folder)
    path = folder / 'config.json'
    path.write_text(path.read_text().replace('"seed": 1', f'"seed": {seed}'))
  about = {'scale': 'machine', 'report_only': True}
  _reproduce(out_dir, **about)
  assert report.from_csv((out_dir / 'report.csv').read_text())[0].n == 4
  capsys.readouterr()
  _reproduce(out_dir, num_seeds=2, **about)
  assert 'Not in this report: seeds 3, 4.' in capsys.readouterr().out


def test_folders_of_no_row_do_not_count_as_seeds(trained, tmp_path):
  out_dir = tmp_path / 'out'
  shutil.copytree(trained[0], out_dir)
  for name in ('fed_avg_1_bak', 'fed_avg_old', 'old_20240101'):
    shutil.copytree(out_dir / 'runs' / 'fed_avg_1', out_dir / 'runs' / name)
  _reproduce(out_dir, scale='machine', report_only=True)
  assert report.from_csv((out_dir / 'report.csv').read_text())[0].n == 1


def test_report_of_a_folder_without_a_table(tmp_path):
  with pytest.raises(errors.RunFolderError, match='no table in'):
    _reproduce(tmp_path / 'out', report_only=True)
  assert not (tmp_path / 'out').exists()


def test_folder_that_another_process_works_in(trained):
  about = {'scale': 'machine', 'num_seeds': 1}
  with files.lock(trained[0]):
    with pytest.raises(errors.RunFolderError, match='another process'):
      _reproduce(trained[0], **about)
    assert _reproduce(trained[0], report_only=True, **about)


def test_folder_below_a_file(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.RunFolderError, match='cannot be used'):
    _reproduce(tmp_path / 'file' / 'out')


def test_folder_with_something_else(tmp_path):
  (tmp_path / 'letter.txt').touch()
  with pytest.raises(errors.RunFolderError, match='something else'):
    _reproduce(tmp_path)


def test_run_of_another_configuration(trained, tmp_path):
  out_dir = tmp_path / 'out'
  shutil.copytree(trained[0], out_dir)
  path = out_dir / 'runs' / 'fed_avg_1' / 'config.json'
  path.write_text(path.read_text().replace('"rounds": 4', '"rounds": 5'))
  with pytest.raises(errors.RunFolderError, match=r'program\.rounds: 5 there'):
    _reproduce(out_dir, scale='machine', num_seeds=1)


def test_disk_without_room(trained, tmp_path, monkeypatch):
  out_dir = tmp_path / 'out'
  out_dir.mkdir()
  shutil.copy(trained[0] / 'rates.json', out_dir)
  shutil.copy(trained[0] / 'table.json', out_dir)
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
  content = json.loads((out_dir / 'rates.json').read_text())
  content['rates']['no_list'] = content['rates']['fed_avg']
  (out_dir / 'rates.json').write_text(json.dumps(content))
  with pytest.raises(errors.StorageError, match='for the planned runs'):
    _reproduce(out_dir, scale='machine')
  assert not (out_dir / 'runs').exists()
  # Runs that are interrupted before their end have what they need.
  for name in ('fed_avg_1', 'no_list_1'):
    run_dir = out_dir / 'runs' / name / 'checkpoints'
    run_dir.mkdir(parents=True)
    size = content['rates']['fed_avg']['checkpoint_bytes']
    (run_dir / 'all').write_bytes(bytes(10 * int(size)))
  monkeypatch.setattr(runner.run_folder.RunFolder, 'check', lambda *_: None)
  monkeypatch.setattr(processes, 'run', lambda *_, **__: (x for x in ()))
  _reproduce(out_dir, scale='machine', num_seeds=1)


def test_examples_in_the_help_name_tables():
  script = pathlib.Path(runner.__file__).parents[2] / 'bin' / 'reproduce.py'
  names = re.findall(r'bin/reproduce\.py (\w+)', script.read_text())
  assert names
  assert set(names) <= set(reproduction.tables.names())
