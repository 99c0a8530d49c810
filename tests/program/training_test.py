"""What a training leaves when it is killed, and how it goes on."""

import contextlib
import csv
import dataclasses
import os
import pathlib
import signal

import pytest

import tasks  # noqa: F401  Registers the presets.
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import files
from tff_codist import task as task_lib
from tff_codist.program import recorders
from tff_codist.program import run_folder
from tff_codist.program import stopping
from tff_codist.program import training


@pytest.fixture
def config():
  return config_lib.change(
    task_lib.presets['digits'](True),
    program={'rounds': 2, 'rounds_per_checkpoint': 1},
  )


@pytest.fixture
def private(config):
  """A configuration of which every release costs epsilon."""
  return config_lib.change(
    config,
    client={'weighting': 'uniform'},
    unlabelled={'sources': ('noise',)},
    pools={'sampling': 'poisson', 'cohort_size': (8, 2)},
    privacy={
      'mechanism': ('gaussian',),
      'noise_multiplier': (1.0,),
      'delta': 1e-3,
    },
  )


def _rows(run_dir):
  with open(run_dir / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def test_rows_survive_a_power_cut_as_long_as_the_checkpoint(
  in_process, config, tmp_path, monkeypatch
):
  fsync, synced = os.fsync, []

  def note(descriptor):
    fsync(descriptor)
    path = pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}'))
    if path.name == 'metrics.csv':
      synced.append(int(_rows(tmp_path)[-1]['round']))
    elif path.name.startswith('.round_') and '.sha256' not in path.name:
      synced.append(path.name.split('.')[1])

  monkeypatch.setattr(os, 'fsync', note)
  training.train(config, tmp_path)
  assert synced == [1, 'round_00000001', 2, 'round_00000002']


def test_private_run_that_is_killed_before_its_last_row_has_it(
  in_process, private, tmp_path, monkeypatch
):
  record = recorders.Recorder.record

  def die_before_the_last(self, metrics, round_num):
    if round_num == 2:
      raise KeyboardInterrupt
    record(self, metrics, round_num)

  with monkeypatch.context() as patch:
    patch.setattr(recorders.Recorder, 'record', die_before_the_last)
    with pytest.raises(KeyboardInterrupt):
      training.train(private, tmp_path)
  assert [row['round'] for row in _rows(tmp_path)] == ['0', '1']
  training.train(private, tmp_path)
  assert [row['round'] for row in _rows(tmp_path)] == ['0', '1', '2']
  assert float(_rows(tmp_path)[-1]['privacy/worst_client/epsilon']) > 0
  assert float(_rows(tmp_path)[-1]['eval/small/accuracy']) > 0
  folder = run_folder.RunFolder(tmp_path)
  assert folder.is_done
  assert not folder.announced.exists()


def test_private_run_does_not_train_a_released_round_again(
  in_process, private, tmp_path
):
  training.train(private, tmp_path)
  (tmp_path / 'DONE').unlink()
  newest = tmp_path / 'checkpoints' / 'round_00000002.npz'
  newest.write_bytes(newest.read_bytes()[:-1])
  before = (tmp_path / 'metrics.csv').read_bytes()
  with pytest.raises(errors.CheckpointError, match='released twice'):
    training.train(private, tmp_path)
  assert (tmp_path / 'metrics.csv').read_bytes() == before
  assert newest.exists()


def test_folder_that_another_configuration_took_meanwhile(
  in_process, config, tmp_path, monkeypatch
):
  lock = files.lock

  @contextlib.contextmanager
  def late(folder):
    with lock(folder):
      other = config_lib.to_json(dataclasses.replace(config, seed=7))
      (folder / 'config.json').write_text(other)
      yield

  monkeypatch.setattr(files, 'lock', late)
  with pytest.raises(errors.RunFolderError, match='seed: 7 there, 1 now'):
    training.train(config, tmp_path / 'run')


@pytest.mark.parametrize('has_checkpoint', [False, True])
def test_stop_while_data_loads_knows_of_the_checkpoints(
  config, tmp_path, monkeypatch, has_checkpoint
):
  if has_checkpoint:
    # Of an earlier call.
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'round_00000001.npz').touch()

  def build(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(training.experiment_lib, 'build_experiment', build)
  with pytest.raises(stopping.StopRequested) as raised:
    training.train(config, tmp_path)
  assert raised.value.has_checkpoint == has_checkpoint
