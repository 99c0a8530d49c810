"""The CSV file and TensorBoard's events, also across a resume."""

import asyncio
import csv

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

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


@pytest.mark.parametrize('torn', ['', '3,0.', '3,0.125'])
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


def test_folder_that_cannot_be_written_is_named(tmp_path):
  folder = run_folder.RunFolder(tmp_path / 'run')
  progress = recorders.ProgressBar(['a'], rounds=1)
  recorder = recorders.Recorder(folder, progress)
  folder.metrics.mkdir()
  with pytest.raises(errors.StorageError, match='cannot be written'):
    recorder.record({'train/a/loss': 1.0}, 1)


def test_progress_prints_evaluations(capsys):
  progress = recorders.ProgressBar(['a', 'b'], rounds=100)
  _release(progress, {'train/a/loss': 0.5, 'train/b/loss': 0.5}, 9)
  _release(progress, {'eval/a/accuracy': 0.125, 'eval/b/accuracy': 1.0}, 10)
  progress.close()
  written = capsys.readouterr().err
  assert 'round  10/100' in written
  assert 'a 12.50 %' in written
  assert 'round   9' not in written
