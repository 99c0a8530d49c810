"""Reading TFF's SQLite files: clients, downloads, and damaged files."""

import collections
import io
import lzma
import os
import pathlib
import sqlite3
import tracemalloc
import urllib.error
import urllib.request
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import errors
from tff_codist import sql_clients

_DATA_SET = sql_clients.DataSet(
  title='the data set of this test',
  file_name='cifar100.sqlite',
  sizes='0.1 GB compressed',
  splits=('train', 'test'),
  load_data=tff.simulation.datasets.cifar100.load_data,
)
_FEATURES = {
  'number': tf.io.FixedLenFeature((2,), tf.int64),
  'text': tf.io.FixedLenFeature((), tf.string),
}
# In no order of ids; 'b' is a client of both splits.
_CLIENTS = {('train', 'b'): 3, ('train', 'a'): 2, ('test', 'b'): 4}


def _serialize(number, text):
  return tf.train.Example(
    features=tf.train.Features(
      feature={
        'number': tf.train.Feature(
          int64_list=tf.train.Int64List(value=[number, -number])
        ),
        'text': tf.train.Feature(
          bytes_list=tf.train.BytesList(value=[text.encode()])
        ),
      }
    )
  ).SerializeToString()


@pytest.fixture(name='path')
def _path(tmp_path):
  """A database of TFF's form."""
  path = tmp_path / _DATA_SET.file_name
  with sqlite3.connect(path) as connection:
    connection.execute(
      'CREATE TABLE examples (split_name TEXT NOT NULL, '
      'client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL)'
    )
    connection.execute(
      'CREATE TABLE client_metadata (client_id TEXT NOT NULL, '
      'split_name TEXT NOT NULL, num_examples INTEGER NOT NULL)'
    )
    connection.execute('CREATE INDEX by_client ON examples (client_id)')
    for (split, client_id), num_examples in _CLIENTS.items():
      connection.execute(
        'INSERT INTO client_metadata VALUES (?, ?, ?)',
        (client_id, split, num_examples),
      )
      connection.executemany(
        'INSERT INTO examples VALUES (?, ?, ?)',
        [
          (split, client_id, _serialize(i, f'{split} {client_id} {i}'))
          for i in range(num_examples)
        ],
      )
    # Pages enough to be cut off.
    connection.executemany(
      'INSERT INTO examples VALUES (?, ?, ?)',
      [('other', 'c', bytes(1000)) for _ in range(40)],
    )
  connection.close()
  return path


def _edit(path, statement):
  with sqlite3.connect(path) as connection:
    connection.execute(statement)
  connection.close()


def _open(directory):
  return sql_clients.open_database(_DATA_SET, str(directory))


def _to_examples(client_id, features):
  return collections.OrderedDict(
    x=features['text'],
    y=features['number'][:, 0],
    reader=np.array(client_id),
  )


def _clients(path, split='train', limit=None):
  return _open(path.parent).clients(split, _FEATURES, _to_examples, limit=limit)


def _serve(monkeypatch, body):
  """Makes every address answer with `body`."""

  def open_url(*unused_args, **unused_kwargs):
    response = io.BytesIO(body)
    response.headers = {'content-length': str(len(body))}
    return response

  monkeypatch.setattr(urllib.request, 'urlopen', open_url)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_clients_of_a_split_have_their_rows_in_order(path, split):
  data = _clients(path, split)
  expected = {c: n for (s, c), n in _CLIENTS.items() if s == split}
  assert data.client_ids == tuple(sorted(expected))
  for client_id, num_examples in expected.items():
    examples = data.load(client_id)
    assert examples['reader'] == client_id
    assert examples['x'].tolist() == [
      f'{split} {client_id} {i}'.encode() for i in range(num_examples)
    ]
    np.testing.assert_array_equal(examples['y'], np.arange(num_examples))


def test_limit_reads_the_first_rows(path):
  data = _clients(path, limit=2)
  assert data.load('b')['y'].tolist() == [0, 1]
  assert data.load('a')['y'].tolist() == [0, 1]
  assert _clients(path, limit=5).load('b')['y'].tolist() == [0, 1, 2]


def test_a_client_is_read_once_and_from_any_thread(path):
  data = _clients(path)
  first = data.load('a')
  with futures.ThreadPoolExecutor(1) as thread:
    assert thread.submit(data.load, 'a').result() is first
    assert len(thread.submit(data.load, 'b').result()['y']) == 3


@pytest.mark.parametrize(
  ('data_dir', 'environment', 'expected'),
  [
    ('/given', '/environment', '/given'),
    (None, '/environment', '/environment'),
    (None, '', '~/.tff'),
    ('~/given', '', '~/given'),
  ],
)
def test_data_directory(monkeypatch, data_dir, environment, expected):
  monkeypatch.setenv('TFF_CODIST_DATA_DIR', environment)
  found = sql_clients.find_data_dir(data_dir)
  assert found == pathlib.Path(expected).expanduser()


def test_missing_file_without_network_says_what_to_do(tmp_path, monkeypatch):
  def open_url(*unused_args, **unused_kwargs):
    raise urllib.error.URLError('Name or service not known')

  monkeypatch.setattr(urllib.request, 'urlopen', open_url)
  data_dir = tmp_path / 'data'
  with pytest.raises(errors.DataNotFoundError) as caught:
    _open(data_dir)
  for part in (
    str(data_dir / _DATA_SET.file_name),
    'Name or service not known',
    _DATA_SET.title,
    'GB',
    'https://',
    'cifar100.sqlite.lzma',
    '--task.data_dir',
  ):
    assert part in str(caught.value)
  assert not data_dir.exists()


def test_missing_file_is_downloaded(path, tmp_path, monkeypatch):
  _serve(monkeypatch, lzma.compress(path.read_bytes()))
  new = tmp_path / 'new' / 'data' / path.name
  assert len(_clients(new).load('b')['y']) == 3
  assert os.listdir(new.parent) == [path.name]


@pytest.mark.parametrize('share', [0.0, 0.5, 0.9])
def test_interrupted_download_leaves_nothing(
  path, tmp_path, monkeypatch, share
):
  body = lzma.compress(path.read_bytes())
  _serve(monkeypatch, body[: int(share * len(body))])
  with pytest.raises(errors.DataNotFoundError, match='no way to download'):
    _open(tmp_path / 'data')
  assert not os.listdir(tmp_path / 'data')


@pytest.mark.parametrize('size', [0, 50, 5000, 30_000, -1])
def test_truncated_file_is_a_data_error(path, size):
  os.truncate(path, size if size >= 0 else os.path.getsize(path) - 1)
  with pytest.raises(errors.DataError, match='damaged file'):
    _open(path.parent)


@pytest.mark.parametrize(
  'statement',
  [
    'DROP TABLE client_metadata',
    'DROP TABLE examples',
    'ALTER TABLE examples RENAME COLUMN serialized_example_proto TO other',
    "DELETE FROM client_metadata WHERE split_name = 'test'",
  ],
)
def test_incomplete_database_is_a_data_error(path, statement):
  _edit(path, statement)
  with pytest.raises(errors.DataError, match='damaged file'):
    _open(path.parent)


@pytest.mark.parametrize(
  'statement',
  [
    'DELETE FROM examples WHERE rowid = 3',
    "UPDATE examples SET split_name = 'other'",
    'INSERT INTO examples SELECT * FROM examples WHERE rowid = 1',
    "UPDATE client_metadata SET num_examples = 1 WHERE client_id = 'b'",
    "UPDATE examples SET serialized_example_proto = x'0a05ff' WHERE rowid = 3",
  ],
)
def test_damaged_client_is_a_data_error_that_names_it(path, statement):
  _edit(path, statement)
  data = _clients(path)
  with pytest.raises(errors.DataError, match="train client 'b'"):
    data.load('b')


def test_damage_behind_the_limit_does_not_matter(path):
  _edit(path, 'DELETE FROM examples WHERE rowid = 3')
  assert _clients(path, limit=2).load('b')['y'].tolist() == [0, 1]
  with pytest.raises(errors.DataError, match='2 examples in place of 3'):
    _clients(path, limit=3).load('b')


def test_only_a_large_file_needs_an_index(path):
  _edit(path, 'DROP INDEX by_client')
  assert len(_clients(path).load('b')['y']) == 3
  # A hole at the end, which takes no room on the disk.
  os.truncate(path, 2**30 + 1)
  with pytest.raises(errors.DataError, match='CREATE INDEX'):
    _open(path.parent)
  _edit(path, 'CREATE INDEX by_client ON examples (client_id)')
  os.truncate(path, 2**30 + 1)
  assert len(_clients(path).load('b')['y']) == 3


def test_a_client_costs_no_more_memory_than_its_id(path):
  num_clients = 20_000
  with sqlite3.connect(path) as connection:
    connection.executemany(
      'INSERT INTO client_metadata VALUES (?, ?, ?)',
      [(f'user {i:08d}', 'train', 1) for i in range(num_clients)],
    )
    connection.executemany(
      'INSERT INTO examples VALUES (?, ?, ?)',
      [('train', f'user {i:08d}', _serialize(i, 'text')) for i in range(50)],
    )
  connection.close()
  few = _clients(path, split='test')  # Imports and opens what there is to.
  few.load('b')
  tracemalloc.start()
  try:
    data = _clients(path)
    opened, _ = tracemalloc.get_traced_memory()
    for i in range(50):
      data.load(f'user {i:08d}')
    loaded, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert opened < 200 * num_clients
  # The cache holds 50 clients of one example.
  assert loaded - opened < 50 * 10_000
