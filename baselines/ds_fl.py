"""DS-FL: distillation-based semi-supervised federated learning.

Clients keep their models and send soft labels on a part o_r of open,
unlabelled data U that everyone has. The server averages and sharpens them
(entropy reduction aggregation, ERA), and clients and server learn the result q:

    upload on o_r ⊂ U   p_k(x) = softmax(f_k(x))
    ERA                 q(x)   = softmax(mean_k p_k(x) / T),   0 < T < 1
    SA (simple)         q(x)   = mean_k p_k(x)
    distil              cross-entropy of softmax(f(x)) with q(x)

The order of a round r: the server announces q and o_{r−1} of the round before,
and the o_r that it draws; a client distils on (o_{r−1}, q), trains on its own
data, and uploads p_k on o_r; the server aggregates over the clients of all
pools, whatever their models, and distils q on o_r into its own model of each
pool. These are the models that are evaluated and saved.

The softmax of ERA is one of probabilities, not of logits. It does not always
reduce the entropy: differences between probabilities below T times the log
ratio that is wanted are flattened, so that with many classes T must be smaller.
If it raises the mean entropy of a round a warning says so, and both entropies
are in the metrics. `power`, q ∝ (mean_k p_k)^(1/T), is not in the paper; it
always sharpens.

Where this is ours to choose, as the paper gives no more to us: only a cohort
takes part in a round. A client that skipped rounds gets, when it comes back,
the last q that the server announced, with its indices. A client that takes part
for the first time starts from its pool's first weights, not from the server's
model. Clients count equally in the mean, whatever their numbers of examples.
Models have no batch normalisation and no dropout.

T = 0.1, five passes in batches of 100, SGD 0.1 and |o_r| = 1,000 are recalled
from the authors' experiments with 100 clients, and not confirmed. Reported
elsewhere (FedGEMS): CIFAR-100 25.70 % with 16 equal clients of one model,
16.69 % with different ones.

References:
  Itahara et al., Distillation-Based Semi-Supervised Federated Learning for
  Communication-Efficient Collaborative Training with Non-IID Private Data, IEEE
  Transactions on Mobile Computing 2021. arXiv 2008.06180.
"""

import collections
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from baselines import personal_training
from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import computations
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import local_training
from tff_codist import losses
from tff_codist import models
from tff_codist import randomness
from tff_codist import task as task_lib

# Below the package's logger, whose lines appear above the progress bar.
_logger = logging.getLogger(f'tff_codist.{__name__}')

# Folded into a client's seed for its distillation; the passes of its local
# training fold in 0 and above.
_DISTILLATION = -1


class Announcement(NamedTuple):
  """What the server announces.

  Attributes:
    labelled: Raw inputs of o_{r−1}, `[|o|, ...]`; without rows in the rounds
      before the first q.
    soft_labels: q on them, float32 `[|o|, C]`.
    open: Raw inputs of o_r, `[|o|, ...]`.
  """

  labelled: np.ndarray
  soft_labels: np.ndarray
  open: np.ndarray


class DSFLState(NamedTuple):
  """The state of the algorithm.

  Attributes:
    pools: The clients, pool by pool; each keeps its weights.
    servers: {pool: weights of the server's model}.
    indices: o of the last round with an upload, int32 `[|o|]`, into U.
    soft_labels: q on it, float32 `[|o|, C]`.
    last_upload: That round, int32; 0 before any.
  """

  pools: personal_training.PoolStates
  servers: collections.OrderedDict
  indices: np.ndarray
  soft_labels: np.ndarray
  last_upload: np.int32


def sharpen(
  probs: tf.Tensor, *, aggregation: str, temperature: float
) -> tf.Tensor:
  """Returns q from the clients' mean soft labels.

  Args:
    probs: mean_k p_k, distributions `[..., C]`.
    aggregation: `'era'`, `'simple'` or `'power'`.
    temperature: T of `era` and `power`, in (0, 1).

  Returns:
    Distributions of the same shape, with the same order of the classes.
  """
  return {
    'era': lambda: tf.nn.softmax(probs / temperature),
    'simple': lambda: probs,
    'power': lambda: tf.nn.softmax(tf.math.log(probs) / temperature),
  }[aggregation]()


def build_aggregation(
  open_examples: int, num_classes: int, config: config_lib.DSFLConfig
) -> tff.Computation:
  """Builds the aggregation of the clients' soft labels.

  Type signature:
    (<total=float32[|o|,C]@SERVER, clients=float32@SERVER> -> <
    soft_labels=float32[|o|,C], mean_entropy=float32,
    label_entropy=float32>@SERVER)

  Args:
    open_examples: |o_r|.
    num_classes: C.
    config: `aggregation` and `temperature`.

  Returns:
    The computation: from Σ_k p_k and the number of clients, above 0, to q, and
    the entropy of mean_k p_k and of q, means over o_r in nats.
  """

  def aggregate(total, clients):
    probs = total / clients
    soft_labels = sharpen(
      probs, aggregation=config.aggregation, temperature=config.temperature
    )
    return collections.OrderedDict(
      soft_labels=soft_labels,
      mean_entropy=_mean_entropy(probs),
      label_entropy=_mean_entropy(soft_labels),
    )

  return computations.at_server(
    aggregate,
    tff.TensorType(np.float32, (open_examples, num_classes)),
    tff.TensorType(np.float32),
  )


def _mean_entropy(probs: tf.Tensor) -> tf.Tensor:
  products = tf.math.multiply_no_nan(tf.math.log(probs), probs)
  return -tf.reduce_mean(tf.reduce_sum(products, axis=-1))


def distil(
  model: models.Model,
  weights: models.Weights,
  x: tf.Tensor,
  soft_labels: tf.Tensor,
  seed: tf.Tensor,
  *,
  preprocess: task_lib.Preprocess,
  config: config_lib.DSFLConfig,
) -> tuple[models.Weights, tf.Tensor]:
  """Lets a model learn soft labels; call it in a `tf.function`.

  Args:
    model: The model.
    weights: Where it starts.
    x: Raw inputs `[n, ...]`; used without augmentation, as they were labelled.
      Without rows nothing changes.
    soft_labels: q, distributions `[n, C]`.
    seed: int32 `[2]`, which decides the order of the examples.
    preprocess: From raw inputs to the model's inputs.
    config: Passes, batches and learning rate.

  Returns:
    The weights, and the sum of the cross-entropies of all steps in nats.
  """

  def loss_of(trained, rows, seed):
    del seed  # Nothing is drawn in a batch.
    logits = model.logits(trained, preprocess(tf.gather(x, rows)), True)
    values = tf.nn.softmax_cross_entropy_with_logits(
      tf.gather(soft_labels, rows), logits
    )
    return tf.reduce_mean(values), tf.reduce_sum(values)

  sgd = tff.learning.optimizers.build_sgdm(config.learning_rate)
  _, weights, loss_sum = local_training.descend(
    loss_of,
    weights,
    sgd,
    models.fresh_optimizer_state(sgd, weights),
    num_examples=tf.shape(x)[0],
    epochs=config.epochs,
    batch_size=config.batch_size,
    seed=seed,
    zeros=tf.zeros([]),
  )
  return weights, loss_sum


def build_server_distillation(
  model: models.Model,
  x_type: tff.TensorType,
  preprocess: task_lib.Preprocess,
  config: config_lib.DSFLConfig,
) -> tff.Computation:
  """Builds the distillation of one pool's server model.

  Type signature:
    (<weights=W@SERVER, x=[?,...]@SERVER, soft_labels=float32[?,C]@SERVER,
    seed=int32[2]@SERVER> -> <weights=W, distillation_loss=float32,
    rejected=float32>@SERVER)

  Args:
    model: The pool's model.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the model's inputs.
    config: Passes, batches and learning rate.

  Returns:
    The computation. `distillation_loss` is the mean cross-entropy in nats. If
    the weights would not be finite they stay as they were, and `rejected` is 1.
  """

  @tf.function
  def learn(weights, x, soft_labels, seed):
    learned, loss_sum = distil(
      model,
      weights,
      x,
      soft_labels,
      seed,
      preprocess=preprocess,
      config=config,
    )
    is_finite = models.all_finite(learned)
    examples = tf.cast(config.epochs * tf.shape(x)[0], tf.float32)
    return collections.OrderedDict(
      weights=tf.cond(is_finite, lambda: learned, lambda: weights),
      distillation_loss=tf.where(is_finite, loss_sum / examples, 0),
      rejected=1 - tf.cast(is_finite, tf.float32),
    )

  return computations.at_server(
    learn,
    model.weights_type,
    x_type,
    tff.TensorType(np.float32, (None, model.num_classes)),
    tff.TensorType(np.int32, (2,)),
  )


def build_client_training(
  model: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  client: config_lib.ClientConfig,
  ds_fl: config_lib.DSFLConfig,
) -> tff.Computation:
  """Builds a round's work of one pool's clients.

  Type signature:
    (<announced=Announcement@SERVER, clients={<state=W,
    examples=<x,y,seed>>}@CLIENTS> -> <states={W}@CLIENTS,
    uploads=<probs=float32[|o|,C],clients=float32>@SERVER, metrics=M@SERVER>)

  Args:
    model: The pool's model.
    examples_type: TFF type of a client's examples.
    preprocess: From raw `x` to the model's inputs.
    client: Local training.
    ds_fl: Distillation, and |o_r|.

  Returns:
    The computation. Its uploads are Σ_k p_k on o_r and the number of clients
    in it; clients without examples are not.
  """

  def work(announced, weights, examples):
    weights, _ = distil(
      model,
      weights,
      announced.labelled,
      announced.soft_labels,
      tf.random.experimental.stateless_fold_in(examples['seed'], _DISTILLATION),
      preprocess=preprocess,
      config=ds_fl,
    )

    def loss_fn(y, logits):
      loss = tf.reduce_mean(losses.cross_entropy(y, logits))
      return loss, client_update.training_sums(loss, y, logits, None)

    weights, sums = personal_training.train_on_examples(
      model,
      weights,
      examples,
      loss_fn,
      client_update.zero_sums(),
      preprocess=preprocess,
      config=client,
    )
    has_examples = tf.cast(tf.size(examples['y']) > 0, tf.float32)
    logits = personal_training.logits_of(
      model,
      weights,
      announced.open,
      preprocess=preprocess,
      batch_size=ds_fl.batch_size,
    )
    upload = collections.OrderedDict(
      probs=has_examples * tf.nn.softmax(logits), clients=has_examples
    )
    return personal_training.PersonalResult(weights, upload, sums)

  x_type = examples_type['x']
  return personal_training.build_personal_training(
    work,
    tff.to_type(
      Announcement(
        x_type,
        tff.TensorType(np.float32, (None, model.num_classes)),
        tff.TensorType(x_type.dtype, (ds_fl.open_examples, *x_type.shape[1:])),
      )
    ),
    model.weights_type,
    examples_type,
    epochs=client.epochs,
  )


class Exchange:
  """What happens at the server: drawing o_r, aggregation, distillation."""

  def __init__(self, setting: algorithm.Setting, config: config_lib.Config):
    """Builds the computations.

    Args:
      setting: Pools, task and unlabelled data.
      config: The group `ds_fl`, and the seed.

    Raises:
      ConfigError: If there is no distillation data, or less than is drawn in a
        round.
    """
    fields, task = config.ds_fl, setting.task
    self._x = algorithm.require_unlabelled(setting, config).x
    if fields.open_examples > len(self._x):
      raise errors.ConfigError(
        f'ds_fl.open_examples = {fields.open_examples} of {len(self._x)} '
        'unlabelled examples',
        expected='at most as many as there are',
        fix='lower --ds_fl.open_examples, or raise --unlabelled.max_examples',
      )
    self._seed = config.seed
    self._num_open = fields.open_examples
    self._num_classes = task.num_classes
    self._aggregate = build_aggregation(
      fields.open_examples, task.num_classes, fields
    )
    self._distil = {
      pool.name: build_server_distillation(
        pool.model, setting.examples_type['x'], task.preprocess, fields
      )
      for pool in setting.pools
    }
    self._has_warned = False

  def initialize(self, pools: personal_training.PoolStates) -> DSFLState:
    """Returns the state before the first round, in which nothing is labelled.

    Args:
      pools: The clients.
    """
    return DSFLState(
      pools=pools,
      servers=collections.OrderedDict(
        (name, pool.start) for name, pool in pools.items()
      ),
      indices=np.zeros(self._num_open, np.int32),
      soft_labels=np.zeros((self._num_open, self._num_classes), np.float32),
      last_upload=np.int32(0),
    )

  def draw(self, round_num: int) -> np.ndarray:
    """Returns o_r, int32 `[|o|]`: places in U, none of them twice."""
    rng = randomness.derive_rng(self._seed, 'open examples', round_num)
    places = rng.choice(len(self._x), self._num_open, replace=False)
    return places.astype(np.int32)

  def announce(self, state: DSFLState, indices: np.ndarray) -> Announcement:
    """Returns what the clients get.

    Args:
      state: Has the last q and its indices.
      indices: o_r.
    """
    known = slice(None) if state.last_upload else slice(0)
    return Announcement(
      labelled=self._x[state.indices[known]],
      soft_labels=state.soft_labels[known],
      open=self._x[indices],
    )

  def run(
    self,
    state: DSFLState,
    uploads: Sequence[Mapping],
    indices: np.ndarray,
    round_num: int,
  ) -> tuple[DSFLState, algorithm.Metrics]:
    """Aggregates the uploads and distils them into every server model.

    Args:
      state: The state after the clients' work.
      uploads: Σ_k p_k and the number of clients of each pool.
      indices: o_r, which they label.
      round_num: r.

    Returns:
      The next state, the same if no client has uploaded anything, and metrics.
    """
    started = time.monotonic()
    clients = np.float32(sum(upload['clients'] for upload in uploads))
    metrics = {'exchange/teachers': clients}
    if clients:
      result = self._aggregate(
        sum(upload['probs'] for upload in uploads), clients
      )
      before, after = result['mean_entropy'], result['label_entropy']
      self._warn_if_flatter(before, after)
      metrics['exchange/mean_entropy'] = before
      metrics['exchange/label_entropy'] = after
      servers = collections.OrderedDict()
      for name, weights in state.servers.items():
        learned = self._distil[name](
          weights,
          self._x[indices],
          result['soft_labels'],
          randomness.derive_seed(self._seed, 'distillation', round_num, name),
        )
        servers[name] = learned.pop('weights')
        for metric, value in learned.items():
          metrics[f'exchange/{name}/{metric}'] = value
      state = state._replace(
        servers=servers,
        indices=indices,
        soft_labels=result['soft_labels'],
        last_upload=np.int32(round_num),
      )
    metrics['time/exchange_seconds'] = time.monotonic() - started
    return state, metrics

  def _warn_if_flatter(self, before: float, after: float) -> None:
    if after <= before or self._has_warned:
      return
    self._has_warned = True
    _logger.warning(
      'The aggregation raised the mean entropy of the soft labels from %.3f to '
      '%.3f nats: its temperature is too high for so many classes. A lower '
      '--ds_fl.temperature, or --ds_fl.aggregation power, sharpens them.',
      before,
      after,
    )


@algorithm.algorithms.register('ds_fl', 'ds_fl', *client_update.SGD_FIELDS)
def build_ds_fl(
  setting: algorithm.Setting, config: config_lib.Config
) -> algorithm.Algorithm:
  """Builds DS-FL.

  Args:
    setting: Pools, task, unlabelled data and client store.
    config: The groups `client` and `ds_fl`, and the seed.

  Returns:
    The algorithm; its models are the server's.

  Raises:
    ConfigError: If there is not enough distillation data, the models label
      sequences, the clients are to be protected, or there is no client store.
  """
  personal_training.check_soft_labels_fit(setting, config)
  exchange = Exchange(setting, config)
  pools = personal_training.PersonalPools(
    setting,
    {
      pool.name: build_client_training(
        pool.model,
        setting.examples_type,
        setting.task.preprocess,
        config.client,
        config.ds_fl,
      )
      for pool in setting.pools
    },
  )

  def initialize(seed):
    starts = {
      pool.name: pool.model.initialize(seed, pool.name)
      for pool in setting.pools
    }
    return exchange.initialize(pools.initialize(starts))

  def next_fn(state, cohorts, round_num):
    indices = exchange.draw(round_num)
    new_pools, uploads, metrics = pools.train(
      state.pools, cohorts, exchange.announce(state, indices)
    )
    state, exchange_metrics = exchange.run(
      state._replace(pools=new_pools), uploads, indices, round_num
    )
    return state, {**metrics, **exchange_metrics}

  return algorithm.Algorithm(
    initialize,
    next_fn,
    lambda state: {name: (w,) for name, w in state.servers.items()},
    traffic=soft_label_traffic(setting, config.ds_fl),
    client_states=lambda state: personal_training.stored(state.pools),
  )


def soft_label_traffic(
  setting: algorithm.Setting, config: config_lib.DSFLConfig
) -> dict[str, algorithm.Traffic]:
  """Returns what clients send and receive.

  |o|·C floats up; |o|·C floats down, with the indices of o_{r−1} and of o_r, of
  the size of a float. The clients have U already.

  Args:
    setting: Pools and task.
    config: |o|.
  """
  size = config.open_examples * setting.task.num_classes
  return {
    pool.name: algorithm.Traffic(down=size + 2 * config.open_examples, up=size)
    for pool in setting.pools
  }


@task_lib.presets.register('ds_fl')
def preset(quick: bool) -> config_lib.Config:
  """DS-FL on CIFAR-100 with the pools, models and data of preset `cifar100`.

  Command: bin/train.py --preset ds_fl --run_dir runs/ds_fl
  Measured: `--preset digits --algorithm.name ds_fl --ds_fl.open_examples 100`
  ends at small 84.2 %, large 86.8 % (`fed_avg` 94.8 %, 89.2 %), means of the
  last 5 evaluations, one seed, for 4.8 MB up in place of 11.6 by the small pool
  and 1.9 in place of 97.6 by the large one.

  T is a tenth of the authors': with 100 classes 0.1 flattens the soft labels,
  which 0.01 sharpens from 4.49 to 4.33 nats in round 1 and from 4.48 to 3.76 in
  round 2 (the large model on a tenth of the clients). Half of their |o_r| and
  two of their five passes make a round five times cheaper; distillation on the
  clients still takes most of its time.

  Args:
    quick: Two rounds of few clients, examples and steps.
  """
  return config_lib.change(
    task_lib.presets['cifar100'](quick),
    algorithm={'name': 'ds_fl'},
    ds_fl={
      'temperature': 0.01,
      'open_examples': 100 if quick else 500,
      'epochs': 1 if quick else 2,
    },
  )
