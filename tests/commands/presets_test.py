"""Every preset's quick form, through bin/train.py on the real data."""

import csv
import os
import pathlib
import runpy

import pytest

import baselines  # noqa: F401  Registers their presets.
import tasks  # noqa: F401  Registers the presets.
from tff_codist import task as task_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FILES = {
  'cifar100': 'cifar100.sqlite',
  'cifar_subclasses': 'cifar100.sqlite',
  'emnist': 'emnist_all.sqlite',
  'mnist_letters': 'emnist_all.sqlite',
  'stackoverflow': 'stackoverflow.sqlite',
}


def _missing(config):
  """Returns what of a preset's data is not on this machine, if anything."""
  data_dir = os.environ.get('TFF_CODIST_DATA_DIR', '')
  file_name = _FILES.get(config.task.name)
  if file_name and not os.path.exists(os.path.join(data_dir, file_name)):
    return f'TFF_CODIST_DATA_DIR names no directory with {file_name}'
  public = {'mnist_letters': 'mnist', 'cifar_subclasses': 'cifar10'}
  names = [source.partition(':')[2] for source in config.unlabelled.sources]
  for name in (*names, public.get(config.task.name)):
    tfds_dir = os.environ.get('TFDS_DATA_DIR', '')
    if name and not os.path.exists(os.path.join(tfds_dir, name)):
      return f'TFDS_DATA_DIR names no directory with {name}'
  return None


@pytest.mark.parametrize('name', task_lib.presets.names())
def test_quick_form_trains_every_pool(name, in_process, tmp_path, capsys):
  config = task_lib.presets[name](True)
  if _missing(config):
    pytest.skip(_missing(config))
  main = runpy.run_path(str(_ROOT / 'bin' / 'train.py'))['main']
  main(['--preset', name, '--quick', '--run_dir', str(tmp_path / 'run')])
  assert (tmp_path / 'run' / 'DONE').exists()
  with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [int(row['round']) for row in rows] == [
    *range(config.program.rounds + 1)
  ]
  summary = capsys.readouterr().out
  for pool in config.pools.names:
    assert pool in summary
    assert float(rows[-1][f'train/{pool}/examples']) > 0
    assert 0 <= float(rows[-1][f'eval/{pool}/accuracy']) <= 1
    if config.algorithm.name == 'merged_codist':
      # Everybody has been taught in the last round.
      assert float(rows[-1][f'exchange/{pool}/distillation_norm']) > 0
    if config.pools.domains != ('all',):
      assert f'eval/{pool}/out_of_domain/accuracy' in rows[0]
