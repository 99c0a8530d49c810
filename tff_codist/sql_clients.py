"""Clients in the SQLite files of TFF's federated data sets.

TFF finds or downloads a file. Clients are read from it directly: TFF's client
data builds a `tf.data` graph for each client, which was measured at 28 ms and
0.1 MB of memory, never freed, for every load. This takes 2 ms and keeps
nothing.

A file has two tables: `client_metadata` (client_id, split_name, num_examples),
and `examples` (split_name, client_id, serialized_example_proto) with an index.
The second may be very long (Stack Overflow: 135 million rows), so it is only
ever read one client at a time.
"""

import bisect
import contextlib
import http.client
import os
import pathlib
import socket
import sqlite3
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from tff_codist import clients
from tff_codist import errors

_BASE_URL = 'https://storage.googleapis.com/tff-datasets-public'
_REACHABLE_SECONDS = 10.0
# A download in which nothing arrives for so long has failed.
_STALLED_SECONDS = 60.0
# Without an index every load reads the whole file: 0.3 s for a gigabyte that is
# in memory already.
_MAX_BYTES_WITHOUT_INDEX = 2**30

# From a client's id and its parsed features, arrays `[examples, ...]`.
ToExamples = Callable[[str, Mapping[str, np.ndarray]], clients.Examples]


class DataSet(NamedTuple):
  """One of TFF's federated data sets.

  Attributes:
    title: Its name in messages.
    file_name: Name of its SQLite file.
    sizes: Size of the file, compressed and unpacked, for messages.
    splits: The splits that must be there.
    load_data: TFF's function that downloads it, called with `cache_dir`.
  """

  title: str
  file_name: str
  sizes: str
  splits: tuple[str, ...]
  load_data: Callable[..., Any]

  @property
  def url(self) -> str:
    """Where TFF downloads the file from."""
    return f'{_BASE_URL}/{self.file_name}.lzma'


def find_data_dir(data_dir: Optional[str]) -> pathlib.Path:
  """Returns the directory of the data sets.

  Args:
    data_dir: `config.TaskConfig.data_dir`; `None` takes $TFF_CODIST_DATA_DIR,
      else TFF's default cache directory.
  """
  return pathlib.Path(
    data_dir or os.environ.get('TFF_CODIST_DATA_DIR') or '~/.tff'
  ).expanduser()


def open_database(data_set: DataSet, data_dir: Optional[str]) -> 'Database':
  """Opens a data set; downloads it at the first use.

  Args:
    data_set: The data set.
    data_dir: Where it is or shall be, see `find_data_dir`.

  Raises:
    DataNotFoundError: If the file is missing and cannot be downloaded.
    DataError: If the file is damaged.
  """
  path = find_data_dir(data_dir) / data_set.file_name
  if not path.exists():
    _download(data_set, path)
  return Database(data_set, path)


class Database:
  """The SQLite file of a data set, checked without reading its examples."""

  def __init__(self, data_set: DataSet, path: pathlib.Path):
    """Checks that the file is complete.

    Args:
      data_set: The data set.
      path: Its file.

    Raises:
      DataError: If it is no complete database of TFF's form, or so large that
        reading it without an index would take too long.
    """
    self._data_set = data_set
    self._path = path
    try:
      with self._connect() as connection:
        (num_pages,) = connection.execute('PRAGMA page_count').fetchone()
        (page_bytes,) = connection.execute('PRAGMA page_size').fetchone()
        found_splits = connection.execute(
          'SELECT DISTINCT split_name FROM client_metadata'
        ).fetchall()
        connection.execute(
          'SELECT split_name, client_id, serialized_example_proto '
          'FROM examples LIMIT 1'
        ).fetchone()
        has_index = connection.execute(
          "SELECT 1 FROM pragma_index_list('examples') AS list, "
          "pragma_index_info(list.name) AS part WHERE part.name = 'client_id'"
        ).fetchone()
    except sqlite3.Error as error:
      raise self._damaged(str(error)) from error
    num_bytes = path.stat().st_size
    # SQLite itself does not notice when less than a page is missing.
    missing_bytes = num_pages * page_bytes - num_bytes
    if missing_bytes > 0:
      raise self._damaged(f'{missing_bytes} bytes are missing at its end')
    for split in data_set.splits:
      if (split,) not in found_splits:
        raise self._damaged(f'no clients of split {split!r}')
    if not has_index and num_bytes > _MAX_BYTES_WITHOUT_INDEX:
      raise errors.DataError(
        f'a file {path} of {num_bytes} bytes without an index of the clients',
        expected='an index, without which reading a client reads the whole '
        'file',
        fix=f"run `sqlite3 {path} 'CREATE INDEX examples_by_client ON examples "
        "(client_id, split_name)'`",
      )

  def clients(
    self,
    split: str,
    features: dict[str, tf.io.FixedLenFeature],
    to_examples: ToExamples,
    *,
    limit: Optional[int] = None,
  ) -> clients.ClientData:
    """Returns the clients of a split, each read when asked for.

    Memory holds the ids, four bytes for each, and the recently used clients.

    Args:
      split: Name of the split.
      features: The features to read, as `tf.io.parse_example` takes them.
      to_examples: Makes a client's examples from its id and the features,
        arrays `[examples, ...]` by name; texts are arrays of `bytes`.
      limit: Examples of a client to read at most, the first ones; `None` reads
        all.

    Returns:
      The clients. Loading one raises `DataError` if its rows are damaged or not
      all there.

    Raises:
      DataError: If the file cannot be read.
    """
    client_ids, sizes = self._sizes(split)

    def load(client_id: str) -> clients.Examples:
      size = int(sizes[bisect.bisect_left(client_ids, client_id)])
      expected = size if limit is None else min(size, limit)
      try:
        rows = self._rows(split, client_id, limit)
        parsed = tf.io.parse_example(tf.constant(rows, tf.string), features)
      except (
        sqlite3.Error,
        tf.errors.InvalidArgumentError,
        UnicodeError,  # TensorFlow's message quotes the bytes.
      ) as error:
        reason = f'{split} client {client_id!r}: {error}'
        raise self._damaged(reason) from error
      if len(rows) != expected:
        raise self._damaged(
          f'{split} client {client_id!r}: {len(rows)} examples in place of '
          f'{expected}'
        )
      return to_examples(
        client_id, {name: value.numpy() for name, value in parsed.items()}
      )

    return clients.ClientData(client_ids, clients.cached(load))

  def _sizes(self, split: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns a split's client ids, sorted, and their numbers of examples."""
    query = (
      'SELECT client_id, SUM(num_examples) FROM client_metadata '
      'WHERE split_name = ? GROUP BY client_id'
    )
    try:
      with self._connect() as connection:
        sizes = sorted(connection.execute(query, (split,)))
    except sqlite3.Error as error:
      raise self._damaged(str(error)) from error
    client_ids, num_examples = zip(*sizes)
    return client_ids, np.array(num_examples, np.int32)

  def _rows(
    self, split: str, client_id: str, limit: Optional[int]
  ) -> list[bytes]:
    """Returns a client's serialized examples, the first `limit` or all."""
    query = (
      'SELECT serialized_example_proto FROM examples '
      'WHERE client_id = ? AND split_name = ? ORDER BY rowid LIMIT ?'
    )
    no_limit = -1
    with self._connect() as connection:
      found = connection.execute(
        query, (client_id, split, no_limit if limit is None else limit)
      )
      return [row for (row,) in found]

  @contextlib.contextmanager
  def _connect(self) -> Iterator[sqlite3.Connection]:
    """Opens the database without the means, or the locks, to change it.

    A connection belongs to one thread; opening one takes 0.1 ms.
    """
    uri = f'{self._path.absolute().as_uri()}?mode=ro&immutable=1'
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
      yield connection

  def _damaged(self, reason: str) -> errors.DataError:
    data_set = self._data_set
    return errors.DataError(
      f'a damaged file {self._path} ({reason})',
      expected=f'{data_set.title}, an SQLite database ({data_set.sizes})',
      fix='delete the file; the next run downloads it again from '
      f'{data_set.url}, or copy a complete one there',
    )


def _download(data_set: DataSet, path: pathlib.Path) -> None:
  """Lets TFF download the file; it appears under its name when complete.

  Args:
    data_set: The data set.
    path: Where its file shall be.

  Raises:
    DataNotFoundError: If it cannot be downloaded.
  """
  unreachable = _why_unreachable(data_set.url)
  if unreachable:
    raise _not_found(data_set, path, unreachable)
  timeout = socket.getdefaulttimeout()
  # TFF opens the address without a time limit.
  socket.setdefaulttimeout(_STALLED_SECONDS)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=path.parent, prefix=f'.{path.name}-'
    ) as folder:
      data_set.load_data(cache_dir=folder)
      complete = pathlib.Path(folder, path.name)
      # TFF does not notice when the connection ends too early.
      Database(data_set, complete)
      complete.replace(path)
  except Exception as error:
    # Whatever went wrong at the server, in between or on this disk.
    raise _not_found(data_set, path, str(error)) from error
  finally:
    socket.setdefaulttimeout(timeout)


def _not_found(
  data_set: DataSet, path: pathlib.Path, reason: str
) -> errors.DataNotFoundError:
  return errors.DataNotFoundError(
    f'no file {path}, and no way to download it ({reason})',
    expected=f'{data_set.title} ({data_set.sizes}) in that place',
    fix=f'download {data_set.url} where there is a network, unpack it with '
    f'`xz --decompress {path.name}.lzma` and copy {path.name} to '
    f'{path.parent}; or name the directory that has it with '
    '--task.data_dir or TFF_CODIST_DATA_DIR',
  )


def _why_unreachable(url: str) -> Optional[str]:
  """Returns why an address gives no answer, or `None` if it does.

  Asks on a thread: a look-up of the name knows no time limit, and a host has
  many addresses, each of which may take its time.
  """
  reason = f'no answer within {_REACHABLE_SECONDS:.0f} seconds'

  def ask() -> None:
    nonlocal reason
    request = urllib.request.Request(url, method='HEAD')
    try:
      with urllib.request.urlopen(request, timeout=_REACHABLE_SECONDS):
        reason = None
    except (OSError, http.client.HTTPException) as error:
      reason = str(error)

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_REACHABLE_SECONDS)
  return reason
