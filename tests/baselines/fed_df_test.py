"""FedDF: fusion of client models of several architectures."""

import numpy as np
import pytest
import tensorflow as tf

from baselines import fed_df
from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients
from tff_codist import codist  # noqa: F401
from tff_codist import config as config_lib
from tff_codist import distillation
from tff_codist import errors
from tff_codist.testing import conformance
from tff_codist.testing import toys


def _config(pools=('a', 'b'), **groups):
  return config_lib.change(
    config_lib.Config(),
    pools={
      'names': tuple(pools),
      'models': ('small',),
      'clients_fraction': (1.0,),
    },
    algorithm={'name': 'fed_df'},
    **{'fed_df': {'steps': 6, 'learning_rate': 1e-2}, **groups},
  )


def _build(setting, **groups):
  return fed_df.build_fed_df(
    setting, _config([pool.name for pool in setting.pools], **groups)
  )


def _with_validation(setting):
  return setting._replace(validation=toys.make_examples(200, seed=5))


def _member(*weights, share=1.0):
  return fed_df.Member(
    None, tuple(np.array(w, np.float32) for w in weights), share
  )


def _linear(*logits):
  """Returns a client whose small model answers the same to everything."""
  return _member(np.zeros((toys.NUM_FEATURES, 3)), logits)


def _fuse(fusion, start, members, **options):
  """Returns the students after a first round, and metrics."""
  _, state, metrics = fusion.run(
    fusion.initialize(start), start, members, 0, **options
  )
  return state, metrics


@pytest.mark.parametrize('check', conformance.PROPERTIES)
def test_conformance(in_process, check):
  check(_build)


def test_resume_is_bit_equal(in_process, tmp_path):
  conformance.check_resume_is_bit_equal(_build, tmp_path)


def test_runtimes_agree():
  conformance.check_runtimes_agree(_build)


def test_without_steps_it_is_fed_avg(in_process):
  setting = toys.make_setting(['small'])
  cohorts = toys.load_cohorts(setting, 1)
  plain = algorithm.algorithms['fed_avg'](
    setting,
    config_lib.change(
      _config('a'), server={'optimizer': 'fedavg', 'learning_rate': 1.0}
    ),
  )
  built = _build(setting, fed_df={'steps': 0})
  (one,), (other,) = (
    each.models(each.next(each.initialize(1), cohorts, 1)[0])['a']
    for each in (plain, built)
  )
  for a, b in zip(one, other):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_single_client_is_its_own_ensemble(in_process):
  setting = toys.make_setting(['large'])
  cohort = clients.Cohort([toys.seeded(toys.make_examples(30))])
  built = _build(setting)
  state, metrics = built.next(built.initialize(1), {'a': cohort}, 1)
  update = client_update.build_client_models(
    setting.pools[0].model,
    setting.examples_type,
    toys.preprocess,
    config_lib.ClientConfig(),
  )
  (client,) = update(built.initialize(1)['a'], cohort)['models']
  for fused, own in zip(state['a'], client.weights):
    np.testing.assert_allclose(fused, own, atol=1e-6)
  assert metrics['exchange/a/distillation_loss'] < 1e-9
  assert metrics['exchange/teachers'] == 1


def test_ensemble_is_the_mean_of_logits_not_of_probabilities(in_process):
  """softmax((4, 0, 0) / 2 + (0, 1, 0) / 2), by hand."""
  setting = toys.make_setting(['small'])
  fusion = fed_df.Fusion(
    setting,
    _config('a', fed_df={'steps': 600, 'learning_rate': 0.05, 'anneal': True}),
  )
  members = {'a': [_linear(4, 0, 0), _linear(0, 1, 0)]}
  start = fed_df.FedDFState(a=_linear(0, 0, 0).weights)
  state, _ = _fuse(fusion, start, members)
  kernel, bias = state['a']
  answer = np.exp(bias) / np.exp(bias).sum()
  wanted = np.exp([2, 0.5, 0]) / np.exp([2, 0.5, 0]).sum()
  np.testing.assert_allclose(answer, wanted, atol=5e-3)
  np.testing.assert_allclose(kernel, 0, atol=0.05)


def test_order_and_copies_of_teachers_do_not_matter(in_process):
  setting = toys.make_setting(['small', 'large'])
  fusion = fed_df.Fusion(setting, _config())
  small, large = (pool.model for pool in setting.pools)
  members = {
    'a': [_member(*small.initialize(i)) for i in range(3)],
    'b': [_member(*large.initialize(i)) for i in range(2)],
  }
  start = fed_df.FedDFState(a=small.initialize(9), b=large.initialize(9))
  expected, _ = _fuse(fusion, start, members)
  for other in (
    {name: own[::-1] for name, own in members.items()},
    {name: own * 2 for name, own in members.items()},
  ):
    found, _ = _fuse(fusion, start, other)
    for name, weights in expected.items():
      for a, b in zip(weights, found[name]):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_prototypes_may_learn_from_their_own_clients_only(in_process):
  setting = toys.make_setting(['small', 'small'])
  members = {'a': [_linear(3, 0, 0)], 'b': [_linear(0, 3, 0)]}
  start = fed_df.FedDFState.fromkeys('ab', _linear(0, 0, 0).weights)
  # Both to the middle, or each to its own.
  for teachers, order in (('all', (0, 0)), ('prototype', (1, -1))):
    fusion = fed_df.Fusion(
      setting, _config(fed_df={'steps': 50, 'teachers': teachers})
    )
    state, _ = _fuse(fusion, start, members)
    for name, expected in zip('ab', order):
      bias = state[name][1]
      found = np.sign(np.round(bias[0] - bias[1], 3))
      assert found == expected


def test_scores_weigh_the_clients_at_each_example(in_process):
  """By hand: z = (s·a + r·b) / (s + r), in each prototype or over both."""
  setting = toys.make_setting(['small', 'small'])
  members = {'a': [_linear(4, 0, 0), _linear(0, 1, 0)], 'b': [_linear(0, 0, 8)]}
  batches = np.zeros((1, 2, toys.NUM_FEATURES), np.float32)

  def score(members, batches):
    del members, batches
    return {
      'a': np.array([[[1, 3]], [[2, 1]]], np.float32),
      'b': np.array([[[1, 4]]], np.float32),
    }

  both = ((1, 0.5, 2), (1.5, 0.125, 4))
  own = ((4 / 3, 2 / 3, 0), (3, 0.25, 0))
  for teachers, expected in (
    ('all', {'a': both, 'b': both}),
    ('prototype', {'a': own, 'b': ((0, 0, 8), (0, 0, 8))}),
  ):
    fusion = fed_df.Fusion(setting, _config(fed_df={'teachers': teachers}))
    logits = fusion.mean_logits(members, batches, score)
    for name, rows in expected.items():
      np.testing.assert_allclose(logits[name][0], rows, atol=1e-6)


def test_one_teacher_is_the_distillation_of_codist(in_process):
  """CoDist's pass, when its teacher is the only client of a round."""
  setting = toys.make_setting(['small', 'large'])
  config = _config()
  small, large = (pool.model for pool in setting.pools)
  student, teacher = small.initialize(1), large.initialize(2)
  batches = setting.unlabelled.batches(0, 4, config.distillation.batch_size)
  fusion = fed_df.Fusion(setting, config)
  logits = fusion.mean_logits({'b': [_member(*teacher)]}, batches)['b']
  arguments = (setting.examples_type['x'], toys.preprocess, config.distillation)
  codist_pass = distillation.build_distillation(
    small, [large], *arguments, learning_rate=1e-3
  )
  imitation = distillation.build_imitation(
    small, *arguments, learning_rate=1e-3
  )
  one = codist_pass.next(
    codist_pass.initialize(student),
    student,
    (teacher,),
    np.ones(1, np.float32),
    np.zeros(2, np.int32),
    batches,
  )
  other = imitation.next(
    imitation.initialize(student), student, logits, batches
  )
  for a, b in zip(one['pseudo_gradient'], other['pseudo_gradient']):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_pass_in_pieces_is_the_whole_pass(in_process):
  """What fits into memory at once does not change what is learned."""
  setting = toys.make_setting(['small'])
  config = _config('a', distillation={'keep_optimizer_state': False})
  model = setting.pools[0].model
  imitation = distillation.build_imitation(
    model,
    setting.examples_type['x'],
    toys.preprocess,
    config.distillation,
    learning_rate=lambda step: 1e-2 / (1.0 + tf.cast(step, tf.float32)),
  )
  weights = model.initialize(1)
  batches = setting.unlabelled.batches(0, 4, 8)
  logits = np.zeros((4, 8, toys.NUM_CLASSES), np.float32)
  start = imitation.initialize(weights)
  whole = imitation.next(start, weights, logits, batches)
  first = imitation.next(start, weights, logits[:2], batches[:2])
  middle = tuple(map(np.subtract, weights, first['pseudo_gradient']))
  second = imitation.next(first['state'], middle, logits[2:], batches[2:])
  for a, b, c in zip(
    whole['pseudo_gradient'],
    first['pseudo_gradient'],
    second['pseudo_gradient'],
  ):
    np.testing.assert_allclose(a, b + c, atol=1e-6)


def test_drop_worst_drops_constant_answers_and_keeps_one(in_process):
  setting = _with_validation(toys.make_setting(['small']))
  config = _config('a', fed_df={'drop_worst': True})
  fusion = fed_df.Fusion(setting, config)
  good = _member(np.eye(toys.NUM_FEATURES, 3), np.zeros(3))
  constant = _linear(1, 0, 0)
  assert fusion.drop_worst({'a': [constant, good]}) == {'a': [good]}
  found = fusion.drop_worst({'a': [constant, constant]})
  assert len(found['a']) >= 1
  off = fed_df.Fusion(setting, _config('a'))
  assert len(off.drop_worst({'a': [constant, good]})['a']) == 2


def test_best_student_is_kept_and_may_be_the_average(in_process):
  setting = _with_validation(toys.make_setting(['small']))
  good = _member(10 * np.eye(toys.NUM_FEATURES, 3), np.zeros(3))
  start = fed_df.FedDFState(a=good.weights)
  # The only teacher is wrong about everything.
  members = {'a': [_member(-10 * np.eye(toys.NUM_FEATURES, 3), np.zeros(3))]}
  fields = {'steps': 40, 'learning_rate': 1.0, 'steps_per_validation': 10}
  fusion = fed_df.Fusion(setting, _config('a', fed_df=fields))
  last, _ = _fuse(fusion, start, members)
  assert not np.allclose(last['a'][0], good.weights[0], atol=1)
  fields.update(selection='best', patience=20)
  fusion = fed_df.Fusion(setting, _config('a', fed_df=fields))
  best, metrics = _fuse(fusion, start, members)
  toys.assert_same(best['a'], good.weights)
  # It ended after the patience, without all of its steps.
  assert metrics['exchange/a/steps'] == 20


def test_rate_falls_along_a_cosine(in_process):
  """Adam's steps on a constant gradient are as large as its rate."""
  setting = toys.make_setting(['small'])
  rates = []
  for anneal in (False, True):
    fields = {'steps': 4, 'learning_rate': 1e-3, 'anneal': anneal}
    fusion = fed_df.Fusion(setting, _config('a', fed_df=fields))
    members = {'a': [_linear(50, 0, 0)]}
    start = fed_df.FedDFState(a=_linear(0, 0, 0).weights)
    state, _ = _fuse(fusion, start, members)
    rates.append(state['a'][1][0])
  np.testing.assert_allclose(rates[0], 4e-3, rtol=1e-3)
  cosine = sum(0.5 * (1 + np.cos(np.pi * j / 4)) for j in range(4)) * 1e-3
  np.testing.assert_allclose(rates[1], cosine, rtol=1e-3)


def test_adam_may_go_on_from_round_to_round(in_process):
  """Two rounds with the same teachers are one with twice the steps."""
  setting = toys.make_setting(['small'])
  fields = {'learning_rate': 1e-2, 'anneal': False}
  members = {'a': [_linear(4, 0, 0)]}
  state = start = fed_df.FedDFState(a=_linear(0, 0, 0).weights)
  fusion = fed_df.Fusion(setting, _config('a', fed_df={**fields, 'steps': 3}))
  optimizers = fusion.initialize(start)
  for index in range(2):
    optimizers, state, _ = fusion.run(optimizers, state, members, index)
  whole = fed_df.Fusion(setting, _config('a', fed_df={**fields, 'steps': 6}))
  expected, _ = _fuse(whole, start, members)
  for a, b in zip(state['a'], expected['a']):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_prototype_without_clients_is_left_alone(in_process):
  setting = toys.make_setting()
  built = _build(setting)
  state = built.initialize(1)
  cohorts = toys.load_cohorts(setting, 1)
  after, metrics = built.next(state, {**cohorts, 'b': []}, 1)
  toys.assert_same(after['b'], state['b'])
  assert not np.array_equal(after['a'][0], state['a'][0])
  assert metrics['train/b/clients'] == 0


@pytest.mark.parametrize(
  'groups, message',
  [
    ({'fed_df': {'selection': 'best'}}, 'selection best without a validation'),
    ({'fed_df': {'drop_worst': True}}, 'drop_worst without a validation'),
    ({'privacy': {'mechanism': ('gaussian',)}}, "each client's model"),
  ],
)
def test_what_does_not_fit_is_refused(groups, message):
  with pytest.raises(errors.ConfigError, match=message):
    _build(toys.make_setting(), **groups)


def test_distillation_data_is_required():
  with pytest.raises(errors.ConfigError, match='without distillation data'):
    _build(toys.make_setting(unlabelled=False))
