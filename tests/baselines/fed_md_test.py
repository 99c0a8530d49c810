"""FedMD: personal models that agree on the logits of public data."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from baselines import fed_md
from tff_codist import client_store
from tff_codist import client_update
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist.testing import conformance
from tff_codist.testing import toys

_NUM_PUBLIC = 200
_SIZE = 30
_ARCHITECTURE = fed_md.Architecture
_INITIALIZE = models.Model.initialize


def _config(pools=('a', 'b'), **groups):
  fields = {
    'alignment_size': _SIZE,
    'learning_rate': 1e-2,
    'digest_batch_size': 16,
    'warmup_epochs': 20,
    'warmup_batch_size': 20,
    'transfer_epochs': 2,
    **groups.pop('fed_md', {}),
  }
  return config_lib.change(
    config_lib.Config(),
    pools={
      'names': tuple(pools),
      'models': ('small',),
      'clients_fraction': (1.0,),
    },
    algorithm={'name': 'fed_md'},
    fed_md=fields,
    **groups,
  )


def _with_public(setting, num_examples=_NUM_PUBLIC):
  public = toys.make_examples(num_examples, seed=7)
  return setting._replace(task=setting.task._replace(public=public))


def _setting(*model_names):
  return _with_public(toys.make_setting(model_names, unlabelled=False))


def _build(setting, **groups):
  names = [pool.name for pool in setting.pools]
  return fed_md.build_fed_md(_with_public(setting), _config(names, **groups))


def _steps(setting, **groups):
  names = [pool.name for pool in setting.pools]
  return fed_md.FedMD(setting, _config(names, **groups))


@pytest.fixture(autouse=True)
def _built_once(monkeypatch):
  """Builds architectures, and draws weights, once for all tests.

  Drawing sets TensorFlow's global seed, after which it optimizes every function
  again.
  """
  monkeypatch.setattr(fed_md, 'Architecture', _architecture)
  monkeypatch.setattr(
    models.Model,
    'initialize',
    lambda model, seed, pool='': _draw(model.name, seed, pool),
  )


@functools.cache
def _draw(name, seed, pool):
  return _INITIALIZE(models.Model(name, toys.MODELS[name]), seed, pool)


def _architecture(model, examples_type, preprocess, config, *, alignment_size):
  del examples_type, preprocess
  # These fields are not an architecture's.
  fields = dataclasses.replace(
    config.fed_md,
    consensus_weights=(1.0,),
    warmup_epochs=1,
    warmup_min_gain=0.0,
    warmup_patience=1,
  )
  return _build_architecture(model.name, fields, config.client, alignment_size)


@functools.cache
def _build_architecture(name, fields, client, alignment_size):
  return _ARCHITECTURE(
    models.Model(name, toys.MODELS[name]),
    client_update.examples_type(toys.make_examples(1)),
    toys.preprocess,
    config_lib.Config(fed_md=fields, client=client),
    alignment_size=alignment_size,
  )


def _cohort(*client_ids):
  examples = [
    toys.seeded(toys.make_examples(9, seed=int(i)), (int(i), 1))
    for i in client_ids
  ]
  return clients.Cohort(examples, client_ids)


def _linear(*logits):
  """Returns a small model that answers the same to everything."""
  return (
    np.zeros((toys.NUM_FEATURES, 3), np.float32),
    np.array(logits, np.float32),
  )


def _members(steps, **pool_weights):
  """Returns clients that have been transferred and have these models."""
  cohorts = {
    name: _cohort(*toys.COMMON_CLIENTS[: len(own)])
    for name, own in pool_weights.items()
  }
  return {
    name: [
      member._replace(
        state=member.state._replace(
          weights=weights, is_transferred=np.array(True)
        )
      )
      for member, weights in zip(own, pool_weights[name])
    ]
    for name, own in steps.gather(steps.initialize(1), cohorts).items()
  }


def _consensus(steps, members, x):
  return steps.agree(members, x)[1]


def _states(steps, state, pool, *client_ids):
  """Returns what clients have in a state."""
  cohorts = {name: _cohort() for name in state.clients}
  cohorts[pool] = _cohort(*client_ids)
  return [member.state for member in steps.gather(state, cohorts)[pool]]


def _run(built, setting, rounds, state=None):
  return conformance.run_rounds(built, setting, rounds, state=state)


@pytest.mark.parametrize('check', conformance.PROPERTIES)
def test_conformance(in_process, check):
  check(_build)


def test_resume_is_bit_equal(in_process, tmp_path):
  conformance.check_resume_is_bit_equal(_build, tmp_path)


def test_runtimes_agree():
  conformance.check_runtimes_agree(_build)


def test_types_are_those_that_are_promised():
  setting = _setting('small')
  built = fed_md.Architecture(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    _config(),
    alignment_size=_SIZE,
  )
  for computation, announced, uploaded in (
    (
      built.communicate,
      '<x=float32[30,4]>@SERVER',
      '<logits=float32[30,3],clients=float32>@SERVER',
    ),
    (
      built.collaborate,
      '<x=float32[30,4],consensus=float32[30,3]>@SERVER',
      '<digest_loss=float32,clients=float32>@SERVER',
    ),
  ):
    parameter = computation.type_signature.parameter
    result = computation.type_signature.result
    assert str(parameter[0]) == announced
    assert str(result['uploads']) == uploaded
    state = parameter[1].member['state']
    assert str(state.weights) == '<float32[4,3],float32[3]>'
    assert str(state.is_transferred) == 'bool'
    assert result['states'] == tff.FederatedType(state, tff.CLIENTS)


def test_agreement_loss_is_the_mean_absolute_error():
  """Differences 1, 2, 0 and 3 in two classes of two examples."""
  logits = tf.constant([[1.0, 5.0], [2.0, -1.0]])
  consensus = tf.constant([[2.0, 3.0], [2.0, 2.0]])
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = fed_md.agreement_loss(logits, consensus)
  assert loss == 6 / 4
  np.testing.assert_allclose(
    tape.gradient(loss, logits), [[-0.25, 0.25], [0, -0.25]]
  )


def test_rounding_errors_are_no_disagreement():
  consensus = tf.constant([[3.0, 100.0]])
  logits = np.nextafter(consensus, 200, dtype=np.float32)
  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = fed_md.agreement_loss(logits, consensus)
  assert loss == 0
  np.testing.assert_array_equal(tape.gradient(loss, logits), [[0, 0]])


def test_sample_has_each_class_with_its_share():
  labels = np.repeat([0, 1, 2], [50, 30, 20])
  rng = np.random.default_rng(1)
  for size in (1, 7, 10, 55, 100):
    rows = fed_md.stratified(labels, size, rng)
    assert len(set(rows)) == len(rows) == size
    counts = np.bincount(labels[rows], minlength=3)
    assert (np.abs(counts - size * np.array([0.5, 0.3, 0.2])) < 1).all()


def test_every_round_draws_other_public_examples(in_process):
  steps = _steps(_setting('small'))
  first = steps.draw(1)
  assert first.shape == (_SIZE, toys.NUM_FEATURES)
  np.testing.assert_array_equal(first, steps.draw(1))
  assert not np.array_equal(
    np.unique(first, axis=0), np.unique(steps.draw(2), axis=0)
  )


def test_public_examples_that_are_set_aside_are_never_drawn(in_process):
  setting = _setting('small')
  public = setting.task.public
  steps = _steps(setting, fed_md={'alignment_size': 5000})
  drawn = [steps.draw(round_num) for round_num in (1, 2, 3)]
  # A tenth of each class is set aside, up to rounding.
  known = {row.tobytes(): label for row, label in zip(*public.values())}
  labels = [known[row.tobytes()] for row in drawn[0]]
  expected = 0.9 * np.bincount(public['y'])
  assert (np.abs(np.bincount(labels) - expected) <= 1).all()
  rows = [{row.tobytes() for row in x} for x in drawn]
  assert rows[0] == rows[1] == rows[2]
  assert len(rows[0]) == 0.9 * _NUM_PUBLIC


def test_consensus_is_the_mean_of_logits(in_process):
  """((4, 0, 0) + (0, 1, 0) + (2, 2, 3)) / 3, by hand."""
  setting = _setting('small', 'small')
  steps = _steps(setting)
  members = _members(
    steps, a=[_linear(4, 0, 0), _linear(0, 1, 0)], b=[_linear(2, 2, 3)]
  )
  consensus = _consensus(steps, members, steps.draw(1))
  np.testing.assert_allclose(
    consensus, np.broadcast_to([2, 1, 1], (_SIZE, 3)), atol=1e-6
  )


def test_order_and_pools_do_not_matter_to_the_consensus(in_process):
  steps = _steps(_setting('small', 'small'))
  model = toys.make_setting(['small']).pools[0].model
  models_ = [model.initialize(i) for i in range(4)]
  x = steps.draw(1)

  def agree(a, b):
    return _consensus(steps, _members(steps, a=a, b=b), x)

  expected = agree(models_, [])
  for a, b in (
    (models_[::-1], []),
    (models_[:1], models_[1:]),
    ([], models_),
    (models_[2:], models_[:2]),
  ):
    np.testing.assert_allclose(agree(a, b), expected, atol=1e-6)


def test_clients_without_finite_logits_have_no_say(in_process):
  steps = _steps(_setting('small'))
  x = steps.draw(1)
  broken = _linear(np.nan, 0, 0)
  members = _members(steps, a=[_linear(1, 2, 3), broken])
  consensus = _consensus(steps, members, x)
  np.testing.assert_allclose(consensus[0], [1, 2, 3], atol=1e-6)
  assert _consensus(steps, _members(steps, a=[broken]), x) is None


def test_with_weight_on_one_pool_all_imitate_it(in_process):
  setting = _setting('small', 'small')
  steps = _steps(
    setting,
    fed_md={
      'consensus_weights': (0.0, 2.0),
      'digest_epochs': 100,
      'learning_rate': 3e-2,
    },
  )
  start = {'a': [_linear(0, 0, 0), _linear(0, 3, 0)], 'b': [_linear(4, 0, -2)]}
  members = _members(steps, **start)
  x = steps.draw(1)
  consensus = _consensus(steps, members, x)
  np.testing.assert_allclose(
    consensus, np.broadcast_to([4, 0, -2], (_SIZE, 3)), atol=1e-6
  )
  learned, _ = steps.collaborate(members, x, consensus)
  for member in learned['a'] + learned['b']:
    # One step of revisiting is left between them.
    np.testing.assert_allclose(
      _consensus(steps, {'a': [], 'b': [member]}, x), consensus, atol=0.4
    )


def test_clients_that_agree_have_nothing_to_digest(in_process):
  setting = _setting('large', 'large')
  steps = _steps(setting)
  weights = setting.pools[0].model.initialize(3)
  members = _members(steps, a=[weights] * 3, b=[weights] * 2)
  x = steps.draw(1)
  consensus = _consensus(steps, members, x)
  learned, metrics = steps.collaborate(members, x, consensus)
  for name in 'ab':
    assert metrics[f'exchange/{name}/digest_loss'] == 0
    for member in learned[name]:
      moments = member.state.digest['accumulator']
      assert not any(np.any(moment) for moment in moments)


def test_single_client_only_revisits(in_process):
  setting = _setting('large')
  cohorts = {'a': _cohort('07')}
  found = []
  for epochs in (1, 0):
    built = _build(setting, fed_md={'digest_epochs': epochs})
    state = built.initialize(1)
    for round_num in (1, 2, 3):
      state, metrics = built.next(state, cohorts, round_num)
      assert metrics['exchange/a/digest_loss'] == 0
    found.append(built.models(state)['a'])
  for one, other in zip(tf.nest.flatten(found[0]), tf.nest.flatten(found[1])):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_without_digestion_nobody_learns_from_others(in_process):
  setting = _setting('small', 'large')
  for epochs, is_alone in ((0, True), (1, False)):
    built = _build(setting, fed_md={'digest_epochs': epochs})
    found = []
    for others in (_cohort('08'), _cohort('09', '10')):
      state = built.initialize(1)
      for round_num in (1, 2):
        cohorts = {'a': _cohort('07'), 'b': others}
        state, _ = built.next(state, cohorts, round_num)
      found.append(state.clients['a'][7].tobytes())
    assert (found[0] == found[1]) == is_alone


def test_traffic_is_logits_whatever_the_model(in_process):
  setting = toys.make_setting(('small', 'large'), unlabelled=False)
  assert _build(setting).traffic == dict.fromkeys('ab', (_SIZE * 3, _SIZE * 3))
  # All public examples that are not set aside, a tenth of 200.
  everything = _build(_setting('small'), fed_md={'alignment_size': 5000})
  assert everything.traffic == {'a': (180 * 3, 180 * 3)}


def test_both_adams_survive_a_checkpoint(in_process, tmp_path):
  path = tmp_path / 'clients.sqlite'
  setting = _setting('small')._replace(
    client_store=client_store.ClientStore(path)
  )
  built = _build(setting)
  state = built.initialize(1)
  for round_num in (1, 2):
    state, _ = built.next(state, {'a': _cohort('07', '08')}, round_num)
  setting.client_store.keep(2, built.client_states(state))
  setting.client_store.close()
  steps = _steps(setting._replace(client_store=client_store.ClientStore(path)))
  for client in _states(steps, state, 'a', '07', '08'):
    # Two rounds of 30 examples in batches of 16; two epochs of transfer and
    # two of revisiting, each a single batch of 9 examples.
    assert client.digest['step'] == 2 * 2
    assert client.train['step'] == 2 + 2
    for adam in (client.digest, client.train):
      assert all(np.any(moment) for moment in adam['accumulator'])
      assert all(np.any(moment) for moment in adam['preconditioner'])


def test_warm_up_is_done_once_and_is_where_clients_join(in_process):
  setting = _setting('small', 'large')
  steps, built = _steps(setting), _build(setting)
  before = built.initialize(1)
  assert not before.is_warm
  # Who has not joined is evaluated as it would join.
  toys.assert_same(built.models(before)['a'][0], before.start['a'])
  warm, metrics = steps.warm_up(before)
  for name in 'ab':
    assert 0 < metrics[f'exchange/{name}/warmup_epochs'] <= 20
    assert metrics[f'exchange/{name}/public_accuracy'] > 0.7
  again, nothing = steps.warm_up(warm)
  toys.assert_same(again, warm)
  assert not nothing
  state = before
  for round_num in (1, 2):
    cohorts = {'a': _cohort('07'), 'b': _cohort('08')}
    state, _ = built.next(state, cohorts, round_num)
    toys.assert_same(state.start, warm.start)


def test_client_that_joins_has_learned_nothing_yet(in_process):
  (pool,) = _setting('small').pools
  architecture = _build_architecture(
    'small', _config().fed_md, config_lib.ClientConfig(), _SIZE
  )
  for seed in (1, 2):
    weights = pool.model.initialize(seed)
    state = architecture.join(weights)
    toys.assert_same(state.weights, weights)
    assert not state.is_transferred
    for adam in (state.digest, state.train):
      assert adam['step'] == 0
      for moments in (adam['accumulator'], adam['preconditioner']):
        toys.assert_same(moments, tuple(map(np.zeros_like, weights)))


def test_warm_up_ends_without_a_gain_and_keeps_the_best(in_process):
  steps = _steps(
    _setting('small'),
    fed_md={'warmup_min_gain': 0.999, 'warmup_patience': 4},
  )
  before = steps.initialize(1)
  after, metrics = steps.warm_up(before)
  assert metrics['exchange/a/warmup_epochs'] == 4
  toys.assert_same(after.start, before.start)


def test_clients_may_join_late_and_miss_rounds(in_process):
  setting = _setting('small')
  steps, built = _steps(setting), _build(setting)
  state = built.initialize(1)
  state, _ = built.next(state, {'a': _cohort('07', '08')}, 1)
  after, _ = built.next(state, {'a': _cohort('08', '09')}, 2)
  missed, present, joined = _states(steps, after, 'a', '07', '08', '09')
  toys.assert_same(missed, *_states(steps, state, 'a', '07'))
  # Transfer of two steps, and one for each round of revisiting.
  assert (missed.train['step'], present.train['step']) == (3, 4)
  assert joined.train['step'] == 3
  never = steps.gather(after, {'a': _cohort('10')})['a'][0].state
  assert not never.is_transferred
  toys.assert_same(never.weights, after.start['a'])


def test_round_without_clients_only_warms_up(in_process):
  setting = _setting('small', 'large')
  built = _build(setting)
  cohorts = {'a': _cohort(), 'b': _cohort()}
  state, metrics = built.next(built.initialize(1), cohorts, 1)
  assert state.is_warm
  assert not any(map(np.any, state.clients.values()))
  assert metrics['train/a/clients'] == metrics['train/b/clients'] == 0


def test_round_without_a_weight_only_transfers(in_process):
  setting = _setting('small', 'large')
  groups = {'fed_md': {'consensus_weights': (0.0, 1.0)}}
  built, steps = _build(setting, **groups), _steps(setting, **groups)
  cohorts = {'a': _cohort('07'), 'b': _cohort()}
  state, metrics = built.next(built.initialize(1), cohorts, 1)
  (own,) = _states(steps, state, 'a', '07')
  assert own.is_transferred
  assert (own.train['step'], own.digest['step']) == (2, 0)
  assert metrics['train/a/clients'] == 0


@pytest.mark.parametrize(
  'groups, message',
  [
    ({'fed_md': {'consensus_weights': (1.0,) * 3}}, 'each pool of a, b'),
    ({'fed_md': {'consensus_weights': (0.0,)}}, 'one number above 0'),
  ],
)
def test_what_does_not_fit_is_refused(groups, message):
  with pytest.raises(errors.ConfigError, match=message):
    _build(toys.make_setting(), **groups)


def test_public_data_are_required():
  with pytest.raises(errors.ConfigError, match='no public data'):
    fed_md.build_fed_md(toys.make_setting(), _config())
