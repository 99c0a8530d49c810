import json
import os
import shutil

import pytest

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import reproduction
from tff_codist.reproduction import rates

_RATE = rates.Rate(
  start_seconds=10.0,
  round_seconds=2.0,
  exchange_seconds=3.0,
  evaluation_seconds=5.0,
  checkpoint_bytes=100.0,
)


def _config(name, **groups):
  return config_lib.change(
    config_lib.Config(
      program=config_lib.ProgramConfig(
        rounds=100, rounds_per_evaluation=25, checkpoints_kept=3
      )
    ),
    algorithm={'name': name},
    **groups,
  )


def test_seconds_of_whole_runs():
  # 100 rounds of 2 s, evaluations in rounds 0, 25, ..., 100, the start.
  assert _RATE.seconds(_config('fed_avg')) == 10 + 200 + 25
  merged = _config('merged_codist', merged={'warmup_rounds': 40})
  assert _RATE.seconds(merged) == 10 + 200 + 25 + 60 * 3
  periodic = _config('periodic_codist', periodic={'period': 30})
  assert _RATE.seconds(periodic) == 10 + 200 + 25 + 3 * 3


def test_seconds_of_the_rest_of_a_run():
  merged = _config('merged_codist', merged={'warmup_rounds': 40})
  # 50 rounds with an exchange, and the evaluations of 75 and 100; the one
  # before is counted, too.
  assert _RATE.seconds(merged, rounds_done=50) == 10 + 100 + 50 * 3 + 15


def test_bytes_have_room_for_all_checkpoints_and_the_one_being_written():
  assert _RATE.num_bytes(_config('fed_avg')) == 400


def test_words():
  assert rates.in_words(42.4) == '42 s'
  assert rates.in_words(125) == '2 min'
  assert rates.in_words(3 * 3600 + 5 * 60) == '3 h 05 min'


def test_disk_without_room_is_an_error_with_both_sizes(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=2_500_000_000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
  rates.check_disk(2.4e9, tmp_path / 'not' / 'yet' / 'there')
  with pytest.raises(errors.StorageError, match=r'2.5 GB free .* 2.6 GB'):
    rates.check_disk(2.6e9, tmp_path / 'not' / 'yet' / 'there')


def test_rates_of_an_earlier_call_are_kept(tmp_path):
  text = json.dumps({'jobs': 1, 'rates': {'fed_avg': _RATE._asdict()}})
  (tmp_path / 'rates.json').write_text(text)
  assert rates.measure({}, out_dir=tmp_path, jobs=1) == {'fed_avg': _RATE}
  # Those of one training at a time say nothing of two.
  assert rates.measure({}, out_dir=tmp_path, jobs=2) == {}


def test_trainings_that_a_kill_has_left_are_removed(tmp_path):
  (tmp_path / '.rates.k1lled' / 'fed_avg').mkdir(parents=True)
  (tmp_path / 'runs').mkdir()
  rates.measure({}, out_dir=tmp_path, jobs=1)
  assert [path.name for path in tmp_path.iterdir()] == ['runs']


def test_trainings_that_a_kill_has_left_may_still_write(tmp_path, monkeypatch):
  left = tmp_path / '.rates.k1lled'
  left.mkdir()

  def rmdir(path, **_):
    raise OSError(39, 'Directory not empty', path)

  monkeypatch.setattr(os, 'rmdir', rmdir)
  rates.measure({}, out_dir=tmp_path, jobs=1)
  assert left.exists()


def test_rows_with_a_dot_in_the_name_have_logs_of_their_own(
  tmp_path, monkeypatch
):
  rows = [reproduction.Row(f'fed_avg_z{z}', {}) for z in (0.1, 0.3)]
  cells = [reproduction.Cell(row, 1, tmp_path / row.name) for row in rows]
  taken = []

  def run(trainings, *, jobs):
    del jobs
    taken.extend(trainings)
    yield from ()

  monkeypatch.setattr(rates.processes, 'run', run)
  configs = dict.fromkeys(cells, _config('fed_avg'))
  rates.measure(configs, out_dir=tmp_path, jobs=1)
  assert [t.log.name for t in taken] == ['fed_avg_z0.1.log', 'fed_avg_z0.3.log']


@pytest.mark.parametrize(
  'text',
  ['{', '[]', '{"jobs": 1}', '{"jobs": 1, "rates": {"fed_avg": {"start": 1}}}'],
)
def test_damaged_rates(tmp_path, text):
  (tmp_path / 'rates.json').write_text(text)
  with pytest.raises(errors.RunFolderError, match='damaged'):
    rates.measure({}, out_dir=tmp_path, jobs=1)
