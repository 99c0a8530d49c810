"""Rounds of clients that keep models of their own and send no weights.

What the methods with personal models share: of each pool, the clients of the
cohort get what the server announces, and each the state S that it had when it
last took part; it returns the state that it keeps, and an upload that only the
sum over the clients reveals.
"""

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients as clients_lib
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import local_training
from tff_codist import models
from tff_codist import personal
from tff_codist import task as task_lib


class PersonalResult(NamedTuple):
  """What one client's work of a round gives.

  Attributes:
    state: What the client keeps, S.
    upload: What is added up over the clients, a structure of float32 tensors.
    sums: Of its local training, see `client_update.training_sums`.
  """

  state: Any
  upload: Any
  sums: collections.OrderedDict


# One client's work, in a `tf.function`: from what the server announces, the
# client's state and its examples. A client without examples trains on nothing.
ClientWork = Callable[[Any, Any, clients_lib.SeededExamples], PersonalResult]

# From the labels and the logits of a batch to the loss, a scalar, and a
# structure of sums.
BatchLossFn = Callable[[tf.Tensor, tf.Tensor], tuple]


class Member(NamedTuple):
  """A client in a round.

  Attributes:
    client_id: Its id.
    examples: `<x, y, seed>`.
    state: What it keeps, S.
  """

  client_id: str
  examples: clients_lib.SeededExamples
  state: Any


class PersonalPool(NamedTuple):
  """One pool's clients between rounds.

  Attributes:
    start: What a client has that takes part for the first time, S.
    clients: What the others have, see `personal.ClientStates`.
  """

  start: Any
  clients: personal.Digests


# {pool: PersonalPool}
PoolStates = collections.OrderedDict


def train_on_examples(
  model: models.Model,
  weights: models.Weights,
  examples: clients_lib.SeededExamples,
  loss_fn: BatchLossFn,
  zeros: Any,
  *,
  preprocess: task_lib.Preprocess,
  config: config_lib.ClientConfig,
) -> tuple[models.Weights, Any]:
  """Trains weights on a client's own examples; call it in a `tf.function`.

  Args:
    model: The pool's model.
    weights: Where to start.
    examples: `<x=[n, ...], y=[n], seed=int32[2]>`.
    loss_fn: The loss of a batch, and what is to be added up.
    zeros: The structure of the sums, of zeros.
    preprocess: From raw `x` to the model's inputs.
    config: Local training.

  Returns:
    The weights after E epochs of SGD, and the sums over all batches.
  """

  def loss_of(trained, rows, seed):
    x = preprocess(tf.gather(examples['x'], rows), seed)
    logits = model.logits(trained, x, training=True)
    return loss_fn(tf.gather(examples['y'], rows), logits)

  optimizer = client_update.build_client_optimizer(config)
  _, weights, sums = local_training.descend(
    loss_of,
    weights,
    optimizer,
    models.fresh_optimizer_state(optimizer, weights),
    num_examples=tf.shape(examples['y'])[0],
    epochs=config.epochs,
    batch_size=config.batch_size,
    seed=examples['seed'],
    zeros=zeros,
  )
  return weights, sums


def logits_of(
  model: models.Model,
  weights: models.Weights,
  x: tf.Tensor,
  *,
  preprocess: task_lib.Preprocess,
  batch_size: int,
) -> tf.Tensor:
  """Returns f(x), `[n, ..., C]`, in inference mode; call in a `tf.function`.

  Args:
    model: The model f.
    weights: Its weights.
    x: Raw inputs `[n, ...]`, used without augmentation.
    preprocess: From raw inputs to the model's inputs.
    batch_size: Examples in a forward pass, which bounds memory.
  """
  parts = tf.TensorArray(
    tf.float32,
    size=0,
    dynamic_size=True,
    infer_shape=False,
    element_shape=(None, *model.output_shape),
  )
  for start in tf.range(0, tf.shape(x)[0], batch_size):
    logits = model.logits(weights, preprocess(x[start : start + batch_size]))
    parts = parts.write(parts.size(), logits)
  return tf.ensure_shape(parts.concat(), (x.shape[0], *model.output_shape))


def build_personal_training(
  work: ClientWork,
  announced_type: tff.Type,
  state_type: tff.Type,
  examples_type: tff.Type,
  *,
  epochs: int,
) -> tff.Computation:
  """Builds the work of one pool's clients in a round.

  A client whose state or upload would not be finite keeps what it had and
  uploads zeros.

  Type signature:
    (<announced=H@SERVER, clients={<state=S, examples=<x,y,seed>>}@CLIENTS> ->
    <states={S}@CLIENTS, uploads=U@SERVER, metrics=M@SERVER>)

  Args:
    work: What a client does.
    announced_type: TFF type H of what the server announces to all.
    state_type: TFF type S of what a client keeps.
    examples_type: TFF type of a client's examples.
    epochs: Passes of local training, for the metrics.

  Returns:
    The computation. U is the sum of the uploads, M as in
    `client_update.SUMMED_METRICS`.
  """
  client_type = tff.StructWithPythonType(
    [('state', state_type), ('examples', examples_type)],
    collections.OrderedDict,
  )

  @tf.function
  def guarded(announced, client):
    state, upload, sums = work(announced, client['state'], client['examples'])
    num_examples = tf.shape(client['examples']['y'])[0]
    metrics = collections.OrderedDict(
      **sums,
      examples=tf.cast(num_examples * epochs, tf.float32),
      clients=tf.cast(num_examples > 0, tf.float32),
    )
    is_finite = models.all_finite(
      [leaf for leaf in tf.nest.flatten((state, upload)) if _is_float(leaf)]
    )
    state, upload, metrics = tf.cond(
      is_finite,
      lambda: (state, upload, metrics),
      lambda: (
        client['state'],
        *tf.nest.map_structure(tf.zeros_like, (upload, metrics)),
      ),
    )
    metrics['clients_dropped'] = 1 - tf.cast(is_finite, tf.float32)
    return PersonalResult(state, upload, metrics)

  @tff.tensorflow.computation(announced_type, client_type)
  def work_on_client(announced, client):
    return guarded(announced, client)

  release = client_update.build_metrics_release(
    client_update.SUMMED_METRICS, work_on_client.type_signature.result.sums
  )

  @tff.federated_computation(
    tff.FederatedType(announced_type, tff.SERVER),
    tff.FederatedType(client_type, tff.CLIENTS),
  )
  def train(announced, clients):
    results = tff.federated_map(
      work_on_client, (tff.federated_broadcast(announced), clients)
    )
    return collections.OrderedDict(
      states=results.state,
      uploads=tff.federated_sum(results.upload),
      metrics=release.next(release.initialize(), results.sums).result,
    )

  return train


def _is_float(tensor: tf.Tensor) -> bool:
  return tensor.dtype.is_floating


def gather(
  clients: personal.ClientStates,
  digests: personal.Digests,
  cohort: clients_lib.Cohort,
  start: Any,
) -> list[Member]:
  """Returns a pool's clients of a round with what they have.

  Args:
    clients: The pool's clients.
    digests: What they have.
    cohort: Examples of those in the round.
    start: What a client has that takes part for the first time, S.
  """
  states = clients.load(digests, cohort.client_ids, start)
  return list(map(Member, cohort.client_ids, cohort, states))


def run(
  computation: tff.Computation,
  announced: Any,
  members: Sequence[Member],
  *,
  pool: str,
) -> tuple[list[Member], Mapping[str, Any]]:
  """Lets a pool's clients work.

  Args:
    computation: What they do, see `build_personal_training`.
    announced: What the server announces to them, H.
    members: The clients, at least one.
    pool: The pool's name, for messages.

  Returns:
    The clients with what they have then, and the computation's result.

  Raises:
    ComputationError: If the work of a client fails; it names pool and client.
  """
  with errors.in_pool(pool, [member.client_id for member in members]):
    result = computation(
      announced,
      [
        collections.OrderedDict(state=member.state, examples=member.examples)
        for member in members
      ],
    )
  return [
    member._replace(state=state)
    for member, state in zip(members, result['states'])
  ], result


def save(
  clients: personal.ClientStates,
  digests: personal.Digests,
  members: Sequence[Member],
) -> personal.Digests:
  """Stores what clients of a pool have now and returns the new digests."""
  return clients.save(
    digests, [m.client_id for m in members], [m.state for m in members]
  )


class PersonalPools:
  """The clients of all pools, each with what it keeps between rounds."""

  def __init__(
    self,
    setting: algorithm.Setting,
    computations: Mapping[str, tff.Computation],
  ):
    """Prepares the rounds.

    Args:
      setting: The pools, and the client store.
      computations: {pool: its computation of `build_personal_training`}.

    Raises:
      ConfigError: If there is no client store.
    """
    self._train = computations
    self._states = {
      pool.name: personal.ClientStates(pool, setting) for pool in setting.pools
    }

  def initialize(self, starts: Mapping[str, Any]) -> PoolStates:
    """Returns the pools before the first round.

    Args:
      starts: {pool: what its clients start with, S}.
    """
    return PoolStates(
      (name, PersonalPool(start, self._states[name].initialize()))
      for name, start in starts.items()
    )

  def train(
    self, pools: PoolStates, cohorts: algorithm.Cohorts, announced: Any
  ) -> tuple[PoolStates, list[Any], algorithm.Metrics]:
    """Runs every pool's clients.

    Args:
      pools: The pools.
      cohorts: {pool: examples of its clients}.
      announced: What the server announces to the clients of all pools, H.

    Returns:
      The pools, the uploads' sum U of each pool that has clients in the round,
      and metrics `train/<pool>/*`.
    """
    pools, uploads, metrics = PoolStates(pools), [], {}
    started = time.monotonic()
    for name, pool in pools.items():
      metrics[f'train/{name}/clients'] = 0.0
      if not cohorts[name]:
        continue
      states = self._states[name]
      members = gather(states, pool.clients, cohorts[name], pool.start)
      members, result = run(self._train[name], announced, members, pool=name)
      pools[name] = pool._replace(clients=save(states, pool.clients, members))
      uploads.append(result['uploads'])
      for metric, value in result['metrics'].items():
        metrics[f'train/{name}/{metric}'] = value
    metrics['time/clients_seconds'] = time.monotonic() - started
    return pools, uploads, metrics

  def sample(self, pools: PoolStates, count: int) -> dict[str, list[Any]]:
    """Returns what a fixed sample of each pool's clients has.

    Args:
      pools: The pools.
      count: Clients of each pool, all of them if they are fewer.
    """
    return {
      name: states.load(
        pools[name].clients, states.sample(count), pools[name].start
      )
      for name, states in self._states.items()
    }


def stored(pools: PoolStates) -> list[bytes]:
  """Returns the digests of everything that the pools' clients have."""
  return personal.stored(pool.clients for pool in pools.values())


def check_soft_labels_fit(
  setting: algorithm.Setting, config: config_lib.Config
) -> None:
  """Checks that the pools can exchange soft labels without protection.

  Args:
    setting: The pools and the task.
    config: The algorithm's name and the group `privacy`.

  Raises:
    ConfigError: If the clients are to be protected by differential privacy, or
      the models label sequences, whose soft labels are larger than models.
  """
  algorithm.refuse_privacy(config, 'clients send soft labels')
  for pool in setting.pools:
    if len(pool.model.output_shape) > 1:
      raise errors.ConfigError(
        f'{config.algorithm.name} with model {pool.model.name!r}, whose '
        f'outputs are sequences of {pool.model.num_classes} classes',
        expected='one label for an example, so that soft labels are small',
        fix='choose a task of images, or another algorithm',
      )
