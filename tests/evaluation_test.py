"""Evaluation on clients against NumPy: all, by domain, by client."""

import collections

import numpy as np
import pytest
import tensorflow as tf

# Not among TFF's public names.
from tensorflow_federated.python.simulation.baselines import keras_metrics

from tff_codist import client_update
from tff_codist import clients as clients_lib
from tff_codist import evaluation
from tff_codist import models
from tff_codist.testing import toys

_TYPE = client_update.examples_type(toys.make_examples(1))


@pytest.fixture(scope='module')
def linear():
  return models.Model('linear', toys.MODELS['small'])


def _softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _with_domain(examples):
  domain = (np.arange(len(examples['y'])) % 3 == 0).astype(np.int32)
  return clients_lib.Examples(examples, domain=domain)


def test_evaluation_of_each_client_by_domain(linear, context):
  weights = linear.initialize(0)
  # Larger than one forward pass, empty, and single.
  clients = [_with_domain(toys.make_examples(n, seed=n)) for n in (450, 0, 1)]
  task = toys.make_task()._replace(
    domains=('most', 'third'), uncounted_labels={'accuracy_without_2': (2,)}
  )
  evaluate = evaluation.build_evaluation(linear, _TYPE, task)
  sums = '<accuracy=float32[2],accuracy_without_2=float32[2]>'
  assert str(evaluate.type_signature) == (
    '(<weights=<float32[4,3],float32[3]>@SERVER,examples={<x=float32[?,4],'
    'y=int32[?],domain=int32[?]>}@CLIENTS> -> '
    f'{{<loss=float32[2],labels=float32[2],correct={sums},counted={sums}>'
    '}@CLIENTS)'
  )
  results = evaluate(weights, clients)
  assert len(results) == 3
  for found, client in zip(results, clients):
    x, y, domain = client.values()
    probs = _softmax(x @ weights[0] + weights[1])
    hits = probs.argmax(-1) == y
    for i in range(2):
      here = domain == i
      assert found['labels'][i] == here.sum()
      np.testing.assert_allclose(
        found['loss'][i],
        -np.log(probs[np.arange(len(y)), y])[here].sum(),
        rtol=1e-5,
      )
      for name, counts in (
        ('accuracy', here),
        ('accuracy_without_2', here & (y != 2)),
      ):
        assert found['counted'][name][i] == counts.sum()
        assert found['correct'][name][i] == hits[counts].sum()


def test_metrics_are_means_over_labels_and_quantiles_over_clients(
  context, monkeypatch
):
  setting = toys.make_setting()
  data = clients_lib.ClientData(
    setting.task.test.client_ids,
    lambda client_id: _with_domain(setting.task.test.load(client_id)),
  )
  pool_a, pool_b = setting.pools
  setting = setting._replace(
    task=setting.task._replace(domains=('most', 'third')),
    pools=[pool_a, pool_b._replace(domains=('third',))],
  )
  weights = {p.name: p.model.initialize(1) for p in setting.pools}
  pool_models = {name: [own] for name, own in weights.items()}
  monkeypatch.setattr(evaluation, '_CLIENTS_AT_ONCE', 5)
  metrics = evaluation.Evaluator(setting, data).evaluate(pool_models)

  kernel, bias = weights['a']
  hits = collections.defaultdict(list)
  by_client = []
  for client_id in data.client_ids:
    x, y, domain = data.load(client_id).values()
    right = (x @ kernel + bias).argmax(-1) == y
    hits[0].extend(right[domain == 0])
    hits[1].extend(right[domain == 1])
    if len(y):
      by_client.append(right.mean())
  found = {
    name.removeprefix('eval/a/'): value
    for name, value in metrics.items()
    if name.startswith('eval/a/')
  }
  assert found['most/accuracy'] == pytest.approx(np.mean(hits[0]))
  assert found['third/accuracy'] == pytest.approx(np.mean(hits[1]))
  assert found['accuracy'] == pytest.approx(np.mean(hits[0] + hits[1]))
  for q in (10, 50, 90):
    assert found[f'accuracy_p{q}'] == pytest.approx(
      np.quantile(by_client, q / 100)
    )
  # A pool of some domains has its own and the others as groups.
  assert 'in_domain/accuracy' not in found
  for metric in ('accuracy', 'loss'):
    own, other = (
      metrics[f'eval/b/{group}/{metric}'] for group in ('third', 'most')
    )
    assert metrics[f'eval/b/in_domain/{metric}'] == own
    assert metrics[f'eval/b/out_of_domain/{metric}'] == other


def test_domain_without_examples_has_no_metrics(context):
  setting = toys.make_setting(['small'])
  setting = setting._replace(
    task=setting.task._replace(domains=('all_of_them', 'none'))
  )
  (pool,) = setting.pools
  metrics = evaluation.Evaluator(setting, setting.task.test).evaluate(
    {'a': [pool.model.initialize(1)]}
  )
  assert 'eval/a/all_of_them/accuracy' in metrics
  assert not [name for name in metrics if 'none' in name]


def test_accuracies_of_sentences_are_those_of_tffs_baseline_task(context):
  # Tokens: 0 padding, 1 to 5 words, 6 out-of-vocabulary, 7 begin, 8 end.
  model = models.Model('lstm', lambda: models.lstm(9, 4, embedding=2, units=3))
  weights = tuple(3 * w for w in model.initialize(1))
  rng = np.random.default_rng(0)
  x = rng.integers(1, 9, size=(300, 4), dtype=np.int32)
  y = rng.integers(0, 9, size=(300, 4), dtype=np.int32)
  left_out = {'no_oov': (6,), 'no_oov_or_eos': (6, 8)}
  task = toys.make_task()._replace(
    preprocess=lambda x, seed=None: x,
    pad_id=0,
    uncounted_labels=left_out,
    test=clients_lib.ClientData(
      ['1', '2'],
      lambda i: clients_lib.Examples(x=x[: 50 * int(i)], y=y[: 50 * int(i)]),
    ),
  )
  pool = toys.make_setting().pools[0]._replace(model=model)
  examples = task.test.load('1')
  setting = toys.make_setting()._replace(
    pools=[pool],
    task=task,
    examples_type=client_update.examples_type(examples),
  )
  metrics = evaluation.Evaluator(setting, task.test).evaluate({'a': [weights]})

  xs, ys = (np.concatenate([v[:50], v[:100]]) for v in (x, y))
  logits = model.to_keras(weights)(xs)
  for name, labels in {'accuracy': (), **left_out}.items():
    metric = keras_metrics.MaskedCategoricalAccuracy(masked_tokens=[0, *labels])
    metric.update_state(ys, logits)
    assert metrics[f'eval/a/{name}'] == pytest.approx(metric.result().numpy())
  loss = tf.keras.losses.sparse_categorical_crossentropy(
    ys, logits, from_logits=True
  )
  expected = np.mean(loss.numpy()[ys != 0])
  assert metrics['eval/a/loss'] == pytest.approx(expected, rel=1e-5)
  assert metrics['eval/a/perplexity'] == pytest.approx(
    np.exp(expected), rel=1e-5
  )


def test_pool_of_several_models_has_the_means_of_theirs(context):
  setting = toys.make_setting(['small'])
  (pool,) = setting.pools
  evaluator = evaluation.Evaluator(setting, setting.task.test)
  one, other = (pool.model.initialize(seed) for seed in (1, 2))
  both = evaluator.evaluate({'a': [one, other]})
  each = [evaluator.evaluate({'a': [weights]}) for weights in (one, other)]
  for name, value in both.items():
    np.testing.assert_allclose(value, np.mean([m[name] for m in each]))
