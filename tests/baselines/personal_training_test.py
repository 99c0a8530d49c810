"""What methods with personal models share: logits, rounds, what they refuse."""

import numpy as np
import pytest
import tensorflow as tf

import baselines  # noqa: F401  Registers the methods.
from baselines import personal_training
from tff_codist import algorithm
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist.testing import toys


@pytest.mark.parametrize('num_rows, sizes', [(20, (7, 20, 64)), (1, (3,))])
def test_logits_do_not_depend_on_the_batches(num_rows, sizes):
  model = models.Model('large', toys.MODELS['large'])
  weights, x = model.initialize(3), toys.make_examples(num_rows)['x']
  expected = tf.function(model.logits)(weights, x)
  for batch_size in sizes:
    found = tf.function(personal_training.logits_of)(
      model, weights, x, preprocess=toys.preprocess, batch_size=batch_size
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_rows_have_no_logits():
  model = models.Model('small', toys.MODELS['small'])
  found = tf.function(personal_training.logits_of)(
    model,
    model.initialize(1),
    np.zeros((0, toys.NUM_FEATURES), np.float32),
    preprocess=toys.preprocess,
    batch_size=5,
  )
  assert found.shape == (0, toys.NUM_CLASSES)


def _sequences(setting):
  layers = tf.keras.layers

  def build():
    return tf.keras.Sequential(
      [layers.InputLayer((4,)), layers.Reshape((4, 1)), layers.Dense(3)]
    )

  pool = setting.pools[0]._replace(model=models.Model('sequences', build))
  return setting._replace(pools=[pool])


@pytest.mark.parametrize('name', ['ds_fl', 'fd', 'fed_md'])
@pytest.mark.parametrize(
  'change, groups, message',
  [
    (lambda s: s._replace(client_store=None), {}, 'no client store'),
    (_sequences, {}, 'outputs are sequences'),
    (lambda s: s, {'privacy': {'mechanism': ('gaussian',)}}, 'soft labels'),
  ],
)
def test_what_does_not_fit_is_refused(name, change, groups, message):
  setting = toys.make_setting()
  public = toys.make_examples(200, seed=7)
  setting = setting._replace(task=setting.task._replace(public=public))
  config = config_lib.change(
    config_lib.Config(),
    algorithm={'name': name},
    ds_fl={'open_examples': 20},
    fed_md={'alignment_size': 30},
    **groups,
  )
  with pytest.raises(errors.ConfigError, match=message):
    algorithm.algorithms[name](change(setting), config)
