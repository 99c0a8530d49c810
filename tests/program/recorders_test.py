"""The CSV file and TensorBoard's events, also across a resume."""

import asyncio
import csv

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.summary.writer import event_file_writer

from tff_codist import errors
from tff_codist.program import recorders
from tff_codist.program import run_folder


def _release(recorder, value, key):
  asyncio.run(recorder.release(value, key))


def _rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_rows_are_appended_and_new_columns_join(tmp_path):
  path = tmp_path / 'metrics.csv'
  file = recorders.CsvFile(path)
  _release(file, {'eval/accuracy': 0.1}, 0)
  _release(file, {'loss': np.float32(0.5)}, 1)
  before = path.read_bytes()
  _release(file, {'loss': 0.25, 'eval/accuracy': 0.5}, 2)
  assert path.read_bytes().startswith(before)
  assert _rows(path) == [
    {'round': '0', 'eval/accuracy': '0.1', 'loss': ''},
    {'round': '1', 'eval/accuracy': '', 'loss': '0.5'},
    {'round': '2', 'eval/accuracy': '0.5', 'loss': '0.25'},
  ]


# The third would be a row of round 1, as which 12 was cut off.
@pytest.mark.parametrize('torn', ['', '3,0.', '1', '1,0.125'])
def test_resume_drops_later_and_torn_rows(tmp_path, torn):
  path = tmp_path / 'metrics.csv'
  file = recorders.CsvFile(path)
  for round_num in (1, 2):
    _release(file, {'loss': round_num / 2}, round_num)
  with open(path, 'a') as opened:
    opened.write(torn)
  resumed = recorders.CsvFile(path)
  _release(resumed, {'loss': 7.0}, 2)
  assert [(r['round'], r['loss']) for r in _rows(path)] == [
    ('1', '0.5'),
    ('2', '7.0'),
  ]


def test_events_are_read_by_tensorboard_and_resume_replaces(tmp_path):
  first = recorders.EventFile(tmp_path)
  for round_num in (1, 2, 3):
    _release(first, {'loss': float(round_num)}, round_num)
  resumed = recorders.EventFile(tmp_path)
  _release(resumed, {'loss': np.float32(0.5)}, 2)
  accumulator = event_accumulator.EventAccumulator(str(tmp_path))
  accumulator.Reload()
  events = [(e.step, e.value) for e in accumulator.Scalars('loss')]
  assert events == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('round,loss\n1.0,0.5\n', 'line 2'),
    ('round,loss\n1,0.5\n2,0.5,0.5\n', 'line 3'),
    ('round,loss\n1\n', 'line 2'),
    ('1,0.5\n2,0.5\n', 'line 1'),
    ('round,loss\n1,"0.5\n', 'unexpected end'),
  ],
)
def test_damaged_file_is_named_before_a_round(tmp_path, content, message):
  path = tmp_path / 'metrics.csv'
  path.write_text(content)
  found = rf'a damaged .*metrics\.csv \({message}'
  with pytest.raises(errors.RunFolderError, match=found):
    recorders.CsvFile(path)
  assert path.read_text() == content


@pytest.fixture
def recorder(tmp_path):
  made = recorders.Recorder(run_folder.RunFolder(tmp_path), ['a'], rounds=9)
  yield made
  made.close()


def test_folder_that_cannot_be_written_is_named(recorder, tmp_path):
  (tmp_path / 'metrics.csv').mkdir()
  with pytest.raises(errors.StorageError, match='cannot be written'):
    recorder.record({'train/a/loss': 1.0}, 1)


def test_events_that_cannot_be_written(tmp_path):
  folder = run_folder.RunFolder(tmp_path)
  folder.events.touch()
  with pytest.raises(errors.StorageError, match='cannot be written'):
    recorders.Recorder(folder, ['a'], rounds=1)


def test_events_that_fail_later_do_not_hide_the_first_error(
  recorder, monkeypatch
):
  def no_space(writer):
    raise tf.errors.ResourceExhaustedError(None, None, 'No space left')

  writer = event_file_writer.EventFileWriter
  with monkeypatch.context() as patch:
    patch.setattr(writer, 'flush', no_space)
    patch.setattr(writer, 'close', no_space)
    with pytest.raises(errors.StorageError, match='No space left'):
      recorder.record({'train/a/loss': 1.0}, 1)
    recorder.close()


def test_announced_round_is_recorded_by_the_run_that_resumes(
  recorder, tmp_path
):
  recorder.record({'loss': 0.5}, 1)
  recorder.announce({'loss': np.float32(0.25), 'accuracy': np.nan}, 2)
  recorder.catch_up(1)
  assert [row['round'] for row in _rows(tmp_path / 'metrics.csv')] == ['1']
  # The second of them dies right after it, too.
  for _ in range(2):
    resumed = recorders.Recorder(
      run_folder.RunFolder(tmp_path), ['a'], rounds=9
    )
    resumed.catch_up(2)
    resumed.close()
    assert _rows(tmp_path / 'metrics.csv') == [
      {'round': '1', 'loss': '0.5', 'accuracy': ''},
      {'round': '2', 'loss': '0.25', 'accuracy': 'nan'},
    ]


def test_progress_prints_evaluations(capsys):
  progress = recorders.ProgressBar(['a', 'b'], rounds=100)
  _release(progress, {'train/a/loss': 0.5, 'train/b/loss': 0.5}, 9)
  _release(progress, {'eval/a/accuracy': 0.125, 'eval/b/accuracy': 1.0}, 10)
  progress.close()
  written = capsys.readouterr().err
  assert 'round  10/100' in written
  assert 'a 12.50 %' in written
  assert 'round   9' not in written
