#!/usr/bin/env python3
"""Measures rounds: TFF as documented, this package, TensorFlow alone.

Workloads `cnn` and `dense` are rounds of federated averaging on random images,
stored as uint8 and normalised in the graph, `lstm` on random sentences of 20
words: one local epoch of SGD, batches of 20, weighted mean, Adam at the server.
Three competitors take turns, so that a noisy machine is noisy for all of them:

  tff         tff.learning.algorithms.build_weighted_fed_avg, tf.data clients
  tff_codist  this package's fed_avg, clients as tensors
  bare        a training loop in this process without federation, the bound

tff and tff_codist run on the same stock worker, a new one for each
workload. Workload `round` shows where the time of a MERGED CODIST round on
digits goes. The first round and what is built before it are reported apart.

Workload `clients` shows what time and memory the number of clients costs: it
samples cohorts of 50 from Stack Overflow files of 1,000 and of 100,000 made-up
users, each file in a new process.

  bin/benchmark.py
  bin/benchmark.py --workload dense round --rounds 20 --json dense.json
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist import errors
from tff_codist import files
from tff_codist import runtime
from tff_codist.program import command

_IMAGE_SHAPE = (28, 28, 1)
_NUM_CLASSES = 62
_BATCH_SIZE = 20
_CLIENT_LEARNING_RATE = 0.1
_NUM_TOKENS = 10_004
_SENTENCE_LENGTH = 20
_NUM_WORDS = 1000
_CLIENTS_COUNTS = (1_000, 100_000)
_SENTENCES_PER_USER = 5
_COHORT_SIZE = 50
_NUM_COHORTS = 100
_MIB = 2**20

# (x, y) of each client: images uint8 `[examples, 28, 28, 1]` and labels int32
# `[examples]`, or tokens int32 `[examples, 20]` and the next ones.
Data = Sequence[tuple]
RunRoundFn = Callable[[], None]


def build_cnn():
  """Builds the network of the federated EMNIST task, 1,206,590 weights."""
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
  """Builds a network with 200 hidden units, 169,462 weights."""
  from tff_codist import models

  return models.mlp(_IMAGE_SHAPE, _NUM_CLASSES, widths=(200,))


def build_lstm():
  """Builds TFF's network for Stack Overflow, 4,050,748 weights."""
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
    num_clients: Clients in a round.
    examples_per_client: Examples that each of them has.
    num_classes: Length of the logits.
    make_examples: From a generator and a number to so many `(x, y)`.
    preprocess: From raw to model inputs.
  """

  keras_fn: Callable[[], Any]
  num_clients: int
  examples_per_client: int = 100
  num_classes: int = _NUM_CLASSES
  make_examples: Callable[[np.random.Generator, int], tuple] = make_images
  preprocess: Callable[..., Any] = normalize


_WORKLOADS = {
  'cnn': Workload(build_cnn, num_clients=10),
  'dense': Workload(build_dense, num_clients=50),
  'lstm': Workload(
    build_lstm,
    num_clients=50,
    examples_per_client=64,
    num_classes=_NUM_TOKENS,
    make_examples=make_sentences,
    preprocess=keep,
  ),
}
_ROUND = 'round'
_CLIENTS = 'clients'


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
      variables = model.trainable_variables
      for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        # An embedding's gradient is sparse.
        gradient = tf.convert_to_tensor(gradient)
        variable.assign_sub(_CLIENT_LEARNING_RATE * gradient)

  return train


# The first one is what the others' ratios refer to.
_COMPETITORS = {
  'tff': build_tff,
  'tff_codist': build_tff_codist,
  'bare': build_bare,
}


def measure(workload: Workload, num_rounds: int) -> dict[str, Any]:
  """Runs every competitor's rounds by turns.

  Args:
    workload: What they train.
    num_rounds: Rounds of each, at least 2; the first one is not counted.

  Returns:
    What is printed and written to the JSON file.
  """
  data = make_data(workload)
  num_examples = sum(len(y) for _, y in data)
  first_seconds, run_rounds = {}, {}
  round_seconds = {name: [] for name in _COMPETITORS}
  with runtime.install('stock') as context:
    for name, build in _COMPETITORS.items():
      started = time.monotonic()
      run_rounds[name] = build(workload, data)
      run_rounds[name]()
      first_seconds[name] = time.monotonic() - started
    for _ in range(num_rounds - 1):
      for name, run_round in run_rounds.items():
        started = time.monotonic()
        run_round()
        round_seconds[name].append(time.monotonic() - started)
    peak_rss_bytes = {
      'process': _peak_rss_bytes(os.getpid()),
      'worker': _peak_rss_bytes(context.worker_pid),
    }
  baseline_seconds = min(next(iter(round_seconds.values())))
  return {
    'num_weights': workload.keras_fn().count_params(),
    'num_clients': workload.num_clients,
    'examples_per_client': workload.examples_per_client,
    'competitors': {
      name: {
        'examples_per_second_best': num_examples / min(seconds),
        'examples_per_second_median': num_examples / statistics.median(seconds),
        'ratio_to_tff': baseline_seconds / min(seconds),
        'first_round_seconds': first_seconds[name],
        'round_seconds': seconds,
      }
      for name, seconds in round_seconds.items()
    },
    'peak_rss_bytes': peak_rss_bytes,
  }


def measure_round(num_rounds: int) -> dict[str, Any]:
  """Runs MERGED CODIST on digits and splits its rounds into phases.

  Args:
    num_rounds: Rounds, at least 2; the first one is not counted.

  Returns:
    What is printed and written to the JSON file.
  """
  import tasks
  from tff_codist import clients
  from tff_codist import experiment as experiment_lib

  preset = tasks.digits.preset(quick=False)
  # The warm-up rounds are rounds without the exchange.
  merged = dataclasses.replace(preset.merged, warmup_rounds=0)
  config = dataclasses.replace(preset, merged=merged)
  started = time.monotonic()
  experiment = experiment_lib.build_experiment(config)
  loader = clients.CohortLoader(
    experiment.train,
    experiment.pools,
    seed=config.seed,
    last_round=num_rounds,
  )
  rounds = []
  with runtime.install('stock'), contextlib.closing(loader):
    state = experiment.algorithm.initialize(config.seed)
    for round_num in range(1, num_rounds + 1):
      round_started = time.monotonic()
      cohorts = loader.load(round_num)
      load_seconds = time.monotonic() - round_started
      state, metrics = experiment.algorithm.next(state, cohorts, round_num)
      phases = {'time/load_seconds': load_seconds}
      phases |= {k: v for k, v in metrics.items() if k.startswith('time/')}
      total = time.monotonic() - round_started
      phases['time/other_seconds'] = total - sum(phases.values())
      phases['time/round_seconds'] = total
      if not rounds:
        first_seconds = time.monotonic() - started
      rounds.append(phases)
  best = min(rounds[1:], key=lambda phases: phases['time/round_seconds'])
  return {
    'first_round_seconds': first_seconds,
    'phases': {
      name: {
        'best_round': best[name],
        'median': statistics.median(phases[name] for phases in rounds[1:]),
      }
      for name in best
    },
  }


def measure_clients(
  clients_counts: Sequence[int], num_cohorts: int
) -> dict[str, Any]:
  """Samples cohorts from few and from many clients.

  Args:
    clients_counts: Numbers of training clients, two, the smaller first.
    num_cohorts: Cohorts of 50 to load.

  Returns:
    What is printed and written to the JSON file.
  """
  results = []
  for num_clients in clients_counts:
    with tempfile.TemporaryDirectory() as data_dir:
      started = time.monotonic()
      write_users(pathlib.Path(data_dir), num_clients)
      write_seconds = time.monotonic() - started
      # A forked process would begin with the memory of this one.
      with futures.ProcessPoolExecutor(
        max_workers=1, mp_context=multiprocessing.get_context('spawn')
      ) as process:
        loading = process.submit(load_cohorts, data_dir, num_cohorts).result()
    results.append(
      {'num_clients': num_clients, 'write_seconds': write_seconds, **loading}
    )
  few, many = results
  more_clients = many['num_clients'] - few['num_clients']
  return {
    'cohort_size': _COHORT_SIZE,
    'num_cohorts': num_cohorts,
    'files': results,
    'bytes_per_client': {
      name: (many[name] - few[name]) / more_clients
      for name in ('opened_peak_rss_bytes', 'loaded_peak_rss_bytes')
    },
  }


def write_users(data_dir: pathlib.Path, num_clients: int) -> None:
  """Writes a Stack Overflow of made-up users, as TFF packs it.

  Args:
    data_dir: Directory for the database and the counts of its words.
    num_clients: Training clients, with five sentences each. The other splits
      have as many as a cohort.
  """
  words = [f'word{i}' for i in range(_NUM_WORDS)]
  rng = np.random.default_rng(1)
  sentences = [
    _serialize(' '.join(rng.choice(words, size=rng.integers(1, 30))))
    for _ in range(1000)
  ]
  splits = {
    'train': num_clients,
    'heldout': _COHORT_SIZE,
    'test': _COHORT_SIZE,
  }
  users = [
    (f'{split}{i:08}', split)
    for split, num_users in splits.items()
    for i in range(num_users)
  ]
  connection = sqlite3.connect(data_dir / 'stackoverflow.sqlite')
  with contextlib.closing(connection), connection:
    connection.execute(
      'CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT '
      'NULL, serialized_example_proto BLOB NOT NULL)'
    )
    connection.execute(
      'CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT '
      'NOT NULL, num_examples INTEGER NOT NULL)'
    )
    connection.executemany(
      'INSERT INTO client_metadata VALUES (?, ?, ?)',
      ((*user, _SENTENCES_PER_USER) for user in users),
    )
    connection.executemany(
      'INSERT INTO examples VALUES (?, ?, ?)',
      (
        (split, client_id, sentences[i])
        for client_id, split in users
        for i in rng.integers(len(sentences), size=_SENTENCES_PER_USER)
      ),
    )
    connection.execute(
      'CREATE INDEX examples_by_client ON examples (client_id, split_name)'
    )
  counts = data_dir / 'datasets' / 'stackoverflow.word_count'
  counts.parent.mkdir()
  counts.write_text(''.join(f'{word} 1\n' for word in words))


def load_cohorts(data_dir: str, num_cohorts: int) -> dict[str, Any]:
  """Opens the data set and loads cohorts, in a process of its own.

  Args:
    data_dir: Directory of the data set.
    num_cohorts: Cohorts to load.

  Returns:
    Peak memory of the process with all imports, after opening and at the end;
    seconds that it took to open, from then to the first, and to the last
    cohort.
  """
  import tasks  # noqa: F401 - registers the tasks.
  from tff_codist import clients
  from tff_codist import config as config_lib
  from tff_codist import pools
  from tff_codist import task

  runtime.uninstall()  # Else TFF complains at the end of the process.
  config = config_lib.Config(
    task=config_lib.TaskConfig(name='stackoverflow', data_dir=data_dir),
    text=config_lib.TextConfig(vocab_size=_NUM_WORDS),
  )
  imported_peak_rss_bytes = _peak_rss_bytes(os.getpid())
  started = time.monotonic()
  train = task.tasks[config.task.name](config).train
  opened = time.monotonic()
  opened_peak_rss_bytes = _peak_rss_bytes(os.getpid())
  pool = pools.Pool(
    name='all',
    model=None,
    client_ids=train.client_ids,
    cohort_size=_COHORT_SIZE,
  )
  with contextlib.closing(
    clients.CohortLoader(train, [pool], seed=1, last_round=num_cohorts)
  ) as loader:
    seconds = []
    for round_num in range(1, num_cohorts + 1):
      loader.load(round_num)
      seconds.append(time.monotonic() - opened)
  return {
    'imported_peak_rss_bytes': imported_peak_rss_bytes,
    'opened_peak_rss_bytes': opened_peak_rss_bytes,
    'loaded_peak_rss_bytes': _peak_rss_bytes(os.getpid()),
    'open_seconds': opened - started,
    'first_cohort_seconds': seconds[0],
    'last_cohort_seconds': seconds[-1],
  }


def _serialize(sentence: str) -> bytes:
  """Returns an example with the features of TFF's Stack Overflow."""
  import tensorflow as tf

  def text(value):
    return tf.train.Feature(
      bytes_list=tf.train.BytesList(value=[value.encode()])
    )

  features = {
    'creation_date': text('2010-01-08 09:34:05 UTC'),
    'score': tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
    'tags': text('sql|css'),
    'title': text('a question'),
    'tokens': text(sentence),
    'type': text('question'),
  }
  return tf.train.Example(
    features=tf.train.Features(feature=features)
  ).SerializeToString()


def machine() -> dict[str, Any]:
  """Returns what the numbers depend on."""
  cpuinfo = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  return {
    'cpu': next(
      (
        line.partition(':')[2].strip()
        for line in cpuinfo
        if 'model name' in line
      ),
      platform.machine(),
    ),
    'cores': len(os.sched_getaffinity(0)),
    'load_average': os.getloadavg()[0],
    'python': platform.python_version(),
    'tensorflow': importlib.metadata.version('tensorflow'),
    'tensorflow_federated': importlib.metadata.version('tensorflow-federated'),
  }


def _peak_rss_bytes(pid: int) -> int:
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  fields = dict(line.split(':', 1) for line in status.splitlines())
  return int(fields['VmHWM'].split()[0]) * 1024


def _print_workload(name: str, result: dict[str, Any]) -> None:
  print(
    f'\n{name}: {result["num_weights"]:,} weights, {result["num_clients"]}'
    f' clients of {result["examples_per_client"]} examples'
  )
  print(
    f'{"":12}{"examples/s best":>16}{"median":>10}{"ratio to tff":>14}'
    f'{"first round s":>15}'
  )
  for competitor, numbers in result['competitors'].items():
    print(
      f'{competitor:12}'
      f'{numbers["examples_per_second_best"]:>16,.0f}'
      f'{numbers["examples_per_second_median"]:>10,.0f}'
      f'{numbers["ratio_to_tff"]:>14.2f}'
      f'{numbers["first_round_seconds"]:>15.2f}'
    )
  rss = result['peak_rss_bytes']
  print(
    f'peak memory so far: this process {rss["process"] / _MIB:,.0f} MiB,'
    f' worker {rss["worker"] / _MIB:,.0f} MiB'
  )


def _print_round(result: dict[str, Any]) -> None:
  print('\nround: MERGED CODIST on digits, milliseconds')
  print(f'{"":24}{"best round":>12}{"median":>10}')
  for phase, seconds in result['phases'].items():
    print(
      f'{phase:24}{1e3 * seconds["best_round"]:>12.1f}'
      f'{1e3 * seconds["median"]:>10.1f}'
    )
  print(f'first round: {result["first_round_seconds"]:.2f} s')


def _print_clients(result: dict[str, Any]) -> None:
  cohorts = result['num_cohorts']
  print(
    f'\nclients: {cohorts} cohorts of {result["cohort_size"]} users of'
    f' {_SENTENCES_PER_USER} sentences'
  )
  print(
    f'{"users":>9}{"open s":>10}{"first cohort s":>16}{"last cohort s":>15}'
    f'{"peak MiB: imports":>19}{"opened":>9}{"at the end":>12}'
  )
  for file in result['files']:
    print(
      f'{file["num_clients"]:>9,}'
      f'{file["open_seconds"]:>10.3f}'
      f'{file["first_cohort_seconds"]:>16.3f}'
      f'{file["last_cohort_seconds"]:>15.2f}'
      f'{file["imported_peak_rss_bytes"] / _MIB:>19.1f}'
      f'{file["opened_peak_rss_bytes"] / _MIB:>9.1f}'
      f'{file["loaded_peak_rss_bytes"] / _MIB:>12.1f}'
    )
  per_client = result['bytes_per_client']
  print(
    'a further user costs, in bytes:'
    f' {per_client["opened_peak_rss_bytes"]:.0f} when opened,'
    f' {per_client["loaded_peak_rss_bytes"]:.0f} at the end'
  )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  names = (*_WORKLOADS, _ROUND, _CLIENTS)
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--workload',
    nargs='+',
    default=('cnn', 'dense', _ROUND),
    metavar='NAME',
    help=f'any of {", ".join(names)} (default: cnn dense round)',
  )
  parser.add_argument(
    '--rounds',
    type=int,
    default=8,
    help='rounds of each competitor, the first one not counted (default: 8)',
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='two rounds of few clients: shows that it works, measures nothing',
  )
  parser.add_argument('--json', metavar='PATH', help='file for the numbers')
  arguments = parser.parse_args(argv)
  for name in arguments.workload:
    if name not in names:
      raise errors.UnknownNameError('workload', name, names)
  if arguments.rounds < 2:
    raise errors.ConfigError(
      f'--rounds {arguments.rounds}',
      expected='an integer above 1',
      fix='give another number',
    )
  return arguments


def main(argv):
  arguments = _parse(argv)
  num_rounds = 2 if arguments.quick else arguments.rounds
  report = {'machine': machine(), 'workloads': {}}
  print('\n'.join(f'{k}: {v}' for k, v in report['machine'].items()))
  for name in dict.fromkeys(arguments.workload):
    if name == _ROUND:
      result = measure_round(num_rounds)
      _print_round(result)
    elif name == _CLIENTS:
      result = (
        measure_clients((100, 1000), num_cohorts=2)
        if arguments.quick
        else measure_clients(_CLIENTS_COUNTS, _NUM_COHORTS)
      )
      _print_clients(result)
    else:
      workload = _WORKLOADS[name]
      if arguments.quick:
        workload = workload._replace(num_clients=2, examples_per_client=40)
      result = measure(workload, num_rounds)
      _print_workload(name, result)
    report['workloads'][name] = result
    if arguments.json:
      files.write(arguments.json, json.dumps(report, indent=2).encode())


if __name__ == '__main__':
  command.run(main)
