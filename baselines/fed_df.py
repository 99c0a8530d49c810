"""FedDF: ensemble distillation for model fusion.

The clients' models are averaged within each prototype P (a pool), as in FedAvg.
Then, at the server, every average learns from the ensemble of *all* models that
came back, whatever their architecture, on unlabelled data U:

    x_0^P    = Σ_{k∈S^P} (n_k / Σ n_j) · x_k
    z(u)     = mean over all k ∈ S of f(x_k, u)                 (AVGLOGITS)
    x_{j+1}^P = AdamStep(x_j^P, ∇ KL(σ(z(u_j)) ‖ σ(f(x_j^P, u_j)))),  j < N

and x_N^P is the prototype's next model. Adam is new in every round; its rate
falls along a cosine. With a validation set the server can stop early, keep the
best student, and leave out clients that are hardly better than chance.

The server sees each client's model. So secure aggregation and central
differential privacy do not apply.

Where the paper and its code differ, this follows the paper: the average weighs
clients by their examples (the code: uniformly), and the logits are averaged
before the softmax (the code needs an option for that). The code keeps the best
distilled student even if it is worse than the average before distillation; here
the average is one of the candidates. Models have no batch normalisation.

References:
  Lin et al., Ensemble Distillation for Robust Model Fusion in Federated
  Learning, NeurIPS 2020, Algorithms 1 and 3. arXiv 2006.07242.
"""

import collections
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import codist
from tff_codist import computations
from tff_codist import config as config_lib
from tff_codist import distillation
from tff_codist import errors
from tff_codist import models
from tff_codist import task as task_lib
from tff_codist import teachers as teachers_lib

# A client's model is left out up to this multiple of chance, as in the paper's
# code.
_CHANCES = 1.2
# Logits of teachers that are held at once, which bounds memory.
_LOGITS_AT_ONCE = 2**24

# State: {prototype: weights}.
FedDFState = collections.OrderedDict


class Member(NamedTuple):
  """A client whose model the server has.

  Attributes:
    client_id: Its id; `None` if it is not known.
    weights: x_k.
    share: n_k, or what `client.weighting` puts in its place, above 0.
  """

  client_id: Optional[str]
  weights: models.Weights
  share: float


# {prototype: the state of its distillation's Adam}
Optimizers = collections.OrderedDict
# {prototype: its members}
Members = Mapping[str, Sequence[Member]]
# s_k(u) of each member of each prototype: from the members and raw inputs
# `[steps, batch, ...]` to {prototype: `[members, steps, batch]`}.
Score = Callable[[Members, np.ndarray], Mapping[str, np.ndarray]]


def score_equally(
  members: Members, batches: np.ndarray
) -> Mapping[str, np.ndarray]:
  """Returns the same score for everybody, a `Score`."""
  return {
    name: np.ones((len(own), *batches.shape[:2]), np.float32)
    for name, own in members.items()
  }


def build_average(model: models.Model) -> tff.Computation:
  """Builds the weighted mean of a prototype's clients.

  Type signature:
    (<members=<float32[?,...],...>@SERVER, shares=float32[?]@SERVER> ->
    W@SERVER)

  Args:
    model: The prototype's model.

  Returns:
    The computation. `members` stacks the clients' weights, tensor by tensor;
    `shares` add up to 1.
  """

  def average(members, shares):
    return tuple(tf.tensordot(shares, leaf, 1) for leaf in members)

  return computations.at_server(
    average, stacked_type(model), tff.TensorType(np.float32, (None,))
  )


def build_ensemble(
  model: models.Model, x_type: tff.TensorType, preprocess: task_lib.Preprocess
) -> tff.Computation:
  """Builds the weighted sum of the logits of a prototype's clients.

  Type signature:
    (<members=<float32[?,...],...>@SERVER, shares=float32[?,steps,batch]@SERVER,
    batches=[steps,batch,...]@SERVER> -> float32[steps,batch,...,C]@SERVER)

  Args:
    model: The prototype's model.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the model's inputs.

  Returns:
    The computation: Σ_k s_k(u) · f(x_k, u), in inference mode. `members` stacks
    the clients' weights; `shares` has each client's s_k(u).
  """

  @tf.function
  def add_up(members, shares, batches):
    x = tf.map_fn(preprocess, batches, fn_output_signature=model.input_dtype)
    # Shares of examples weigh all logits of a sequence.
    shares = tf.reshape(
      shares, [*tf.unstack(tf.shape(shares)), *[1] * len(model.output_shape)]
    )

    def logits_of(k):
      weights = tuple(leaf[k] for leaf in members)
      return tf.map_fn(
        lambda one: model.logits(weights, one),
        x,
        fn_output_signature=tf.float32,
      )

    total = shares[0] * logits_of(0)
    for k in tf.range(1, tf.shape(shares)[0]):
      total += shares[k] * logits_of(k)
    return total

  return computations.at_server(
    add_up,
    stacked_type(model),
    tff.TensorType(np.float32, (None, None, None)),
    tff.TensorType(x_type.dtype, (None, *x_type.shape)),
  )


def stacked_type(model: models.Model) -> tff.StructWithPythonType:
  """Returns the TFF type of several clients' weights, stacked."""
  return tff.StructWithPythonType(
    [
      tff.TensorType(leaf.dtype, (None, *leaf.shape))
      for leaf in model.weights_type
    ],
    tuple,
  )


def stack(members: Sequence[Member]) -> models.Weights:
  """Returns the members' weights in the form of `stacked_type`."""
  return tuple(map(np.stack, zip(*(member.weights for member in members))))


class Prototypes:
  """Local training whose models the server gets one by one."""

  def __init__(self, setting: algorithm.Setting, config: config_lib.Config):
    """Builds the computations of each prototype.

    Args:
      setting: The pools, each a prototype, and the task.
      config: The group `client`.

    Raises:
      ConfigError: If the clients are to be protected by differential privacy.
    """
    algorithm.refuse_privacy(config, "the server sees each client's model")
    task = setting.task
    self.models = {pool.name: pool.model for pool in setting.pools}
    self._train = {
      name: client_update.build_client_models(
        model,
        setting.examples_type,
        task.preprocess,
        config.client,
        uncounted=task.padding,
      )
      for name, model in self.models.items()
    }
    self._average = {
      name: build_average(model) for name, model in self.models.items()
    }

  def initialize(self, seed: int) -> FedDFState:
    """Returns every prototype's fresh weights."""
    return FedDFState(
      (name, model.initialize(seed, name))
      for name, model in self.models.items()
    )

  def train(
    self, state: FedDFState, cohorts: algorithm.Cohorts
  ) -> tuple[Members, algorithm.Metrics]:
    """Runs every prototype's clients.

    Args:
      state: The prototypes' weights.
      cohorts: {prototype: examples of its clients}.

    Returns:
      {prototype: its members}, without clients whose training was not finite or
      who have no examples, and metrics `train/<prototype>/*`.
    """
    members, metrics = {}, {}
    started = time.monotonic()
    for name, weights in state.items():
      metrics[f'train/{name}/clients'] = 0.0
      members[name] = []
      if not cohorts[name]:
        continue
      client_ids = getattr(cohorts[name], 'client_ids', ())
      with errors.in_pool(name, client_ids):
        result = self._train[name](weights, cohorts[name])
      members[name] = [
        Member(client_id, *client)
        for client_id, client in itertools.zip_longest(
          client_ids, result['models']
        )
        if client.share > 0
      ]
      for metric, value in result['metrics'].items():
        metrics[f'train/{name}/{metric}'] = value
    metrics['time/clients_seconds'] = time.monotonic() - started
    return members, metrics

  def average(self, state: FedDFState, members: Members) -> FedDFState:
    """Returns every prototype's mean; without members it stays as it was."""
    state = FedDFState(state)
    for name, own in members.items():
      if own:
        shares = np.array([member.share for member in own], np.float32)
        state[name] = self._average[name](stack(own), shares / shares.sum())
    return state


class Fusion:
  """Distillation of the ensemble of all clients into every prototype."""

  def __init__(self, setting: algorithm.Setting, config: config_lib.Config):
    """Builds the computations of each prototype.

    Args:
      setting: Pools, task, unlabelled data and validation set.
      config: The groups `fed_df` and `distillation`.

    Raises:
      ConfigError: If there is no distillation data, or no validation set where
        one is needed.
    """
    fields, task = config.fed_df, setting.task
    self._unlabelled = algorithm.require_unlabelled(setting, config)
    for needs, flag in (
      (fields.selection == 'best', '--fed_df.selection best'),
      (fields.drop_worst, '--fed_df.drop_worst'),
    ):
      if needs and setting.validation is None:
        raise errors.ConfigError(
          f'{flag} without a validation set',
          expected='labelled examples at the server',
          fix='set --task.validation_clients above 0',
        )
    self._fields = fields
    self._selects = fields.selection == 'best'
    self._batch_size = config.distillation.batch_size
    self._chance = 1 / task.num_classes
    if self._selects or fields.drop_worst:
      self._teachers = teachers_lib.Teachers(setting)
    self._num_logits = max(pool.model.num_logits for pool in setting.pools)
    x_type = setting.examples_type['x']

    def rate(step):
      share = tf.cast(step, tf.float32) / max(1, fields.steps)
      return fields.learning_rate * 0.5 * (1 + tf.cos(math.pi * share))

    self._imitation = {
      pool.name: distillation.build_imitation(
        pool.model,
        x_type,
        task.preprocess,
        config.distillation,
        learning_rate=rate if fields.anneal else fields.learning_rate,
        uncounted=task.last_tokens,
      )
      for pool in setting.pools
    }
    self._ensemble = {
      pool.name: build_ensemble(pool.model, x_type, task.preprocess)
      for pool in setting.pools
    }

  def drop_worst(self, members: Members) -> Members:
    """Returns the members that are better than chance, at least the best one.

    All of them without `fed_df.drop_worst`.
    """
    if not self._fields.drop_worst:
      return members
    accuracies = {
      name: [self._accuracy(name, member.weights) for member in own]
      for name, own in members.items()
    }
    best = max((a for own in accuracies.values() for a in own), default=0.0)
    least = min(best, math.nextafter(_CHANCES * self._chance, 1))
    return {
      name: [m for m, a in zip(own, accuracies[name]) if a >= least]
      for name, own in members.items()
    }

  def initialize(self, state: FedDFState) -> Optimizers:
    """Returns a fresh Adam for each prototype."""
    return Optimizers(
      (name, self._imitation[name].initialize(weights))
      for name, weights in state.items()
    )

  def run(
    self,
    optimizers: Optimizers,
    state: FedDFState,
    members: Members,
    index: int,
    *,
    score: Score = score_equally,
  ) -> tuple[Optimizers, FedDFState, algorithm.Metrics]:
    """Distils into every prototype that has members.

    Args:
      optimizers: Each prototype's Adam.
      state: The averages x_0^P.
      members: {prototype: its members}, the teachers.
      index: Number of exchanges before this one; it sets the place in U.
      score: s_k(u), how much each teacher counts.

    Returns:
      Each prototype's Adam and weights after the last step, and metrics.
    """
    started = time.monotonic()
    students = {
      name: _Student(
        weights=state[name],
        optimizer=optimizers[name],
        best=state[name],
        best_accuracy=(
          self._accuracy(name, state[name]) if self._selects else 0.0
        ),
      )
      for name, own in members.items()
      if own
    }
    first_step = index * self._fields.steps
    for start, stop in self._blocks():
      learning = {
        name: student
        for name, student in students.items()
        if not self._selects
        or start - student.best_step < self._fields.patience
      }
      if not learning:
        break
      batches = self._unlabelled.batches(
        first_step + start, stop - start, self._batch_size
      )
      logits = self.mean_logits(members, batches, score)
      for name, student in learning.items():
        students[name] = self._learn(
          name, student, logits[name], batches, start, stop
        )
    optimizers, state, metrics = Optimizers(optimizers), FedDFState(state), {}
    for name, student in students.items():
      optimizers[name] = student.optimizer
      state[name] = student.best if self._selects else student.weights
      steps = max(1, student.steps)
      metrics[f'exchange/{name}/distillation_loss'] = student.loss / steps
      metrics[f'exchange/{name}/steps'] = student.steps
    metrics['exchange/teachers'] = sum(map(len, members.values()))
    metrics['time/exchange_seconds'] = time.monotonic() - started
    return optimizers, state, metrics

  def _learn(self, name, student, logits, batches, start, stop):
    """Returns a student after the steps of one block."""
    result = self._imitation[name].next(
      student.optimizer, student.weights, logits, batches
    )
    weights = tuple(
      map(np.subtract, student.weights, result['pseudo_gradient'])
    )
    student = student._replace(
      weights=weights,
      optimizer=result['state'],
      loss=student.loss
      + (stop - start) * float(result['metrics']['distillation_loss']),
      steps=stop,
    )
    if self._selects and self._is_measured(stop):
      accuracy = self._accuracy(name, weights)
      if accuracy > student.best_accuracy:
        return student._replace(
          best=weights, best_accuracy=accuracy, best_step=stop
        )
    return student

  def _blocks(self) -> Iterator[tuple[int, int]]:
    """Returns the first and the last step of each call, short of memory."""
    most = max(1, _LOGITS_AT_ONCE // (self._batch_size * self._num_logits))
    start = 0
    while start < self._fields.steps:
      stop = min(start + most, self._fields.steps)
      if self._selects:
        every = self._fields.steps_per_validation
        stop = min(stop, (start // every + 1) * every)
      yield start, stop
      start = stop

  def _is_measured(self, step: int) -> bool:
    every = self._fields.steps_per_validation
    return step % every == 0 or step == self._fields.steps

  def mean_logits(
    self,
    members: Members,
    batches: np.ndarray,
    score: Score = score_equally,
  ) -> dict[str, np.ndarray]:
    """Returns z of some batches for each prototype with members.

    z(u) = Σ_k s_k(u) · f(x_k, u) / Σ_k s_k(u).

    Args:
      members: {prototype: its members}, the teachers.
      batches: Raw inputs `[steps, batch, ...]`.
      score: s_k(u).
    """
    members = {name: own for name, own in members.items() if own}
    scores = score(members, batches)
    sums = {
      name: self._ensemble[name](stack(own), scores[name], batches)
      for name, own in members.items()
    }

    def mean(names):
      z = sum(sums[name] for name in names)
      total = sum(scores[name].sum(axis=0) for name in names)
      # All logits of a sequence have the score of their example.
      return z / total.reshape(*total.shape, *[1] * (z.ndim - 2))

    if self._fields.teachers == 'prototype':
      return {name: mean([name]) for name in members}
    return dict.fromkeys(members, mean(members))

  def _accuracy(self, name: str, weights: models.Weights) -> float:
    return self._teachers.validate(name, weights)['validation_accuracy']


class _Student(NamedTuple):
  """A prototype that learns.

  Attributes:
    weights: x_j.
    optimizer: Adam's state.
    best: The best weights on the validation set so far.
    best_accuracy: Theirs.
    best_step: How many steps they took.
    loss: Sum of the losses of all steps.
    steps: j.
  """

  weights: models.Weights
  optimizer: object
  best: models.Weights
  best_accuracy: float
  best_step: int = 0
  loss: float = 0.0
  steps: int = 0


@algorithm.algorithms.register(
  'fed_df',
  'fed_df',
  *client_update.MEAN_FIELDS,
  *distillation.PASS_FIELDS,
)
def build_fed_df(
  setting: algorithm.Setting, config: config_lib.Config
) -> algorithm.Algorithm:
  """Builds FedDF.

  Args:
    setting: Pools, each a prototype; task, unlabelled data and validation set.
    config: The groups `client`, `distillation` and `fed_df`.

  Returns:
    The algorithm.

  Raises:
    ConfigError: If there is no distillation data, no validation set where one
      is needed, or the clients are to be protected.
  """
  prototypes = Prototypes(setting, config)
  fusion = Fusion(setting, config)

  def next_fn(state, cohorts, round_num):
    members, metrics = prototypes.train(state, cohorts)
    teachers = fusion.drop_worst(members)
    metrics['exchange/clients_dropped'] = sum(
      len(own) - len(teachers[name]) for name, own in members.items()
    )
    state = prototypes.average(state, teachers)
    _, state, exchange_metrics = fusion.run(
      fusion.initialize(state), state, teachers, round_num - 1
    )
    return state, {**metrics, **exchange_metrics}

  return algorithm.Algorithm(
    prototypes.initialize,
    next_fn,
    lambda state: {name: (weights,) for name, weights in state.items()},
    traffic=codist.model_traffic(setting),
  )


@task_lib.presets.register('fed_df')
def preset(quick: bool) -> config_lib.Config:
  """FedDF on CIFAR-100 with the pools, models and data of preset `cifar100`.

  Command: bin/train.py --preset fed_df --run_dir runs/fed_df

  Adam 1e-3 along a cosine, gradients clipped to norm 5, temperature 1 and
  batches of 128 as published; 100 steps, which the paper finds nearly as good
  as its 10,000.

  Args:
    quick: Two rounds of few clients and steps.
  """
  return config_lib.change(
    task_lib.presets['cifar100'](quick),
    algorithm={'name': 'fed_df'},
    distillation={
      'batch_size': 128,
      'augment': False,
      'clip_norm': 5.0,
      'epsilon': 1e-7,
    },
    fed_df={'steps': 4 if quick else 100},
  )
