"""From a configuration to pools, data and algorithm."""

import dataclasses

import numpy as np
import pytest

import tasks  # noqa: F401
from tasks import digits
from tff_codist import clients as clients_lib
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import experiment as experiment_lib
from tff_codist import task as task_lib
from tff_codist.program import run_folder
from tff_codist.program import training
from tff_codist.testing import toys


def _config(**groups):
  return config_lib.change(digits.preset(True), **groups)


def test_distillation_clients_train_nothing():
  config = _config(unlabelled={'clients_fraction': 0.1})
  built = experiment_lib.build_experiment(config)
  held_out = set(built.distillation_clients)
  assert len(held_out) == 4
  for pool in built.pools:
    assert not held_out & set(pool.client_ids)
  small, large = built.pools
  assert set(large.client_ids) < set(small.client_ids)
  assert len(small.client_ids) == 36
  # U holds exactly their inputs, in another order.
  inputs = [built.task.train.load(c)['x'] for c in built.distillation_clients]
  np.testing.assert_array_equal(
    np.unique(built.setting.unlabelled.x, axis=0),
    np.unique(np.concatenate(inputs), axis=0),
  )


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
      unlabelled={'sources': ('none',)},
    )
  )
  assert built.setting.unlabelled is None
  assert len(built.pools[0].client_ids) == digits.NUM_CLIENTS


def test_client_lists_make_the_pools(tmp_path):
  ids = experiment_lib.build_experiment(_config()).train.client_ids
  for name, chosen in (('a', ids[:12]), ('b', ids[3:8])):
    (tmp_path / name).write_text('\n'.join(chosen))
  built = experiment_lib.build_experiment(
    _config(pools={'client_lists': (str(tmp_path / 'a'), str(tmp_path / 'b'))})
  )
  assert [pool.client_ids for pool in built.pools] == [ids[:12], ids[3:8]]


def test_capacity_table_makes_the_pools(tmp_path):
  ids = [f'train_{i:02d}' for i in range(digits.NUM_CLIENTS)]
  table = tmp_path / 'capacities.csv'
  rows = [f'{client_id},{i}' for i, client_id in enumerate(ids)]
  table.write_text('\n'.join(['client_id,capacity', *rows]))
  built = experiment_lib.build_experiment(
    _config(
      pools={'capacity_table': str(table), 'min_capacity': (0.0, 25.0)},
    )
  )
  small, large = built.pools
  kept = set(ids) - set(built.distillation_clients)
  assert set(small.client_ids) == kept
  assert set(large.client_ids) == kept & set(ids[25:])


def test_disjoint_pools_share_no_client():
  built = experiment_lib.build_experiment(
    _config(
      pools={
        'clients_fraction': (0.7, 0.3),
        'disjoint': True,
        'cohort_size': (4, 3),
      }
    )
  )
  small, large = built.pools
  assert not set(small.client_ids) & set(large.client_ids)
  assert {*small.client_ids, *large.client_ids} == {*built.train.client_ids}


def test_validation_clients_are_nobody_elses():
  built = experiment_lib.build_experiment(
    _config(task={'validation_clients': 3}, pools={'cohort_size': (4, 3)})
  )
  held = set(built.validation_clients)
  assert len(held) == 3
  assert not held & set(built.distillation_clients)
  assert not held & set(built.train.client_ids)
  sizes = [len(built.task.train.load(c)['y']) for c in held]
  assert len(built.setting.validation['y']) == sum(sizes)
  assert list(built.setting.validation) == ['x', 'y']


def test_other_distillation_data_and_the_very_same_clients():
  def pools(weights):
    built = experiment_lib.build_experiment(
      _config(
        unlabelled={'sources': ('clients', 'noise'), 'weights': weights},
        algorithm={'name': 'fed_avg'},
      )
    )
    ids = [pool.client_ids for pool in built.pools]
    return built.distillation_clients, ids, set(built.setting.unlabelled.origin)

  *clients, sources = pools((0.0, 1.0))
  *others, other_sources = pools((1.0, 0.0))
  assert clients == others and len(clients[0]) == 8
  assert (sources, other_sources) == ({'noise'}, {'clients'})


def _evaluate_on_validation(num_clients=None, **groups):
  return _config(
    task={'validation_clients': 3, **groups.pop('task', {})},
    pools={'cohort_size': (4, 3)},
    program={
      'evaluate_on': 'validation',
      'evaluation_clients': num_clients,
      **groups.pop('program', {}),
    },
    **groups,
  )


def test_validation_clients_stand_in_for_test_clients():
  built = experiment_lib.build_experiment(_evaluate_on_validation())
  assert built.test.client_ids == built.validation_clients
  for client_id in built.validation_clients:
    np.testing.assert_array_equal(
      built.test.load(client_id)['y'], built.task.train.load(client_id)['y']
    )
  some = experiment_lib.build_experiment(_evaluate_on_validation(2))
  assert len(some.test.client_ids) == 2
  assert set(some.test.client_ids) < set(built.test.client_ids)
  assert some.validation_clients == built.validation_clients
  with pytest.raises(errors.ConfigError, match='4 of 3 validation clients'):
    experiment_lib.build_experiment(_evaluate_on_validation(4))
  config = _config(program={'evaluate_on': 'validation'})
  with pytest.raises(errors.ConfigError, match='--task'):
    experiment_lib.check_names(config)


def test_run_that_evaluates_on_validation_never_loads_a_test_client(
  in_process, tmp_path
):
  def never(client_id):
    raise AssertionError(f'test client {client_id} was loaded')

  @task_lib.tasks.register('digits_without_test')
  def _load_task(config):
    return task_lib.tasks['digits'](config)._replace(
      test=clients_lib.ClientData(['t'], never)
    )

  config = _evaluate_on_validation(
    task={'name': 'digits_without_test'},
    algorithm={'name': 'fed_avg'},
    program={'rounds': 1},
  )
  training.train(config, tmp_path / 'run')
  round_num, metrics = training.evaluate(tmp_path / 'run')
  assert round_num == 1
  assert 0 <= metrics['eval/large/accuracy'] <= 1
  # The guard guards: on test clients, the same run does not start.
  config = config_lib.change(config, program={'evaluate_on': 'test'})
  with pytest.raises(AssertionError, match='test client t was loaded'):
    training.train(config, tmp_path / 'on_test')


def test_evaluation_clients_are_a_fixed_sample():
  built = experiment_lib.build_experiment(
    _config(program={'evaluation_clients': 3})
  )
  assert len(built.test.client_ids) == 3
  assert set(built.test.client_ids) < set(built.task.test.client_ids)


@pytest.mark.parametrize(
  ('fields', 'idle'),
  [
    ({'unlabelled.clients_fraction': ('noise',)}, True),
    ({'unlabelled.clients_fraction': ('noise', 'clients')}, False),
    ({'unlabelled.domains': ('held_out',)}, False),
    ({'unlabelled.domains': ('tfds:mnist',)}, True),
    ({'unlabelled.weights': ('clients',)}, True),
    ({'unlabelled.max_examples': ('none',)}, True),
    ({'unlabelled.max_examples': ('noise',)}, False),
    ({'text.vocab_size': ('clients',)}, True),
    ({'task.data_dir': ('clients',)}, True),
    ({'pools.min_capacity': ('clients',)}, True),
    ({'distillation.teacher_weighting': ('clients',)}, True),
    ({'pools.disjoint': ('clients',)}, False),
    ({'public_private.split': ('clients',)}, True),
  ],
)
def test_field_that_nothing_reads_is_refused(fields, idle):
  ((field, sources),) = fields.items()
  config = _config(unlabelled={'sources': sources})
  if idle:
    with pytest.raises(errors.ConfigError, match=f'--{field}, which has no'):
      experiment_lib.check_no_idle_field(config, [field])
  else:
    experiment_lib.check_no_idle_field(config, [field])


def test_temperature_that_cancels_out_is_refused():
  l2 = _config(distillation={'loss': 'l2'})
  with pytest.raises(errors.ConfigError, match='loss l2, whose'):
    experiment_lib.check_no_idle_field(l2, ['distillation.temperature'])
  scaled = config_lib.change(l2, distillation={'temperature_exponent': 0})
  experiment_lib.check_no_idle_field(scaled, ['distillation.temperature'])


@pytest.mark.parametrize('quick', [True, False])
@pytest.mark.parametrize('name', task_lib.presets.names())
def test_presets_have_known_names(name, quick):
  config = task_lib.presets[name](quick)
  experiment_lib.check_names(config)
  assert config_lib.from_json(config_lib.to_json(config)) == config


def test_start_of_a_run_does_not_read_all_clients(tmp_path):
  loaded = set()

  def load(client_id):
    loaded.add(client_id)
    return toys.make_examples(100)

  @task_lib.tasks.register('twenty_thousand_clients')
  def _load_task(config):
    del config
    data = clients_lib.ClientData(map(str, range(20000)), load)
    return toys.make_task()._replace(train=data)

  config = _config(
    task={'name': 'twenty_thousand_clients'}, unlabelled={'max_examples': 10}
  )
  built = experiment_lib.build_experiment(config)
  folder = run_folder.RunFolder(tmp_path / 'run')
  folder.start(built, command='')
  # U is drawn from the 200 clients that have 20,000 examples; 500 of each of
  # two pools are counted; one more says what type examples have.
  assert len(loaded) <= 200 + 2 * 500 + 1
  loaded.clear()
  folder.start(built, command='')
  assert not loaded
