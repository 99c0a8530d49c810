"""FedAUX: pre-training, private scores, and an ensemble weighted by them."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from sklearn import linear_model

from baselines import fed_aux
from baselines import fed_df
from tff_codist import algorithm
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import unlabelled
from tff_codist.testing import conformance
from tff_codist.testing import toys


def _config(pools=('a', 'b'), **groups):
  config = config_lib.change(
    config_lib.Config(),
    pools={
      'names': tuple(pools),
      'models': ('small',),
      'clients_fraction': (1.0,),
    },
    algorithm={'name': 'fed_aux'},
    fed_df={'steps': 6, 'learning_rate': 1e-2},
    fed_aux={
      'epsilon': 1.0,
      'pretraining_epochs': 2,
      'reproducible_noise': True,
    },
  )
  return config_lib.change(config, **groups)


def _build(setting, **groups):
  return fed_aux.build_fed_aux(
    setting, _config([pool.name for pool in setting.pools], **groups)
  )


@functools.lru_cache
def _build_once(model_names):
  return _build(toys.make_setting(model_names))


def _shared(setting):
  """Returns the algorithm for the setting's models, which does not differ."""
  return _build_once(tuple(pool.model.name for pool in setting.pools))


@pytest.mark.parametrize('check', conformance.PROPERTIES)
def test_conformance(in_process, check):
  check(_shared)


def test_resume_is_bit_equal(in_process, tmp_path):
  conformance.check_resume_is_bit_equal(_build, tmp_path)


def test_runtimes_agree():
  conformance.check_runtimes_agree(_shared)


def _unit_features(num_examples, size, *, seed):
  h = np.random.default_rng(seed).normal(size=(num_examples, size))
  return (h / np.linalg.norm(h, axis=1).max()).astype(np.float32)


@pytest.mark.parametrize('regularization', [1.0, 1e-2, 1e-5])
def test_scorer_is_the_logistic_regression(regularization):
  """scikit-learn's C is 1/(λN) for the mean loss."""
  own, negatives = (_unit_features(n, 6, seed=n) for n in (30, 50))
  own[:, 0] = np.abs(own[:, 0])
  found = fed_aux.fit_scorer(own, negatives, regularization)
  reference = linear_model.LogisticRegression(
    C=1 / (regularization * 80),
    fit_intercept=False,
    solver='newton-cholesky',
    tol=1e-10,
  ).fit(np.concatenate([own, negatives]).astype(float), [1] * 30 + [0] * 50)
  np.testing.assert_allclose(found, reference.coef_[0], rtol=1e-4, atol=1e-6)


def test_scorer_of_separable_examples_converges():
  """One feature at ±1, by hand: λ·w = σ(−w), the root of w·(1 + e^w) = 1/λ."""
  ones = np.ones((5, 1), np.float32)
  (w,) = fed_aux.fit_scorer(ones, -ones, 1e-6).numpy()
  np.testing.assert_allclose(w * (1 + math.exp(w)), 1e6, rtol=1e-5)


def test_replaced_example_moves_the_scorer_less_than_its_sensitivity():
  regularization, n, m = 0.01, 10, 20
  most = 2 / (regularization * (n + m))
  distances = []
  for seed in range(20):
    own, negatives = (_unit_features(k, 3, seed=[seed, k]) for k in (n, m))
    other = own.copy()
    # The worst that an example of norm 1 can become is its opposite.
    own[0] /= np.linalg.norm(own[0])
    other[0] = -own[0] if seed % 2 else _unit_features(1, 3, seed=seed)
    one, two = (
      fed_aux.fit_scorer(h, negatives, regularization) for h in (own, other)
    )
    distances.append(np.linalg.norm(one - two))
  assert max(distances) <= most
  # The bound is no idle one.
  assert max(distances) > most / 20


def test_noise_stddev_is_that_of_the_gaussian_mechanism():
  """√(8·ln(1.25e5)) / (0.1·0.01·10,000), and √(2·ln(1.25/δ))·Δ/ε."""
  fields = config_lib.FedAUXConfig(epsilon=0.1, delta=1e-5, regularization=0.01)
  found = fed_aux.noise_stddev(fields, 10_000)
  assert found == pytest.approx(0.969, abs=5e-4)
  sensitivity = 2 / (0.01 * 10_000)
  assert found == pytest.approx(
    math.sqrt(2 * math.log(1.25e5)) * sensitivity / 0.1
  )
  assert fed_aux.noise_stddev(config_lib.FedAUXConfig(epsilon=math.inf), 5) == 0


def test_features_have_a_norm_of_at_most_one_whatever_comes():
  """3-4-5 triangles: inside the bound of 10, beyond it, and broken."""
  features = np.array([[3, 4], [30, 40], [np.nan, 0], [np.inf, 1]], np.float32)
  found = fed_aux.clip_to_unit(features, np.float32(10))
  np.testing.assert_allclose(
    found, [[0.3, 0.4], [0.6, 0.8], [0, 0], [0, 0]], atol=1e-6
  )
  zeros = np.zeros((1, 2), np.float32)
  np.testing.assert_array_equal(
    fed_aux.clip_to_unit(zeros, np.float32(0)), zeros
  )


def test_unlabelled_data_is_split_into_disjoint_parts():
  u = unlabelled.UnlabelledData(np.arange(50), seed=1)
  parts = fed_aux.split(u, _config())
  assert len(parts.negatives) == 10
  assert sorted([*parts.distillation.x, *parts.negatives]) == [*range(50)]
  other = fed_aux.split(u, dataclasses.replace(_config(), seed=2))
  assert set(other.negatives) != set(parts.negatives)
  two = unlabelled.UnlabelledData(np.arange(2), seed=1)
  assert len(fed_aux.split(two, _config()).negatives) == 1
  with pytest.raises(errors.DataError, match='a single unlabelled example'):
    fed_aux.split(unlabelled.UnlabelledData(np.zeros(1), seed=1), _config())


@pytest.mark.parametrize(
  'keras_fn',
  [
    functools.partial(models.mlp, (8, 8, 1), 3, widths=(5,)),
    functools.partial(models.cnn, (8, 8, 1), 3, widths=(4,), dense=(5,)),
    functools.partial(models.resnet, (8, 8, 1), 3, widths=(8,), depth=1),
  ],
)
def test_encoder_is_all_but_the_last_layer(keras_fn):
  model = models.Model('net', keras_fn)
  autoencoder = fed_aux.build_autoencoder(model)
  weights = model.initialize(1)
  *encoder, kernel, bias = weights
  x = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)

  @tf.function
  def both(weights, encoder):
    features = autoencoder.extractor.logits(encoder, x)
    return model.logits(weights, x), features

  logits, features = both(weights, tuple(encoder))
  np.testing.assert_allclose(features @ kernel + bias, logits, atol=1e-5)
  shapes = [leaf.shape for leaf in autoencoder.whole.weights_type]
  assert shapes[:-2] == [leaf.shape for leaf in encoder]
  assert autoencoder.whole.output_shape == (8, 8, 1)


def test_model_without_features_is_refused():
  layers = tf.keras.layers
  tokens = models.Model(
    'tokens',
    lambda: tf.keras.Sequential(
      [
        layers.InputLayer((3,), dtype=tf.int32),
        layers.Embedding(5, 2),
        layers.Dense(5),
      ]
    ),
  )
  pooled = models.Model(
    'pooled',
    lambda: tf.keras.Sequential(
      [
        layers.InputLayer((4, 4, 1)),
        layers.Conv2D(3, 1),
        layers.GlobalAveragePooling2D(),
      ]
    ),
  )
  for model in (tokens, pooled):
    with pytest.raises(errors.ConfigError, match=f'the model {model.name!r}'):
      fed_aux.build_autoencoder(model)


def test_pretraining_happens_once_and_gives_the_first_weights(in_process):
  setting = toys.make_setting()
  built = _shared(setting)
  start = built.initialize(1)
  cohorts = toys.load_cohorts(setting, 1)
  # Nobody trains, so that the weights are those of the pre-training.
  state, metrics = built.next(start, {'a': [], 'b': []}, 1)
  assert state.is_pretrained and not start.is_pretrained
  # The large model has an encoder of one layer, the small one has none.
  toys.assert_same(state.weights['a'], start.weights['a'])
  assert state.extractors['a'].weights == ()
  *encoder, kernel, bias = state.weights['b']
  toys.assert_same(tuple(encoder), state.extractors['b'].weights)
  toys.assert_same((kernel, bias), start.weights['b'][-2:])
  assert not np.array_equal(encoder[0], start.weights['b'][0])
  assert 'exchange/b/pretraining_loss' in metrics
  # R of a linear model is the largest norm of U itself.
  norms = np.linalg.norm(setting.unlabelled.x, axis=1)
  assert state.extractors['a'].bound == pytest.approx(norms.max())
  after, metrics = built.next(state, cohorts, 2)
  toys.assert_same(after.extractors, state.extractors)
  assert 'exchange/b/pretraining_loss' not in metrics
  assert not np.array_equal(after.weights['b'][0], state.weights['b'][0])


def test_pretraining_learns_to_reconstruct(in_process):
  """Inputs of two numbers, each twice, fit through four features."""
  model = models.Model(
    'net', functools.partial(models.mlp, (4,), 3, widths=(6,))
  )
  autoencoder = fed_aux.build_autoencoder(model).whole
  x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
  x = np.concatenate([x, x], axis=1)
  losses = []
  for epochs in (1, 200):
    config = _config(
      fed_aux={
        'pretraining_epochs': epochs,
        'pretraining_learning_rate': 0.01,
        'pretraining_noise': 0.0,
      },
      distillation={'batch_size': 32},
    )
    train = fed_aux.build_pretraining(
      autoencoder,
      toys.make_setting().examples_type['x'],
      toys.preprocess,
      config,
    )
    seed = np.array([1, 2], np.int32)
    result = train(autoencoder.initialize(1), x, seed)
    made = tf.function(autoencoder.logits)(result['weights'], x)
    losses.append(np.mean((made - x) ** 2))
  assert losses[1] < 0.1 * losses[0]


def test_pretraining_that_diverges_is_an_error(in_process):
  setting = toys.make_setting(['large'])
  built = _build(
    setting,
    fed_aux={'pretraining_learning_rate': 1e30, 'pretraining_epochs': 3},
  )
  with pytest.raises(errors.NonFiniteModelError, match='autoencoder of pool'):
    built.next(built.initialize(1), {'a': []}, 1)


def test_equal_scores_are_fed_df(in_process):
  """With λ → ∞ all scorers are 0, and all scores 1/2."""
  setting = toys.make_setting(['large'])
  config = _config(
    'a',
    fed_aux={
      'epsilon': math.inf,
      'regularization': 1e12,
      'pretraining_epochs': 0,
    },
    fed_df={'anneal': False},
  )
  parts = fed_aux.split(setting.unlabelled, config)
  plain = algorithm.algorithms['fed_df'](
    setting._replace(unlabelled=parts.distillation), config
  )
  built = fed_aux.build_fed_aux(setting, config)
  cohorts = toys.load_cohorts(setting, 1)
  one, other = (
    each.models(each.next(each.initialize(1), cohorts, 1)[0])
    for each in (plain, built)
  )
  for a, b in zip(one['a'][0], other['a'][0]):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_only_the_proportions_of_scores_matter(in_process):
  """Per example: a common factor is nothing, one large score is everything."""
  setting = toys.make_setting(['small', 'large'])
  fusion = fed_df.Fusion(setting, _config())
  small, large = (pool.model for pool in setting.pools)
  members = {
    'a': [fed_df.Member(None, small.initialize(i), 1.0) for i in range(2)],
    'b': [fed_df.Member(None, large.initialize(3), 1.0)],
  }
  batches = setting.unlabelled.batches(0, 2, 5)
  rng = np.random.default_rng(1)
  scores = {
    name: rng.uniform(0.1, 1, size=(len(own), 2, 5)).astype(np.float32)
    for name, own in members.items()
  }
  factor = rng.uniform(0.1, 9, size=(2, 5)).astype(np.float32)
  one, scaled = (
    fusion.mean_logits(
      members,
      batches,
      lambda *_, by=by: {name: by * own for name, own in scores.items()},
    )['a']
    for by in (1, factor)
  )
  np.testing.assert_allclose(one, scaled, atol=1e-5)
  scores['b'] *= 1e9
  loud = fusion.mean_logits(members, batches, lambda *_: scores)['a']
  alone = fusion.mean_logits({'b': members['b']}, batches)['b']
  np.testing.assert_allclose(loud, alone, atol=1e-5)


def _pretrained(setting, **fields):
  """Returns the certainty of a setting with one pool, and its state."""
  config = _config('a', fed_aux={'pretraining_epochs': 0, **fields})
  certainty = fed_aux.Certainty(
    setting, config, fed_aux.split(setting.unlabelled, config).negatives
  )
  weights = fed_df.FedDFState(a=setting.pools[0].model.initialize(1))
  extractors, scorers = certainty.initialize(weights)
  state = fed_aux.FedAUXState(
    weights, fed_df.Optimizers(), extractors, scorers, np.bool_(False)
  )
  return certainty, certainty.pretrain(state)[0]


def test_client_is_certain_of_what_looks_like_its_own(in_process):
  certainty, state = _pretrained(toys.make_setting(['small']), epsilon=math.inf)
  examples = [toys.seeded(toys.make_examples(20, seed=i)) for i in range(2)]
  for sign, client in zip((1, -1), examples):
    client['x'][:, 0] = sign * np.abs(client['x'][:, 0])
  cohort = clients.Cohort(examples, ('06', '07'))
  state, scorers, metrics = certainty.fit(state, {'a': cohort})
  assert metrics['exchange/a/scorers_sent'] == 2
  batches = np.zeros((2, 3, toys.NUM_FEATURES), np.float32)
  batches[0, :, 0], batches[1, :, 0] = 2, -2
  members = {
    'a': [fed_df.Member(name, state.weights['a'], 1.0) for name in ('07', '06')]
  }
  scores = certainty.score(state.extractors, scorers, members, batches)['a']
  assert scores.shape == (2, 2, 3)
  # In the order of the members: 07 has negative inputs, 06 positive ones.
  assert np.all(scores[0, 1] > 0.55) and np.all(scores[0, 0] < 0.45)
  assert np.all(scores[1, 0] > 0.55) and np.all(scores[1, 1] < 0.45)
  # By hand: σ(⟨w, x/R⟩) + 1e-8.
  margin = scorers['a']['06'][0] * 2 / state.extractors['a'].bound
  np.testing.assert_allclose(
    scores[1, 0], 1 / (1 + np.exp(-margin)) + 1e-8, rtol=1e-5
  )


def test_scorer_is_sent_once(in_process):
  setting = toys.make_setting()
  built = _shared(setting)
  cohorts = toys.load_cohorts(setting, 1)
  state, metrics = built.next(built.initialize(1), cohorts, 1)
  assert metrics['exchange/a/scorers_sent'] == len(cohorts['a'])
  assert len(built.client_states(state)) == sum(map(len, cohorts.values()))
  again, metrics = built.next(state, cohorts, 2)
  assert metrics['exchange/a/scorers_sent'] == 0
  toys.assert_same(again.scorers, state.scorers)
  # Clients that come later send theirs then, and the others keep theirs.
  new = set(setting.pools[0].client_ids) - set(cohorts['a'].client_ids)
  late = clients.Cohort(
    [toys.seeded(toys.make_examples(7, seed=5))], [min(new)]
  )
  later, metrics = built.next(again, {**cohorts, 'a': late}, 50)
  assert metrics['exchange/a/scorers_sent'] == 1
  changed = (later.scorers['a'] != again.scorers['a']).any(axis=1)
  assert np.count_nonzero(changed) == 1
  assert not again.scorers['a'][changed].any()


def test_noise_has_the_stated_size_and_a_seed_of_its_own(in_process):
  """400 draws: their deviation errs by 3.5 %, their mean by σ/20."""
  setting = toys.make_setting(['small'])
  fields = _config(fed_aux={'regularization': 0.1}).fed_aux
  extractor = fed_aux.build_autoencoder(setting.pools[0].model).extractor
  examples = toys.make_examples(30)
  negatives = _unit_features(20, toys.NUM_FEATURES, seed=1)
  bound = np.float32(10)
  fit = fed_aux.build_scorers(
    extractor, setting.examples_type, toys.preprocess, fields
  )
  cohort = [toys.seeded(examples, (i, 7)) for i in range(100)]
  found = np.stack(
    fit({'weights': (), 'bound': bound, 'negatives': negatives}, cohort)
  )
  clean = fed_aux.fit_scorer(
    fed_aux.clip_to_unit(examples['x'], bound), negatives, 0.1
  )
  sigma = fed_aux.noise_stddev(fields, 50)
  noise = found - clean.numpy()
  assert np.std(noise) == pytest.approx(sigma, rel=0.15)
  assert np.abs(noise.mean()) < sigma / 4
  np.testing.assert_array_equal(
    fit({'weights': (), 'bound': bound, 'negatives': negatives}, cohort[:1])[0],
    found[0],
  )
  assert str(fit.type_signature.compact_representation()) == (
    '(<shared=<weights=<>,bound=float32,negatives=float32[?,4]>@SERVER,'
    'examples={<x=float32[?,4],y=int32[?],seed=int32[2]>}@CLIENTS>'
    ' -> {float32[4]}@CLIENTS)'
  )


def test_noise_is_from_entropy_unless_asked_otherwise(in_process):
  setting = toys.make_setting(['small'])
  cohorts = toys.load_cohorts(setting, 1)
  for is_reproducible in (True, False):
    certainty, state = _pretrained(setting, reproducible_noise=is_reproducible)
    one, two = (certainty.fit(state, cohorts)[0].scorers['a'] for _ in range(2))
    assert np.array_equal(one, two) == is_reproducible


def test_traffic_of_a_round_is_that_of_fed_avg():
  setting = toys.make_setting()
  traffic = _shared(setting).traffic
  for pool in setting.pools:
    size = pool.model.num_parameters
    assert traffic[pool.name] == algorithm.Traffic(size, size + 1)


def test_traffic_of_the_first_round_of_a_client_by_hand(in_process):
  """U⁻ are 10 of 50 examples of 4 features, and R is a float.

  The small model's features are its inputs; the large one's are 8 units, after
  a layer of 4 · 8 weights and 8 biases.
  """
  setting = toys.make_setting()
  built = _shared(setting)
  state = built.initialize(1)
  nothing = algorithm.Traffic(0, 0)
  assert built.once(state) == {'a': nothing, 'b': nothing}
  seen = {'a': set(), 'b': set()}
  for round_num in (1, 2, 3):
    cohorts = toys.load_cohorts(setting, round_num)
    state, _ = built.next(state, cohorts, round_num)
    for name, cohort in cohorts.items():
      seen[name] |= set(cohort.client_ids)
    a, b = (len(ids) for ids in seen.values())
    assert built.once(state) == {
      'a': (a * (0 + 1 + 40), a * 4),
      'b': (b * (40 + 1 + 40), b * 8),
    }
  # Some clients came again, and others later.
  assert 5 < a < 15 and 3 < b < 9


@pytest.mark.parametrize(
  'groups, message',
  [
    ({'fed_df': {'selection': 'best'}}, 'selection best without a validation'),
    ({'privacy': {'mechanism': ('gaussian',)}}, "each client's model"),
  ],
)
def test_what_does_not_fit_is_refused(groups, message):
  with pytest.raises(errors.ConfigError, match=message):
    _build(toys.make_setting(['small']), **groups)


def test_distillation_data_and_a_client_store_are_required():
  setting = toys.make_setting(['small'])
  with pytest.raises(errors.ConfigError, match='without distillation data'):
    _build(setting._replace(unlabelled=None))
  with pytest.raises(errors.ConfigError, match='no client store'):
    _build(setting._replace(client_store=None))


@pytest.mark.parametrize('value', [0.0, 1.5, -0.1])
def test_epsilon_is_in_the_range_of_the_proof(value):
  with pytest.raises(errors.ConfigError, match=r'fed_aux\.epsilon'):
    config_lib.FedAUXConfig(epsilon=value)
