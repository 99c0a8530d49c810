"""Server optimizers against independent NumPy, and the guard."""

import numpy as np
import pytest

from tff_codist import config
from tff_codist import errors
from tff_codist import models
from tff_codist import server_update
from tff_codist.testing import toys


@pytest.fixture(scope='module')
def linear():
  return models.Model('linear', lambda: models.mlp((4,), 3, widths=()))


_REDDI_SECOND_MOMENT = {
  'fedadam': lambda v, g2: 0.9 * v + 0.1 * g2,
  'fedyogi': lambda v, g2: v - 0.1 * g2 * np.sign(v - g2),
  'fedadagrad': lambda v, g2: v + g2,
}


def _gradients(weights, rounds, seed=0):
  rng = np.random.default_rng(seed)
  return [
    tuple(rng.normal(size=w.shape).astype(np.float32) for w in weights)
    for _ in range(rounds)
  ]


def _run(update, weights, gradients):
  state = update.initialize(weights)
  for g in gradients:
    result = update.next(state, weights, g)
    assert result['rejected'] == 0
    state, weights = result['state'], result['weights']
  return weights


def _build(model, **fields):
  return server_update.build_server_update(model, config.ServerConfig(**fields))


def test_type_signatures(linear):
  update = _build(linear, optimizer='fedavg')
  weights = '<float32[4,3],float32[3]>@SERVER'
  state = '<learning_rate=float32>@SERVER'
  assert str(update.initialize.type_signature) == f'({weights} -> {state})'
  assert str(update.next.type_signature) == (
    f'(<state={state},weights={weights},pseudo_gradient={weights}> -> '
    f'<state={state[:-7]},weights={weights[:-7]},rejected=float32>@SERVER)'
  )


def test_fedadam_of_tff_is_adam_with_bias_correction(linear, context):
  weights = linear.initialize(0)
  gradients = _gradients(weights, 5)
  update = _build(linear, learning_rate=0.1, beta1=0.8, beta2=0.9)
  found = _run(update, weights, gradients)
  for i, w in enumerate(weights):
    x, m, v = w.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
      m = 0.8 * m + 0.2 * g[i]
      v = 0.9 * v + 0.1 * g[i] ** 2
      rate = 0.1 * np.sqrt(1 - 0.9**t) / (1 - 0.8**t)
      x = x - rate * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(found[i], x, atol=1e-6)


@pytest.mark.parametrize('optimizer', sorted(_REDDI_SECOND_MOMENT))
def test_reddi_optimizers_are_algorithm_2(linear, context, optimizer):
  weights = linear.initialize(0)
  gradients = _gradients(weights, 5, seed=1)
  update = _build(
    linear,
    optimizer=optimizer,
    flavor='reddi',
    learning_rate=0.1,
    beta1=0.8,
    beta2=0.9,
    epsilon=0.01,
    initial_accumulator=0.5,
  )
  found = _run(update, weights, gradients)
  beta1 = 0.0 if optimizer == 'fedadagrad' else 0.8
  for i, w in enumerate(weights):
    x, m, v = w.astype(np.float64), 0.0, 0.5
    for g in gradients:
      m = beta1 * m + (1 - beta1) * g[i]
      v = _REDDI_SECOND_MOMENT[optimizer](v, g[i].astype(np.float64) ** 2)
      x = x - 0.1 * m / (np.sqrt(v) + 0.01)
    np.testing.assert_allclose(found[i], x, atol=1e-5)


def test_reddi_adam_without_memory_is_normalised_step(linear, context):
  # β1 = β2 = 0: x + η·Δ/(|Δ| + τ) with Δ = -g.
  weights = linear.initialize(0)
  (g,) = gradients = _gradients(weights, 1)
  update = _build(
    linear, flavor='reddi', learning_rate=0.5, beta1=0.0, beta2=0.0, epsilon=0.2
  )
  for found, x, d in zip(_run(update, weights, gradients), weights, g):
    np.testing.assert_allclose(
      found, x - 0.5 * d / (np.abs(d) + 0.2), atol=1e-6
    )


@pytest.mark.parametrize(
  ('optimizer', 'flavor'), [('fedavg', 'tff'), ('fedadam', 'reddi')]
)
def test_learning_rate_decays_in_steps(linear, context, optimizer, flavor):
  about = {'optimizer': optimizer, 'flavor': flavor, 'beta1': 0.0, 'beta2': 0.0}
  weights = linear.initialize(0)
  gradients = _gradients(weights, 1) * 5
  constant = _build(linear, learning_rate=0.5, **about)
  first = _run(constant, weights, gradients[:1])
  found = _run(
    _build(
      linear,
      learning_rate=0.5,
      rounds_per_decay=2,
      learning_rate_decay=0.1,
      **about,
    ),
    weights,
    gradients,
  )
  # Without memory all steps are those of the first round, times the decay.
  for x, one, all_ in zip(weights, first, found):
    np.testing.assert_allclose(
      all_ - x, (1 + 1 + 0.1 + 0.1 + 0.01) * (one - x), atol=1e-5
    )


def test_rejected_step_does_not_count_for_the_decay(linear, context):
  weights = linear.initialize(0)
  (g,) = _gradients(weights, 1)
  update = _build(
    linear, optimizer='fedavg', learning_rate=1.0, rounds_per_decay=1
  )
  state = update.initialize(weights)
  broken = tuple(np.full_like(part, np.nan) for part in g)
  result = update.next(state, weights, broken)
  assert result['rejected'] == 1
  result = update.next(result['state'], weights, g)
  for after, x, part in zip(result['weights'], weights, g):
    np.testing.assert_allclose(after, x - part, atol=1e-6)


def test_fedavg_subtracts_and_fedavgm_is_heavy_ball(linear, context):
  weights = linear.initialize(0)
  gradients = _gradients(weights, 2)
  plain = _run(
    _build(linear, optimizer='fedavg', learning_rate=1.0), weights, gradients
  )
  heavy = _run(
    _build(linear, optimizer='fedavgm', learning_rate=1.0, momentum=0.9),
    weights,
    gradients,
  )
  for i, w in enumerate(weights):
    a, b = gradients[0][i], gradients[1][i]
    np.testing.assert_allclose(plain[i], w - a - b, atol=1e-6)
    np.testing.assert_allclose(heavy[i], w - a - (0.9 * a + b), atol=1e-6)


@pytest.mark.parametrize('flavor', ['tff', 'reddi'])
@pytest.mark.parametrize('optimizer', server_update.server_optimizers.names())
def test_zero_pseudo_gradient_moves_nothing(linear, context, optimizer, flavor):
  weights = linear.initialize(0)
  zeros = tuple(np.zeros_like(w) for w in weights)
  update = _build(linear, optimizer=optimizer, flavor=flavor)
  toys.assert_same(_run(update, weights, [zeros, zeros]), weights)


def test_pseudo_gradient_that_is_not_finite_is_rejected(linear, context):
  weights = linear.initialize(0)
  update = _build(linear)
  state = update.initialize(weights)
  (g,) = _gradients(weights, 1)
  g[1][0] = np.inf
  result = update.next(state, weights, g)
  assert result['rejected'] == 1
  toys.assert_same(result['weights'], weights)
  toys.assert_same(result['state'], state)


def test_unknown_optimizer_and_start_that_tffs_adam_lacks(linear):
  with pytest.raises(errors.UnknownNameError, match="use 'fedadam'"):
    _build(linear, optimizer='fedadan')
  with pytest.raises(errors.ConfigError, match='initial_accumulator'):
    _build(linear, initial_accumulator=0.1)
