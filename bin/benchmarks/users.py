"""Workload `clients`: what time and memory the number of clients costs.

Cohorts of 50 are sampled from Stack Overflow files of few and of many made-up
users.
"""

import contextlib
import pathlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np

from benchmarks import processes

_CLIENTS_COUNTS = (1_000, 100_000)
_QUICK_CLIENTS_COUNTS = (100, 1_000)
_SENTENCES_PER_USER = 5
_NUM_WORDS = 1000
_COHORT_SIZE = 50
_NUM_COHORTS = 100
_QUICK_NUM_COHORTS = 2


def measure(rounds: processes.Rounds, *, quick: bool) -> dict[str, Any]:
  """Samples cohorts from few and from many clients.

  Args:
    rounds: Not read: nothing is trained.
    quick: Whether the files are small and the cohorts two.

  Returns:
    What is printed and written to the JSON file.
  """
  del rounds
  counts = _QUICK_CLIENTS_COUNTS if quick else _CLIENTS_COUNTS
  num_cohorts = _QUICK_NUM_COHORTS if quick else _NUM_COHORTS
  with tempfile.TemporaryDirectory() as folder:
    data_dirs = {count: pathlib.Path(folder, str(count)) for count in counts}
    write_seconds = []
    for count, data_dir in data_dirs.items():
      started = time.monotonic()
      write_users(data_dir, count)
      write_seconds.append(time.monotonic() - started)
    loaded = processes.take_turns(
      {
        data_dir.name: (load_cohorts, str(data_dir), num_cohorts)
        for data_dir in data_dirs.values()
      }
    )
  files = [
    {'num_clients': count, 'write_seconds': seconds, **loading}
    for count, seconds, (loading,) in zip(
      counts, write_seconds, loaded.values()
    )
  ]
  few, many = files
  more_clients = many['num_clients'] - few['num_clients']
  return {
    'cohort_size': _COHORT_SIZE,
    'num_cohorts': num_cohorts,
    'sentences_per_user': _SENTENCES_PER_USER,
    'files': files,
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
  counts = data_dir / 'datasets' / 'stackoverflow.word_count'
  counts.parent.mkdir(parents=True)
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
  counts.write_text(''.join(f'{word} 1\n' for word in words))


def load_cohorts(
  data_dir: str, num_cohorts: int
) -> Iterator[Optional[dict[str, Any]]]:
  """Opens the data set and loads cohorts; a `processes.Measurement`.

  Args:
    data_dir: Directory of the data set.
    num_cohorts: Cohorts to load.

  Yields:
    Peak memory of the process with all imports, after opening and at the end;
    seconds that it took to open, from then to the first, and to the last
    cohort.
  """
  import tasks  # noqa: F401 - registers the tasks.
  from tff_codist import clients
  from tff_codist import config as config_lib
  from tff_codist import pools
  from tff_codist import task

  config = config_lib.Config(
    task=config_lib.TaskConfig(name='stackoverflow', data_dir=data_dir),
    text=config_lib.TextConfig(vocab_size=_NUM_WORDS),
  )
  yield None
  imported_peak_rss_bytes = processes.memory_bytes('VmHWM')
  started = time.monotonic()
  train = task.tasks[config.task.name](config).train
  opened = time.monotonic()
  opened_peak_rss_bytes = processes.memory_bytes('VmHWM')
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
  yield {
    'imported_peak_rss_bytes': imported_peak_rss_bytes,
    'opened_peak_rss_bytes': opened_peak_rss_bytes,
    'loaded_peak_rss_bytes': processes.memory_bytes('VmHWM'),
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
