"""FedAvg's client update: golden values, weights, dropped clients."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import client_update
from tff_codist import clients
from tff_codist import config
from tff_codist import errors
from tff_codist import losses
from tff_codist import models
from tff_codist.testing import toys


@pytest.fixture(scope='module')
def linear():
  return models.Model('linear', lambda: models.mlp((4,), 3, widths=()))


def _examples_type():
  return client_update.examples_type(toys.make_examples(1))


def _build(model, *, aggregator=None, aggregator_name='mean', **fields):
  return client_update.build_client_update(
    model,
    _examples_type(),
    toys.preprocess,
    config.ClientConfig(aggregator=aggregator_name, **fields),
    aggregator=aggregator,
  )


def _run(update, weights, cohort):
  return update.next(update.initialize(), weights, cohort)


def _full_gradient(model, weights, examples):
  """Gradient of the mean loss over all examples, by plain TensorFlow."""
  kernel, bias = (tf.Variable(w) for w in weights)
  with tf.GradientTape() as tape:
    logits = examples['x'] @ kernel + bias
    loss = tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=examples['y'], logits=logits
      )
    )
  return tuple(g.numpy() for g in tape.gradient(loss, [kernel, bias]))


def test_type_signatures(linear):
  update = _build(linear)
  means = '<value_sum_process=<>,weight_sum_process=<>>'
  state = f'<updates={means},metrics=<>>'
  assert str(update.initialize.type_signature) == f'( -> {state}@SERVER)'
  weights = '<float32[4,3],float32[3]>'
  assert update.next.type_signature.formatted_representation().replace(
    '\n', ''
  ).replace(' ', '') == (
    f'(<state={state}@SERVER,weights={weights}@SERVER,'
    'examples={<x=float32[?,4],y=int32[?],seed=int32[2]>}@CLIENTS>'
    f'-><state={state}@SERVER,pseudo_gradient={weights}@SERVER,'
    'metrics=<loss=float32,accuracy=float32,examples=float32,'
    'clients=float32,clients_dropped=float32>@SERVER>)'
  )


def test_one_full_batch_step_is_one_gradient_step(linear, context):
  # m = K, E = 1, B = infinity: g is the gradient of the weighted mean loss.
  weights = linear.initialize(0)
  cohort = [toys.seeded(toys.make_examples(n, seed=n)) for n in (3, 7, 10)]
  result = _run(
    _build(linear, learning_rate=0.5, batch_size=1000), weights, cohort
  )
  together = clients.Examples(
    (key, np.concatenate([c[key] for c in cohort])) for key in ('x', 'y')
  )
  for g, expected in zip(
    result['pseudo_gradient'], _full_gradient(linear, weights, together)
  ):
    np.testing.assert_allclose(g, 0.5 * expected, atol=1e-6)


def test_uniform_weighting_is_the_plain_mean(linear, context):
  weights = linear.initialize(0)
  cohort = [toys.seeded(toys.make_examples(n, seed=n)) for n in (2, 9)]
  update = _build(linear, weighting='uniform', batch_size=1000)
  result = _run(update, weights, cohort)
  expected = [
    np.mean(pair, axis=0) * 0.1
    for pair in zip(*(_full_gradient(linear, weights, c) for c in cohort))
  ]
  for g, e in zip(result['pseudo_gradient'], expected):
    np.testing.assert_allclose(g, e, atol=1e-6)


def test_epochs_and_momentum_by_hand(linear, context):
  # One example: every step is on the same batch, so the order cannot matter.
  weights = linear.initialize(0)
  examples = toys.make_examples(1, seed=5)
  trained, velocity = weights, tuple(np.zeros_like(w) for w in weights)
  for _ in range(3):
    gradient = _full_gradient(linear, trained, examples)
    velocity = tuple(0.9 * v + g for v, g in zip(velocity, gradient))
    trained = tuple(w - 0.1 * v for w, v in zip(trained, velocity))
  result = _run(
    _build(linear, epochs=3, momentum=0.9), weights, [toys.seeded(examples)]
  )
  for g, before, after in zip(result['pseudo_gradient'], weights, trained):
    np.testing.assert_allclose(g, before - after, atol=1e-6)
  assert result['metrics']['examples'] == 3


def test_epoch_passes_over_every_example_once_with_a_partial_batch(
  linear, context
):
  seen = []

  def preprocess(x, seed=None):
    def note(values, seed):
      seen.append((values[:, 0].copy(), tuple(seed)))
      return values

    if seed is None:
      return x
    x.set_shape([None, 4])
    noted = tf.numpy_function(note, [x, seed], tf.float32)
    return tf.ensure_shape(noted, [None, 4])

  examples = toys.make_examples(7, seed=3)
  work = tf.function(
    lambda weights, examples: client_update.train_on_client(
      linear,
      weights,
      examples,
      preprocess=preprocess,
      optimizer=tff.learning.optimizers.build_sgdm(0.1),
      epochs=2,
      batch_size=3,
      weighting='examples',
    )
  )
  weights = linear.initialize(0)
  work(weights, toys.seeded(examples))
  assert [len(values) for values, _ in seen] == [3, 3, 1, 3, 3, 1]
  orders = [
    np.concatenate([values for values, _ in epoch])
    for epoch in (seen[:3], seen[3:])
  ]
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.sort(examples['x'][:, 0]))
  assert not np.array_equal(*orders)
  # Every batch has augmentation randomness of its own.
  assert len({seed for _, seed in seen}) == 6


def test_client_without_finite_update_contributes_nothing(linear, context):
  weights = linear.initialize(0)
  update = _build(linear)
  good = [toys.seeded(toys.make_examples(n, seed=n)) for n in (4, 6)]
  bad = toys.seeded(toys.make_examples(50, seed=9))
  bad['x'] = np.full_like(bad['x'], np.nan)
  with_bad = _run(update, weights, [good[0], bad, good[1]])
  without = _run(update, weights, good)
  toys.assert_same(with_bad['pseudo_gradient'], without['pseudo_gradient'])
  assert with_bad['metrics']['clients_dropped'] == 1
  assert with_bad['metrics']['clients'] == 2
  assert with_bad['metrics']['loss'] == without['metrics']['loss']


@pytest.mark.parametrize('weighting', ['examples', 'uniform'])
def test_client_without_examples_has_weight_zero(linear, context, weighting):
  weights = linear.initialize(0)
  update = _build(linear, weighting=weighting)
  cohort = [toys.seeded(toys.make_examples(5, seed=1))]
  empty = toys.seeded(toys.make_examples(0))
  with_empty = _run(update, weights, [*cohort, empty])
  toys.assert_same(
    with_empty['pseudo_gradient'],
    _run(update, weights, cohort)['pseudo_gradient'],
  )
  assert with_empty['metrics']['clients'] == 1
  only_empty = _run(update, weights, [empty])
  assert not any(np.any(g) for g in only_empty['pseudo_gradient'])


def test_order_of_the_cohort_does_not_matter(linear, context):
  weights = linear.initialize(0)
  update = _build(linear)
  cohort = [
    toys.seeded(toys.make_examples(n, seed=n), seed=(n, 0))
    for n in (3, 5, 8, 13)
  ]
  one, other = (
    _run(update, weights, c)['pseudo_gradient'] for c in (cohort, cohort[::-1])
  )
  for a, b in zip(one, other):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_accuracy_and_loss_are_those_of_the_broadcast_model(linear, context):
  # One full batch: the metrics are taken before the only step.
  weights = linear.initialize(0)
  examples = toys.make_examples(20, seed=2)
  metrics = _run(
    _build(linear, batch_size=100), weights, [toys.seeded(examples)]
  )['metrics']
  logits = examples['x'] @ weights[0] + weights[1]
  expected = np.mean(np.argmax(logits, -1) == examples['y'])
  assert metrics['accuracy'] == pytest.approx(expected)
  assert 0 < expected < 1


def test_padding_does_not_count():
  mask = losses.label_mask(tf.constant([0, 2, 0, 1]), (0,))
  np.testing.assert_array_equal(mask, [0, 1, 0, 1])
  np.testing.assert_array_equal(losses.label_mask(tf.constant([0, 2])), [1, 1])

  @tff.tensorflow.computation(tff.TensorType(np.int32, (None,)))
  def inside_tff(labels):
    return losses.label_mask(labels, (0,))

  assert str(inside_tff.type_signature.result) == 'float32[?]'


@pytest.mark.parametrize('name', client_update.aggregators.names())
def test_named_aggregators_run(linear, context, name):
  weights = linear.initialize(0)
  update = _build(linear, aggregator_name=name)
  state = update.initialize()
  result = update.next(state, weights, [toys.seeded(toys.make_examples(5))])
  tf.nest.assert_same_structure(result['state'], state)
  assert all(np.isfinite(g).all() for g in result['pseudo_gradient'])


def test_compressed_updates_are_a_function_of_the_seed(context):
  # Only tensors of more than 20,000 elements are compressed.
  model = models.Model('wide', lambda: models.mlp((4,), 3, widths=(8000,)))
  update = _build(model, aggregator_name='compressed')
  weights, cohort = model.initialize(0), [toys.seeded(toys.make_examples(5))]
  one, other = (
    update.next(update.initialize(), weights, cohort) for _ in range(2)
  )
  toys.assert_same(one['pseudo_gradient'], other['pseudo_gradient'])
  exact = _build(model).next(_build(model).initialize(), weights, cohort)
  assert not np.array_equal(
    one['pseudo_gradient'][0], exact['pseudo_gradient'][0]
  )


def test_any_tff_factory_plugs_in(linear, context):
  sums = _build(linear, aggregator=tff.aggregators.SumFactory())
  means = _build(linear, aggregator=tff.aggregators.UnweightedMeanFactory())
  weights = linear.initialize(0)
  cohort = [toys.seeded(toys.make_examples(5, seed=n)) for n in (1, 2)]
  total = _run(sums, weights, cohort)['pseudo_gradient']
  mean = _run(means, weights, cohort)['pseudo_gradient']
  for s, m in zip(total, mean):
    np.testing.assert_allclose(s, 2 * m, rtol=1e-5, atol=1e-7)


def test_unknown_aggregator_is_named(linear):
  with pytest.raises(errors.UnknownNameError, match="use 'mean'"):
    _build(linear, aggregator_name='meen')


def test_examples_type_of_images_and_sequences():
  images = collections.OrderedDict(
    x=np.zeros((2, 32, 32, 3), np.uint8), y=np.zeros(2, np.int32)
  )
  assert str(client_update.examples_type(images)) == (
    '<x=uint8[?,32,32,3],y=int32[?],seed=int32[2]>'
  )
