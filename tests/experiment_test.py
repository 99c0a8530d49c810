"""From a configuration to pools, data and algorithm."""

import dataclasses

import numpy as np
import pytest

import tasks  # noqa: F401
from tasks import digits
from tff_codist import config as config_lib
from tff_codist import experiment as experiment_lib
from tff_codist import task as task_lib


def _config(**groups):
  config = digits.preset(True)
  for group, fields in groups.items():
    changed = dataclasses.replace(getattr(config, group), **fields)
    config = dataclasses.replace(config, **{group: changed})
  return config


def test_distillation_clients_train_nothing():
  config = _config(task={'distillation_clients_fraction': 0.1})
  built = experiment_lib.build_experiment(config)
  held_out = set(built.distillation_clients)
  assert len(held_out) == 4
  for pool in built.pools:
    assert not held_out & set(pool.client_ids)
  small, large = built.pools
  assert set(large.client_ids) < set(small.client_ids)
  assert len(small.client_ids) == 36
  # U holds exactly their inputs.
  inputs = [built.task.train.load(c)['x'] for c in built.distillation_clients]
  np.testing.assert_array_equal(built.unlabelled.x, np.concatenate(inputs))


def test_split_depends_on_the_seed_and_not_on_the_algorithm():
  def clients(**groups):
    built = experiment_lib.build_experiment(_config(**groups))
    return built.distillation_clients, [p.client_ids for p in built.pools]

  assert clients() == clients(algorithm={'name': 'fed_avg'})
  other = dataclasses.replace(digits.preset(True), seed=2)
  assert (
    experiment_lib.build_experiment(other).distillation_clients
    != (clients()[0])
  )


def test_fed_avg_needs_no_distillation_data():
  built = experiment_lib.build_experiment(
    _config(
      algorithm={'name': 'fed_avg'},
      task={'distillation_clients_fraction': 0.0},
    )
  )
  assert built.unlabelled is None
  assert len(built.pools[0].client_ids) == digits.NUM_CLIENTS


def test_client_lists_make_the_pools(tmp_path):
  ids = experiment_lib.build_experiment(_config()).train.client_ids
  for name, chosen in (('a', ids[:12]), ('b', ids[3:8])):
    (tmp_path / name).write_text('\n'.join(chosen))
  built = experiment_lib.build_experiment(
    _config(pools={'client_lists': (str(tmp_path / 'a'), str(tmp_path / 'b'))})
  )
  assert [pool.client_ids for pool in built.pools] == [ids[:12], ids[3:8]]


@pytest.mark.parametrize('quick', [True, False])
@pytest.mark.parametrize('name', task_lib.presets.names())
def test_presets_have_known_names(name, quick):
  config = task_lib.presets[name](quick)
  experiment_lib.check_names(config)
  assert config_lib.from_json(config_lib.to_json(config)) == config
