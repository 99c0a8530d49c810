"""What pools.json holds, and what must be equal to resume."""

import json

import numpy as np

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import experiment as experiment_lib
from tff_codist import unlabelled as unlabelled_lib
from tff_codist.program import membership
from tff_codist.testing import toys


def _experiment(**changes):
  """Returns an experiment on the toy clients 00 to 11, pools `a` and `b`."""
  setting = toys.make_setting()
  fields = {
    'config': config_lib.Config(),
    'task': setting.task,
    'train': setting.task.train,
    'test': setting.task.test,
    'pools': tuple(setting.pools),
    'distillation_clients': ('12', '13'),
    'validation_clients': (),
    'setting': setting,
    'algorithm': None,
  }
  return experiment_lib.Experiment(**{**fields, **changes})


def _by_domain(**changes):
  """Returns an experiment in which clients have questions and answers.

  Client 0 has a question with the labels 1 and 2, and two answers, 1 1 and 2
  with padding; client 1 has an answer, 2 2. Pool `a` trains on questions.
  """
  y = {'0': [[1, 2], [1, 1], [2, 0]], '1': [[2, 2]]}
  domain = {'0': [1, 0, 0], '1': [0]}

  def load(client_id):
    return clients.Examples(
      x=np.zeros((len(y[client_id]), 2), np.int32),
      y=np.array(y[client_id], np.int32),
      domain=np.array(domain[client_id], np.int32),
    )

  experiment = _experiment()
  a, b = experiment.pools
  task = experiment.task._replace(
    domains=('answers', 'questions'), pad_id=0, **changes
  )
  return experiment._replace(
    task=task,
    train=clients.ClientData(y, load),
    pools=(
      a._replace(client_ids=('0', '1'), domains=('questions',)),
      b._replace(client_ids=('0',)),
    ),
  )


def test_describe_counts_the_labels_of_every_client():
  experiment = _experiment()
  described = membership.describe(experiment)
  assert described == json.loads(json.dumps(described))
  assert described['num_classes'] == toys.NUM_CLASSES
  assert described['domains'] == []
  assert described['num_clients'] == described['counted_clients'] == 12
  a, b = described['pools']['a'], described['pools']['b']
  assert (a['model'], b['model']) == ('small', 'large')
  # Four features, three classes, with a bias: 4 * 3 + 3.
  assert (a['num_parameters'], a['cohort_size'], a['domains']) == (15, 5, [])
  assert (a['num_clients'], b['num_clients']) == (12, 6)
  assert list(a['clients']) == [f'{i:02}' for i in range(12)]
  assert list(b['clients']) == [f'{i:02}' for i in range(6, 12)]
  assert a['clients']['00'] == {'examples': 0, 'labels': [0, 0, 0]}
  labels = toys.make_examples(7, seed=7)['y']
  counts = [int((labels == label).sum()) for label in range(3)]
  assert a['clients']['07'] == {'examples': 7, 'labels': counts}
  assert b['clients']['07'] == a['clients']['07']
  assert described['overlaps'] == {'a & b': 6}
  assert described['disjoint'] is False
  assert described['groups'] == [
    {'pools': ['a'], 'clients': 6},
    {'pools': ['a', 'b'], 'clients': 6},
  ]
  assert described['distillation_clients'] == 2
  assert described['distillation_examples'] == 50
  assert described['validation_clients'] == 0
  assert described['fingerprint'] == membership.fingerprint(experiment)


def test_describe_of_disjoint_pools_without_distillation_data():
  a, b = toys.make_setting().pools
  a = a._replace(client_ids=a.client_ids[:6])
  described = membership.describe(
    _experiment(pools=(a, b), setting=toys.make_setting(unlabelled=False))
  )
  assert described['overlaps'] == {'a & b': 0}
  assert described['disjoint'] is True
  assert described['distillation_examples'] == 0
  assert described['distillation_origin'] == {}


def test_describe_says_where_the_distillation_data_comes_from():
  setting = toys.make_setting()
  mixed = unlabelled_lib.UnlabelledData(
    np.zeros((5, 4)), seed=1, origin={'clients': 3, 'noise': 2}
  )
  setting = setting._replace(unlabelled=mixed)
  described = membership.describe(_experiment(setting=setting))
  assert described['distillation_examples'] == 5
  assert described['distillation_origin'] == {'clients': 3, 'noise': 2}


def test_describe_loads_a_sample_that_only_the_seed_decides():
  experiment, loaded = _experiment(), []
  pool = experiment.pools[0]._replace(
    client_ids=tuple(f'{i:05}' for i in range(20_000))
  )

  def load(client_id):
    loaded.append(client_id)
    return toys.make_examples(1)

  train = clients.ClientData(pool.client_ids, load)
  experiment = experiment._replace(train=train, pools=(pool,))
  described = membership.describe(experiment, max_clients=3)
  sample = list(described['pools']['a']['clients'])
  assert sorted(loaded) == sample
  assert len(sample) == described['counted_clients'] == 3
  assert described['pools']['a']['num_clients'] == 20_000
  again = membership.describe(experiment, max_clients=3)
  assert again == described
  other = experiment._replace(config=config_lib.Config(seed=2))
  others = membership.describe(other, max_clients=3)
  assert list(others['pools']['a']['clients']) != sample


def test_describe_counts_the_examples_of_a_pools_domains():
  pools = membership.describe(_by_domain())['pools']
  assert pools['a']['domains'] == ['questions']
  assert pools['a']['clients'] == {
    '0': {'examples': 1, 'domains': [0, 1], 'labels': [0, 1, 1]},
    '1': {'examples': 0, 'domains': [0, 0], 'labels': [0, 0, 0]},
  }
  assert pools['b']['domains'] == []
  assert pools['b']['clients'] == {
    '0': {'examples': 3, 'domains': [2, 1], 'labels': [0, 3, 2]}
  }


def test_describe_counts_no_labels_of_a_vocabulary():
  described = membership.describe(_by_domain(num_classes=10_004))
  assert described['domains'] == ['answers', 'questions']
  counts = described['pools']['b']['clients']['0']
  assert counts == {'examples': 3, 'domains': [2, 1]}


def test_fingerprint_loads_no_client():
  def load(client_id):
    raise AssertionError(f'{client_id} is loaded')

  train = clients.ClientData(toys.make_task().train.client_ids, load)
  found = membership.fingerprint(_experiment(train=train))
  assert found == membership.fingerprint(_experiment())
  assert found == json.loads(json.dumps(found))


def test_fingerprint_changes_with_what_a_run_depends_on():
  setting = toys.make_setting()
  a, b = setting.pools
  other_data = unlabelled_lib.UnlabelledData(setting.unlabelled.x + 1, seed=1)
  found = [
    membership.fingerprint(_experiment(**changes))
    for changes in (
      {},
      {'distillation_clients': ('12',)},
      {'validation_clients': ('14',)},
      {'pools': (a, b._replace(client_ids=b.client_ids[1:]))},
      {'pools': (a,)},
      {'setting': setting._replace(unlabelled=other_data)},
      {'setting': setting._replace(unlabelled=None)},
    )
  ]
  assert all(found.count(one) == 1 for one in found)
