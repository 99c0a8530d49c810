"""Private training from start to end, on digits."""

import asyncio
import csv

import numpy as np
import pytest

import tasks  # noqa: F401  Registers the presets.
from tff_codist import codist
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import experiment as experiment_lib
from tff_codist import runtime
from tff_codist import task as task_lib
from tff_codist.privacy import ledger as ledger_lib
from tff_codist.program import checkpoints
from tff_codist.program import run_folder as run_folder_lib
from tff_codist.program import training


def _config(**privacy):
  fields = {
    'mechanism': ('gaussian',),
    'noise_multiplier': (1.0,),
    'delta': 1e-3,
    'reproducible_noise': True,
    **privacy,
  }
  return config_lib.change(
    task_lib.presets['digits'](True),
    client={'weighting': 'uniform'},
    unlabelled={'sources': ('noise',)},
    pools={'sampling': 'poisson', 'cohort_size': (8, 2)},
    program={'rounds': 4, 'rounds_per_checkpoint': 100},
    privacy=fields,
  )


def _rows(run_dir):
  with open(run_dir / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def _last_state(config, run_dir):
  manager = checkpoints.CheckpointManager(run_dir / 'checkpoints', keep=3)
  algorithm = experiment_lib.build_experiment(config).algorithm
  # A run closes its runtime.
  runtime.install('in_process')
  return asyncio.run(manager.load_latest(algorithm.initialize(config.seed)))


def test_run_records_epsilon_and_writes_its_statement(in_process, tmp_path):
  config = _config()
  training.train(config, tmp_path)
  rows = _rows(tmp_path)
  worst = [float(row['privacy/worst_client/epsilon'] or 0) for row in rows]
  assert 0 < worst[2] < worst[4]
  pools = experiment_lib.build_experiment(config).pools
  ledger = ledger_lib.Ledger(pools, config)
  state, _ = _last_state(config, tmp_path)
  releases = {name: int(pool.releases) for name, pool in state.items()}
  assert releases == {'small': 4, 'large': 4}
  assert worst[4] == ledger.metrics(releases)['privacy/worst_client/epsilon']
  assert (tmp_path / 'privacy.md').read_text() == ledger.statement(releases)
  # Metrics of the clients' training would be releases without noise.
  assert not any(name.endswith('train/small/loss') for name in rows[0])


def test_budget_ends_the_run(in_process, tmp_path):
  pools = experiment_lib.build_experiment(_config()).pools
  ledger = ledger_lib.Ledger(pools, _config())
  budget = ledger.metrics({'small': 3, 'large': 3})
  limit = budget['privacy/worst_client/epsilon'] * (1 - 1e-6)
  training.train(_config(max_epsilon=limit), tmp_path)
  assert [int(row['round']) for row in _rows(tmp_path)] == [0, 1, 2]
  assert (tmp_path / 'DONE').exists()
  last = float(_rows(tmp_path)[-1]['privacy/worst_client/epsilon'])
  assert 0 < last <= limit


def test_resumed_run_has_counted_every_release(
  in_process, tmp_path, monkeypatch
):
  """The program dies in round 3, without a word."""
  config = _config()
  training.train(config, tmp_path / 'whole')

  step = codist.FederatedPools.step
  calls = []

  def die_in_round_3(self, state, pseudo_gradients):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return step(self, state, pseudo_gradients)

  with monkeypatch.context() as patch:
    patch.setattr(codist.FederatedPools, 'step', die_in_round_3)
    with pytest.raises(KeyboardInterrupt):
      training.train(config, tmp_path / 'killed')
  state, version = _last_state(config, tmp_path / 'killed')
  # A checkpoint of every round, although one in a hundred was asked for.
  assert version == 2
  assert {int(pool.releases) for pool in state.values()} == {2}

  training.train(config, tmp_path / 'killed')
  one, other = (
    _last_state(config, tmp_path / name)[0] for name in ('whole', 'killed')
  )
  for name, pool in one.items():
    assert pool.releases == other[name].releases == 4
    for left, right in zip(pool.weights, other[name].weights):
      np.testing.assert_array_equal(left, right)


def test_budget_too_small_for_a_round_writes_nothing(in_process, tmp_path):
  with pytest.raises(errors.ConfigError, match='at least one round'):
    training.train(_config(max_epsilon=1e-3), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_tree_trains_on_cohorts_of_epochs(in_process, tmp_path):
  config = config_lib.change(
    _config(mechanism=('tree',)), pools={'sampling': 'epochs'}
  )
  training.train(config, tmp_path)
  text = (tmp_path / 'privacy.md').read_text()
  assert '| small | tree |' in text
  assert 'joins at most one of the' in text
  assert run_folder_lib.RunFolder(tmp_path).is_done
