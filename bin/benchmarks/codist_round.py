"""Workload `round`: where the time of a MERGED CODIST round on digits goes.

On every runtime the round is set against the least that it could cost: the
clients' updates of both pools, and the distillation steps in plain TensorFlow.
"""

import contextlib
import itertools
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np

from benchmarks import processes

_RUNTIMES = ('stock', 'in_process')


class Round(NamedTuple):
  """One round.

  Attributes:
    seconds: What it took; the first one includes all that is built before it.
    numbers: The seconds of its phases `time/*`, the last of which is their sum;
      `bare_distillation_seconds`, the same steps in plain TensorFlow; and
      `ratio_to_parts`, the sum over that of clients and bare distillation.
  """

  seconds: float
  numbers: dict[str, float]


def build_bare_distillation(
  experiment, weights: Mapping[str, tuple]
) -> Callable[[np.ndarray], None]:
  """Builds the distillation of two models into each other, without federation.

  Both train variables with TensorFlow's fused Adam. They go on from where the
  exchange before left them, and the second student's teacher has already
  learnt: other numbers than the algorithm's, at the same cost.

  Args:
    experiment: An `Experiment` with two pools.
    weights: {pool: weights at the start}.

  Returns:
    A function of the batches `[steps, batch, ...]` of an exchange.
  """
  import tensorflow as tf

  config = experiment.config.distillation
  preprocess = experiment.task.preprocess

  def build_pass(student, teacher):
    optimizer = tf.keras.optimizers.legacy.Adam(
      experiment.config.merged.learning_rate,
      config.beta1,
      config.beta2,
      config.epsilon,
    )

    @tf.function
    def distil(batches):
      for batch in batches:
        x = preprocess(batch)
        probs = tf.nn.softmax(teacher(x) / config.temperature)
        with tf.GradientTape() as tape:
          logits = student(x, training=True) / config.temperature
          loss = tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(labels=probs, logits=logits)
          )
          loss *= config.temperature**config.temperature_exponent
        variables = student.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables))

    return distil

  keras_models = [
    pool.model.to_keras(weights[pool.name]) for pool in experiment.pools
  ]
  passes = [
    build_pass(student, teacher)
    for student, teacher in itertools.permutations(keras_models, 2)
  ]

  def distil_all(batches):
    for distil in passes:
      distil(batches)
    for keras_model in keras_models:
      keras_model.trainable_variables[-1].numpy()  # Waits for a GPU.

  return distil_all


def run_rounds(runtime_name: str, num_rounds: int) -> Iterator[Optional[Round]]:
  """Runs MERGED CODIST round by round; a `processes.Measurement`."""
  import tasks
  from tff_codist import clients
  from tff_codist import config as config_lib
  from tff_codist import experiment as experiment_lib

  yield None
  started = time.monotonic()
  # The preset begins with rounds without the exchange.
  config = config_lib.change(
    tasks.digits.preset(quick=False), merged={'warmup_rounds': 0}
  )
  experiment = experiment_lib.build_experiment(config)
  loader = clients.CohortLoader(
    experiment.train,
    experiment.pools,
    seed=config.seed,
    last_round=num_rounds,
  )
  steps, batch_size = config.merged.steps, config.distillation.batch_size
  with processes.install_runtime(runtime_name), contextlib.closing(loader):
    state = experiment.algorithm.initialize(config.seed)
    distil = build_bare_distillation(
      experiment,
      {
        name: own for name, (own,) in experiment.algorithm.models(state).items()
      },
    )
    for round_num in range(1, num_rounds + 1):
      round_started = time.monotonic()
      cohorts = loader.load(round_num)
      load_seconds = time.monotonic() - round_started
      state, metrics = experiment.algorithm.next(state, cohorts, round_num)
      finished = time.monotonic()
      numbers = {'time/load_seconds': load_seconds}
      numbers |= {k: v for k, v in metrics.items() if k.startswith('time/')}
      total = finished - round_started
      numbers['time/other_seconds'] = total - sum(numbers.values())
      numbers['time/round_seconds'] = total
      batches = experiment.setting.unlabelled.batches(
        (round_num - 1) * steps, steps, batch_size
      )
      bare_started = time.monotonic()
      distil(batches)
      bare_seconds = time.monotonic() - bare_started
      numbers['bare_distillation_seconds'] = bare_seconds
      numbers['ratio_to_parts'] = total / (
        numbers['time/clients_seconds'] + bare_seconds
      )
      yield Round(finished - started, numbers)
      started = time.monotonic()


def measure(rounds: processes.Rounds, *, quick: bool) -> dict[str, Any]:
  """Runs MERGED CODIST on digits on every runtime, by turns.

  Args:
    rounds: Rounds on each.
    quick: Not read: digits are small.

  Returns:
    What is printed and written to the JSON file.
  """
  del quick
  taken = processes.take_turns(
    {name: (run_rounds, name, sum(rounds)) for name in _RUNTIMES}
  )
  return {
    name: {
      'first_round_seconds': results[0].seconds,
      'numbers': _summarize(results[rounds.warmup :]),
    }
    for name, results in taken.items()
  }


def _summarize(rounds: list[Round]) -> dict[str, dict[str, float]]:
  """Returns each number in the fastest round, and its median."""
  numbers = [one.numbers for one in rounds]
  best = min(numbers, key=operator.itemgetter('time/round_seconds'))
  return {
    name: {
      'best_round': best[name],
      'median': statistics.median(map(operator.itemgetter(name), numbers)),
    }
    for name in best
  }
