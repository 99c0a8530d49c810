"""What clients keep between rounds: personal models, optimizers, soft labels.

The state of an algorithm holds a digest for each client, and the store what the
digest stands for. A value is found by its own checksum: it never changes, is
verified whenever it is read, and a state of an earlier round still finds the
values of that round. So a run that is resumed from a checkpoint sees exactly
what its clients had then.
"""

import hashlib
import os
import pathlib
import sqlite3
from collections.abc import Iterable
from typing import Any, Optional

import numpy as np
import tree

from tff_codist import errors

# What stands for a client that has nothing yet.
NOTHING = bytes(32)

_TABLES = """
CREATE TABLE IF NOT EXISTS clients (digest BLOB PRIMARY KEY, content BLOB);
CREATE TABLE IF NOT EXISTS kept (version INTEGER, digest BLOB);
"""


class ClientStore:
  """The values of clients in one SQLite file, found by their SHA-256.

  Memory does not grow with the number of clients. Values are written in
  transactions: a kill loses those since the last `keep`, which no checkpoint
  knows. To be used in one thread.
  """

  def __init__(self, path: os.PathLike):
    """Opens a store.

    Args:
      path: The file; it and its folder are made when something is written.
    """
    self._path = pathlib.Path(path)
    self._connection = None

  def put(self, value: Any) -> bytes:
    """Stores a client's value.

    Args:
      value: Nested containers of arrays.

    Returns:
      Its digest, 32 bytes.

    Raises:
      StorageError: If it cannot be written.
    """
    content = b''.join(
      np.ascontiguousarray(leaf).tobytes() for leaf in tree.flatten(value)
    )
    digest = hashlib.sha256(content).digest()
    self._write('INSERT OR IGNORE INTO clients VALUES (?, ?)', digest, content)
    return digest

  def get(self, digest: bytes, structure: Any) -> Any:
    """Returns the value of a digest.

    Args:
      digest: What `put` returned.
      structure: A value of the same structure, for containers, shapes and
        types.

    Raises:
      CheckpointError: If the store does not have it, it was damaged, or it has
        another structure.
    """
    row = self._find(digest)
    if row is None:
      raise self._damaged(f'{self._path} without state {digest.hex()[:12]}')
    if hashlib.sha256(row[0]).digest() != digest:
      raise self._damaged(f'another client state than {digest.hex()[:12]}')
    leaves, start = [], 0
    for place in map(np.asarray, tree.flatten(structure)):
      part = row[0][start : start + place.nbytes]
      if len(part) < place.nbytes:
        break
      leaves.append(np.frombuffer(part, place.dtype).reshape(place.shape))
      start += place.nbytes
    if start != len(row[0]) or len(leaves) != len(tree.flatten(structure)):
      raise self._damaged(
        f'a client state of {len(row[0]):,} bytes in {self._path}, of another '
        'model or algorithm'
      )
    return tree.unflatten_as(structure, leaves)

  def keep(self, version: int, digests: Iterable[bytes]) -> None:
    """Makes values durable and keeps them for a version of the state.

    Args:
      version: The version's number, as of its checkpoint.
      digests: What the state refers to.
    """
    digests = set(digests) - {NOTHING}
    if self._is_empty and not digests:
      return
    self._write('DELETE FROM kept WHERE version = ?', version)
    for digest in digests:
      self._write('INSERT INTO kept VALUES (?, ?)', version, digest)
    self._commit()

  def keep_only(self, versions: Iterable[int]) -> None:
    """Removes every value that none of these versions refers to."""
    if self._is_empty:
      return
    for (version,) in (
      self._open().execute('SELECT DISTINCT version FROM kept').fetchall()
    ):
      if version not in versions:
        self._write('DELETE FROM kept WHERE version = ?', version)
    self._write(
      'DELETE FROM clients WHERE digest NOT IN (SELECT digest FROM kept)'
    )
    self._commit()

  def close(self) -> None:
    """Closes the file; what was not kept is lost."""
    if self._connection:
      self._connection.close()
    self._connection = None

  @property
  def _is_empty(self) -> bool:
    return not self._connection and not self._path.exists()

  def _find(self, digest: bytes) -> Optional[tuple[bytes]]:
    if self._is_empty:
      return None
    query = 'SELECT content FROM clients WHERE digest = ?'
    try:
      return self._open().execute(query, (digest,)).fetchone()
    except sqlite3.DatabaseError as error:
      raise self._damaged(f'{self._path}, not readable ({error})') from error

  def _open(self) -> sqlite3.Connection:
    if not self._connection:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._connection = sqlite3.connect(self._path)
      self._connection.executescript(_TABLES)
    return self._connection

  def _write(self, statement: str, *values: Any) -> None:
    try:
      self._open().execute(statement, values)
    except (OSError, sqlite3.Error) as error:
      raise self._unwritable(error) from error

  def _commit(self) -> None:
    try:
      self._open().commit()
    except sqlite3.Error as error:
      raise self._unwritable(error) from error

  def _unwritable(self, error: Exception) -> errors.StorageError:
    return errors.StorageError(
      f'{self._path} that cannot be written ({error})',
      expected='a writable folder with free space',
      fix='free space or choose another folder, then start the command again',
    )

  def _damaged(self, found: str) -> errors.CheckpointError:
    return errors.CheckpointError(
      found,
      expected='the client states that this run wrote',
      fix='put the file back, or start the run in another folder',
    )
