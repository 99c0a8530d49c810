"""Workloads `cnn`, `dense` and `lstm`: rounds of federated averaging.

One local epoch of SGD in batches of 20, weighted mean, Adam at the server, on
random images stored as uint8 and normalised in the graph, or on random
sentences of 20 words.
"""

import contextlib
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Optional

import numpy as np

from benchmarks import processes

_IMAGE_SHAPE = (28, 28, 1)
_NUM_CLASSES = 62
_BATCH_SIZE = 20
_CLIENT_LEARNING_RATE = 0.1
_NUM_TOKENS = 10_004
_SENTENCE_LENGTH = 20

# (x, y) of each client: images uint8 `[examples, 28, 28, 1]` and labels int32
# `[examples]`, or tokens int32 `[examples, 20]` and the next ones.
Data = Sequence[tuple]
RunRoundFn = Callable[[], None]


def build_cnn():
  """Builds the network of the federated EMNIST task."""
  import tensorflow as tf

  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      layers.InputLayer(_IMAGE_SHAPE),
      layers.Conv2D(32, 3, activation='relu'),
      layers.Conv2D(64, 3, activation='relu'),
      layers.MaxPool2D(),
      layers.Flatten(),
      layers.Dense(128, activation='relu'),
      layers.Dense(_NUM_CLASSES),
    ]
  )


def build_dense():
  """Builds a network with 200 hidden units."""
  from tff_codist import models

  return models.mlp(_IMAGE_SHAPE, _NUM_CLASSES, widths=(200,))


def build_lstm():
  """Builds TFF's network for Stack Overflow."""
  from tff_codist import models

  return models.lstm(_NUM_TOKENS, _SENTENCE_LENGTH, embedding=96, units=670)


def make_images(rng: np.random.Generator, num_examples: int) -> tuple:
  """Returns random images and labels."""
  shape = (num_examples, *_IMAGE_SHAPE)
  return (
    rng.integers(256, size=shape, dtype=np.uint8),
    rng.integers(_NUM_CLASSES, size=num_examples, dtype=np.int32),
  )


def make_sentences(rng: np.random.Generator, num_examples: int) -> tuple:
  """Returns random tokens, none of them padding, and the next ones."""
  shape = (num_examples, _SENTENCE_LENGTH + 1)
  tokens = rng.integers(1, _NUM_TOKENS, size=shape, dtype=np.int32)
  return tokens[:, :-1], tokens[:, 1:]


def normalize(x, seed=None):
  """Turns raw images into float32 in [0, 1]; a `task.Preprocess`."""
  import tensorflow as tf

  del seed
  return tf.cast(x, tf.float32) / 255.0


def keep(x, seed=None):
  """Returns tokens as they are; a `task.Preprocess`."""
  del seed
  return x


class Workload(NamedTuple):
  """Federated averaging of one model.

  Attributes:
    keras_fn: Builds the model, from preprocessed inputs to logits.
    num_weights: Weights of the model.
    num_clients: Clients in a round.
    examples_per_client: Examples that each of them has.
    num_classes: Length of the logits.
    make_examples: From a generator and a number to so many `(x, y)`.
    preprocess: From raw to model inputs.
  """

  keras_fn: Callable[[], Any]
  num_weights: int
  num_clients: int
  examples_per_client: int = 100
  num_classes: int = _NUM_CLASSES
  make_examples: Callable[[np.random.Generator, int], tuple] = make_images
  preprocess: Callable[..., Any] = normalize

  def quick(self) -> 'Workload':
    """Returns the same with two clients of two batches."""
    return self._replace(num_clients=2, examples_per_client=2 * _BATCH_SIZE)


WORKLOADS = {
  'cnn': Workload(build_cnn, 1_206_590, num_clients=10),
  'dense': Workload(build_dense, 169_462, num_clients=50),
  'lstm': Workload(
    build_lstm,
    4_050_748,
    num_clients=50,
    examples_per_client=64,
    num_classes=_NUM_TOKENS,
    make_examples=make_sentences,
    preprocess=keep,
  ),
}


def make_data(workload: Workload) -> Data:
  """Returns random examples for each client."""
  rng = np.random.default_rng(1)
  return [
    workload.make_examples(rng, workload.examples_per_client)
    for _ in range(workload.num_clients)
  ]


def build_tff(workload: Workload, data: Data) -> RunRoundFn:
  """Builds TFF's federated averaging as its tutorials do."""
  import tensorflow as tf
  import tensorflow_federated as tff

  from tff_codist import config
  from tff_codist import server_update

  datasets = [
    tf.data.Dataset.from_tensor_slices((x, y))
    .shuffle(len(y))
    .batch(_BATCH_SIZE)
    .map(lambda x, y: (workload.preprocess(x), y))
    for x, y in data
  ]

  def model_fn():
    return tff.learning.models.from_keras_model(
      workload.keras_fn(),
      loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      input_spec=datasets[0].element_spec,
      metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
    )

  process = tff.learning.algorithms.build_weighted_fed_avg(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(
      _CLIENT_LEARNING_RATE
    ),
    server_optimizer_fn=server_update.build_server_optimizer(
      config.ServerConfig(optimizer='fedadam')
    ),
  )
  state = process.initialize()

  def run_round():
    nonlocal state
    state = process.next(state, datasets).state

  return run_round


def build_tff_codist(workload: Workload, data: Data) -> RunRoundFn:
  """Builds this package's federated averaging with a single pool."""
  from tff_codist import algorithm
  from tff_codist import client_update
  from tff_codist import clients
  from tff_codist import codist
  from tff_codist import config as config_lib
  from tff_codist import models
  from tff_codist import pools
  from tff_codist import task

  client_data = clients.ClientData(
    map(str, range(len(data))),
    lambda i: clients.Examples(x=data[int(i)][0], y=data[int(i)][1]),
  )
  pool = pools.Pool(
    name='all',
    model=models.Model('model', workload.keras_fn),
    client_ids=client_data.client_ids,
    cohort_size=len(data),
  )
  setting = algorithm.Setting(
    pools=[pool],
    task=task.Task(
      name='random',
      num_classes=workload.num_classes,
      train=client_data,
      test=client_data,
      preprocess=workload.preprocess,
      models={},
    ),
    examples_type=client_update.examples_type(client_data.load('0')),
    unlabelled=None,
  )
  config = config_lib.Config(
    pools=config_lib.PoolsConfig(
      names=(pool.name,), models=('model',), clients_fraction=(1.0,)
    ),
    client=config_lib.ClientConfig(
      learning_rate=_CLIENT_LEARNING_RATE, batch_size=_BATCH_SIZE
    ),
    server=config_lib.ServerConfig(optimizer='fedadam'),
  )
  fed_avg = codist.build_fed_avg(setting, config)
  state, round_num = fed_avg.initialize(1), 0

  def run_round():
    nonlocal state, round_num
    round_num += 1
    cohort = clients.load_cohort(
      client_data,
      client_data.client_ids,
      pool.cohort_size,
      seed=1,
      round_num=round_num,
      pool=pool.name,
    )
    state, _ = fed_avg.next(state, {pool.name: cohort}, round_num)

  return run_round


def build_bare(workload: Workload, data: Data) -> RunRoundFn:
  """Builds a plain loop of SGD steps over the same number of examples."""
  import tensorflow as tf

  model = workload.keras_fn()
  variables = model.trainable_variables
  x, y = (tf.constant(np.concatenate(arrays)) for arrays in zip(*data))

  @tf.function
  def train():
    for step in tf.range(len(y) // _BATCH_SIZE):
      batch = slice(step * _BATCH_SIZE, (step + 1) * _BATCH_SIZE)
      with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
          tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=y[batch],
            logits=model(workload.preprocess(x[batch]), training=True),
          )
        )
      for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        # An embedding's gradient is sparse.
        gradient = tf.convert_to_tensor(gradient)
        variable.assign_sub(_CLIENT_LEARNING_RATE * gradient)

  def run_round():
    train()
    variables[-1].numpy()  # Waits for a GPU.

  return run_round


def count_threads(workload: Workload) -> int:
  """Returns the number of threads of the competitor `bare_threads`."""
  return min(os.cpu_count() or 1, workload.num_clients)


def build_bare_threads(workload: Workload, data: Data) -> RunRoundFn:
  """Builds bare loops that share the clients, each with its own model."""
  num_threads = count_threads(workload)
  loops = [
    build_bare(workload, data[i::num_threads]) for i in range(num_threads)
  ]
  threads = futures.ThreadPoolExecutor(num_threads)

  def run_round():
    for future in [threads.submit(loop) for loop in loops]:
      future.result()

  return run_round


class Competitor(NamedTuple):
  """One way to train a round.

  Attributes:
    build: From workload and data to a function that runs one round.
    runtime: Name of the runtime on which it runs, `None` for TensorFlow alone.
  """

  build: Callable[[Workload, Data], RunRoundFn]
  runtime: Optional[str] = None


COMPETITORS = {
  'tff': Competitor(build_tff, 'stock'),
  'tff_in_process': Competitor(build_tff, 'in_process'),
  'stock': Competitor(build_tff_codist, 'stock'),
  'in_process': Competitor(build_tff_codist, 'in_process'),
  'bare': Competitor(build_bare),
  'bare_threads': Competitor(build_bare_threads),
}


class Round(NamedTuple):
  """One round of a competitor.

  Attributes:
    seconds: What it took; the first one includes all that is built before it.
    rss_bytes: Resident memory of the process after it.
    peak_rss_bytes: Peak resident memory until now, `process` and, on the stock
      runtime, `worker`.
  """

  seconds: float
  rss_bytes: int
  peak_rss_bytes: dict[str, int]


def run_rounds(
  competitor: str, workload: Workload, num_rounds: int
) -> Iterator[Optional[Round]]:
  """Runs a competitor, round by round; a `processes.Measurement`."""
  build, runtime_name = COMPETITORS[competitor]
  # Also for those without TFF, so that all start with the same memory.
  importlib.import_module('tff_codist.codist')
  yield None
  started = time.monotonic()
  with contextlib.ExitStack() as stack:
    if runtime_name:
      context = stack.enter_context(processes.install_runtime(runtime_name))
    run_round = build(workload, make_data(workload))
    for _ in range(num_rounds):
      run_round()
      seconds = time.monotonic() - started
      peak_rss_bytes = {'process': processes.memory_bytes('VmHWM')}
      if runtime_name == 'stock':
        peak_rss_bytes['worker'] = processes.memory_bytes(
          'VmHWM', context.worker_pid
        )
      yield Round(seconds, processes.memory_bytes('VmRSS'), peak_rss_bytes)
      started = time.monotonic()


def measure(
  name: str, rounds: processes.Rounds, *, quick: bool
) -> dict[str, Any]:
  """Runs every competitor's rounds by turns.

  Args:
    name: One of `WORKLOADS`.
    rounds: Rounds of each.
    quick: Whether a round is two small clients.

  Returns:
    What is printed and written to the JSON file.
  """
  workload = WORKLOADS[name].quick() if quick else WORKLOADS[name]
  taken = processes.take_turns(
    {c: (run_rounds, c, workload, sum(rounds)) for c in COMPETITORS}
  )
  seconds = {
    competitor: [one.seconds for one in results[rounds.warmup :]]
    for competitor, results in taken.items()
  }
  best = {competitor: min(s) for competitor, s in seconds.items()}
  num_examples = workload.num_clients * workload.examples_per_client
  return {
    'num_weights': workload.num_weights,
    'num_clients': workload.num_clients,
    'examples_per_client': workload.examples_per_client,
    'bare_threads': count_threads(workload),
    'competitors': {
      competitor: {
        'examples_per_second_best': num_examples / best[competitor],
        'examples_per_second_median': num_examples
        / statistics.median(seconds[competitor]),
        'ratio_to_tff': best['tff'] / best[competitor],
        'ratio_to_bare': best['bare'] / best[competitor],
        'first_round_seconds': results[0].seconds,
        'round_seconds': seconds[competitor],
        'peak_rss_bytes': results[-1].peak_rss_bytes,
      }
      for competitor, results in taken.items()
    },
  }
