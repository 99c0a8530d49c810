"""The configuration tree: ranges, JSON, differences."""

import dataclasses
import json

import pytest

from tff_codist import config as config_lib
from tff_codist import errors


@pytest.mark.parametrize(
  ('group', 'field', 'value'),
  [
    (config_lib.TaskConfig, 'validation_clients', -1),
    (config_lib.TextConfig, 'vocab_size', 0),
    (config_lib.TextConfig, 'sequence_length', 1),
    (config_lib.TextConfig, 'max_sentences', 0),
    (config_lib.UnlabelledConfig, 'sources', ()),
    (config_lib.UnlabelledConfig, 'sources', ('noise', 'noise')),
    (config_lib.UnlabelledConfig, 'sources', ('none', 'noise')),
    (config_lib.UnlabelledConfig, 'weights', (1.0, 2.0)),
    (config_lib.UnlabelledConfig, 'weights', (0.0,)),
    (config_lib.UnlabelledConfig, 'weights', (-1.0,)),
    (config_lib.UnlabelledConfig, 'clients_fraction', 1.0),
    (config_lib.UnlabelledConfig, 'clients_fraction', 0.0),
    (config_lib.UnlabelledConfig, 'max_examples', 0),
    (config_lib.PoolsConfig, 'names', ()),
    (config_lib.PoolsConfig, 'names', ('a', 'a')),
    (config_lib.PoolsConfig, 'names', ('a/b', 'c')),
    (config_lib.PoolsConfig, 'clients_fraction', (1.0, 0.0)),
    (config_lib.PoolsConfig, 'clients_fraction', (1.5,)),
    (config_lib.PoolsConfig, 'clients_fraction', (1.0, 0.5, 0.1)),
    (config_lib.PoolsConfig, 'disjoint', True),
    (config_lib.PoolsConfig, 'cohort_size', (0,)),
    (config_lib.FedMDConfig, 'consensus_weights', (0.0,)),
    (config_lib.FedMDConfig, 'consensus_weights', (1.0, -1.0)),
    (config_lib.FedMDConfig, 'validation_fraction', 1.0),
    (config_lib.FedMDConfig, 'alignment_size', 0),
    (config_lib.PublicPrivateConfig, 'split', 'skewed'),
    (config_lib.PublicPrivateConfig, 'clients', 0),
    (config_lib.PoolsConfig, 'models', ('a', 'b', 'c')),
    (config_lib.PoolsConfig, 'client_lists', ('only_one',)),
    (config_lib.PoolsConfig, 'min_capacity', (float('nan'),)),
    (config_lib.PoolsConfig, 'domains', ('a', 'b', 'c')),
    (config_lib.ClientConfig, 'learning_rate', 0.0),
    (config_lib.ClientConfig, 'learning_rate', float('nan')),
    (config_lib.ClientConfig, 'momentum', 1.0),
    (config_lib.ClientConfig, 'epochs', 0),
    (config_lib.ClientConfig, 'batch_size', 0),
    (config_lib.ClientConfig, 'weighting', 'example'),
    (config_lib.ServerConfig, 'learning_rate', -1.0),
    (config_lib.ServerConfig, 'beta1', 1.0),
    (config_lib.ServerConfig, 'beta2', -0.1),
    (config_lib.ServerConfig, 'epsilon', 0.0),
    (config_lib.ServerConfig, 'initial_accumulator', -1.0),
    (config_lib.ServerConfig, 'flavor', 'keras'),
    (config_lib.DistillationConfig, 'temperature', 0.0),
    (config_lib.DistillationConfig, 'temperature_exponent', 1),
    (config_lib.DistillationConfig, 'batch_size', 0),
    (config_lib.DistillationConfig, 'teacher_weighting', 'size'),
    (config_lib.DistillationConfig, 'min_teacher_accuracy', 1.5),
    (config_lib.DistillationConfig, 'max_teacher_entropy', -0.1),
    (config_lib.PeriodicConfig, 'period', 0),
    (config_lib.PeriodicConfig, 'steps', -1),
    (config_lib.PeriodicConfig, 'learning_rate', 0.0),
    (config_lib.MergedConfig, 'distillation_weight', (1.1,)),
    (config_lib.MergedConfig, 'distillation_weight', (-0.1,)),
    (config_lib.MergedConfig, 'steps', 0),
    (config_lib.MergedConfig, 'warmup_rounds', -1),
    (config_lib.ProgramConfig, 'rounds', 0),
    (config_lib.ProgramConfig, 'rounds', 2.5),
    (config_lib.ProgramConfig, 'rounds', True),
    (config_lib.ProgramConfig, 'rounds', '5'),
    (config_lib.PoolsConfig, 'cohort_size', 10),
    (config_lib.PoolsConfig, 'models', 'small'),
    (config_lib.ProgramConfig, 'rounds_per_evaluation', 0),
    (config_lib.ProgramConfig, 'checkpoints_kept', 1),
    (config_lib.ProgramConfig, 'evaluation_clients', 0),
    (config_lib.ProgramConfig, 'evaluate_on', 'train'),
  ],
)
def test_value_outside_its_range_names_the_flag(group, field, value):
  with pytest.raises(errors.ConfigError, match=field) as caught:
    group(**{field: value})
  assert caught.value.exit_code == 2


def test_shares_leave_out_sources_of_weight_0():
  def shares(*weights):
    sources = ('clients', 'held_out', 'noise')
    return config_lib.UnlabelledConfig(sources=sources, weights=weights).shares

  assert shares(0.0, 3.0, 1.0) == {'held_out': 0.75, 'noise': 0.25}
  assert shares(2.0) == pytest.approx(
    {'clients': 1 / 3, 'held_out': 1 / 3, 'noise': 1 / 3}
  )
  with pytest.raises(errors.ConfigError, match='at least one number above 0'):
    shares(0.0, 0.0, 0.0)


def test_rescale_needs_a_weight_below_one():
  with pytest.raises(errors.ConfigError, match='rescale'):
    config_lib.MergedConfig(distillation_weight=(1.0,), rescale=True)


def test_one_weight_for_each_pool_or_one_for_all():
  pools = config_lib.PoolsConfig(names=('x', 'y'))
  with pytest.raises(errors.ConfigError, match='one for each pool of x, y'):
    pools.per_pool('f', (1, 2, 3))
  assert pools.per_pool('f', (1,)) == {'x': 1, 'y': 1}
  assert pools.per_pool('f', (1, 2)) == {'x': 1, 'y': 2}


def test_json_round_trip():
  config = config_lib.Config(
    server=config_lib.ServerConfig(initial_accumulator=0.5), seed=7
  )
  assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize('text', ['{', '[]', '{"seed": 1}', '{}', 'null'])
def test_json_that_is_no_configuration_is_refused(text):
  with pytest.raises(errors.ConfigError):
    config_lib.from_json(text)


def test_json_of_another_version_names_only_the_difference():
  tree = json.loads(config_lib.to_json(config_lib.Config()))
  del tree['program']['evaluate_on'], tree['fd'], tree['seed']
  tree['server']['nesterov'] = True
  tree['old'] = {'field': 1}
  with pytest.raises(errors.ConfigError) as caught:
    config_lib.from_json(json.dumps(tree))
  assert caught.value.found == (
    'a configuration without fd, seed, program.evaluate_on and with unknown '
    'old, server.nesterov'
  )
  tree = json.loads(config_lib.to_json(config_lib.Config()))
  tree['server'] = 'fedadam'
  with pytest.raises(errors.ConfigError, match='configuration without server;'):
    config_lib.from_json(json.dumps(tree))


def test_differences_name_the_fields():
  left = config_lib.Config()
  right = dataclasses.replace(
    left, seed=2, server=dataclasses.replace(left.server, epsilon=1.0)
  )
  assert config_lib.differences(left, right) == {
    'server.epsilon': (1e-3, 1.0),
    'seed': (1, 2),
  }
  assert config_lib.differences(left, left) == {}
