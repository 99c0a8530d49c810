"""Evaluation and agreement against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tff_codist import client_update
from tff_codist import evaluation
from tff_codist import models
from tff_codist.testing import toys


@pytest.fixture(scope='module')
def linear():
  return models.Model('linear', toys.MODELS['small'])


def _softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_evaluation_is_the_mean_over_all_labels_of_all_clients(linear, stock):
  weights = linear.initialize(0)
  # Larger than one forward pass, empty, and single.
  clients = [toys.make_examples(n, seed=n) for n in (450, 0, 1)]
  evaluate = evaluation.build_evaluation(
    linear, client_update.examples_type(clients[0]), toys.preprocess
  )
  assert str(evaluate.type_signature) == (
    '(<weights=<float32[4,3],float32[3]>@SERVER,examples={<x=float32[?,4],'
    'y=int32[?],seed=int32[2]>}@CLIENTS> -> '
    '<loss=float32,accuracy=float32,labels=float32>@SERVER)'
  )
  found = evaluate(weights, [toys.seeded(c) for c in clients])
  x, y = (np.concatenate([c[key] for c in clients]) for key in 'xy')
  probs = _softmax(x @ weights[0] + weights[1])
  np.testing.assert_allclose(found['accuracy'], np.mean(probs.argmax(-1) == y))
  np.testing.assert_allclose(
    found['loss'], -np.mean(np.log(probs[np.arange(len(y)), y])), rtol=1e-5
  )
  assert found['labels'] == 451


def test_agreement_of_three_models(linear, stock):
  weights = tuple(linear.initialize(seed) for seed in (0, 1, 2))
  x = toys.make_examples(450, seed=5)['x']
  agreement = evaluation.build_agreement(
    [linear] * 3,
    client_update.examples_type(toys.make_examples(1))['x'],
    toys.preprocess,
  )
  found = agreement(weights, x)
  probs = [_softmax(x @ kernel + bias) for kernel, bias in weights]
  pairs = [
    (p, q) for i, p in enumerate(probs) for q in probs[:i] + probs[i + 1 :]
  ]
  np.testing.assert_allclose(
    found['agreement_top1'],
    np.mean([np.mean(p.argmax(-1) == q.argmax(-1)) for p, q in pairs]),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    found['agreement_kl'],
    np.mean([np.mean(np.sum(p * np.log(p / q), -1)) for p, q in pairs]),
    rtol=1e-4,
  )
  for entropy, p in zip(found['entropy'], probs):
    np.testing.assert_allclose(
      entropy, -np.mean(np.sum(p * np.log(p), -1)), rtol=1e-5
    )


def test_evaluator_sends_clients_in_parts(linear, stock, monkeypatch):
  setting = toys.make_setting()
  built = {pool.name: pool.model.initialize(1) for pool in setting.pools}

  def evaluate():
    evaluator = evaluation.Evaluator(
      setting.pools,
      setting.task,
      setting.examples_type,
      unlabelled=setting.unlabelled,
    )
    return evaluator.evaluate(built)

  at_once = evaluate()
  monkeypatch.setattr(evaluation, '_CLIENTS_AT_ONCE', 5)
  in_parts = evaluate()
  assert set(at_once) == set(in_parts)
  for name, value in at_once.items():
    assert value == pytest.approx(in_parts[name], rel=1e-5)
  assert {'eval/a/accuracy', 'eval/b/loss', 'exchange/agreement_kl'} <= set(
    at_once
  )
  assert tf.executing_eagerly()
