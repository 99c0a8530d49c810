"""Verified checkpoints: a state's arrays in one file with a checksum.

TFF's own file manager saves a SavedModel, which adds functions to the process
at every save and has no checksum. This one keeps the interface of
`tff.program.ProgramStateManager` and writes NumPy archives without pickle.
"""

import hashlib
import io
import json
import logging
import os
import pathlib
from typing import Any, Optional

import numpy as np
import tensorflow_federated as tff
import tree

from tff_codist import errors
from tff_codist import files

_logger = logging.getLogger(__name__)

_PREFIX = 'round_'


class CheckpointManager(tff.program.ProgramStateManager):
  """Saves and loads program states, keeping the newest ones.

  A checkpoint `round_N.npz` holds the leaves of the state in their order and
  the names of their places; `round_N.npz.sha256` holds its checksum. Both are
  written under other names and renamed, the checkpoint last.
  """

  def __init__(self, root_dir: os.PathLike, *, keep: int):
    """Makes a manager for one folder, which need not exist yet.

    Args:
      root_dir: The folder of the checkpoints.
      keep: Checkpoints to keep, the newest ones, at least 1.
    """
    self._root_dir = pathlib.Path(root_dir)
    self._keep = keep

  async def get_versions(self) -> Optional[list[int]]:
    """Returns the saved versions in ascending order, `None` without any."""
    versions = [
      int(path.stem[len(_PREFIX) :])
      for path in self._root_dir.glob(f'{_PREFIX}*.npz')
      if path.stem[len(_PREFIX) :].isdigit()
    ]
    return sorted(versions) or None

  async def save(self, program_state: Any, version: int) -> None:
    """Saves a state and removes the oldest ones.

    Args:
      program_state: Nested containers of arrays.
      version: Number of the version.

    Raises:
      ProgramStateExistsError: If the version exists.
      StorageError: If it cannot be written; nothing half-written stays.
    """
    path = self._path(version)
    if path.exists():
      raise tff.program.ProgramStateExistsError(
        version=version, path=self._root_dir
      )
    state = await tff.program.materialize_value(program_state)
    names, leaves = zip(*tree.flatten_with_path(state))
    arrays = {f'leaf_{i}': np.asarray(leaf) for i, leaf in enumerate(leaves)}
    buffer = io.BytesIO()
    np.savez(buffer, names=np.frombuffer(_encode(names), np.uint8), **arrays)
    content = buffer.getvalue()
    try:
      files.write(
        self._checksum_path(version),
        hashlib.sha256(content).hexdigest().encode(),
      )
      files.write(path, content)
    except errors.StorageError:
      self._remove(version)
      raise
    for old in (await self.get_versions())[: -self._keep]:
      self._remove(old)

  async def load(self, version: int, structure: Any) -> Any:
    """Loads a version.

    Args:
      version: Number of the version.
      structure: A state of the same structure, for its containers.

    Returns:
      The state.

    Raises:
      ProgramStateNotFoundError: If there is no such version.
      CheckpointError: If the checksum or the structure does not match.
    """
    path = self._path(version)
    if not path.exists():
      raise tff.program.ProgramStateNotFoundError(version)
    try:
      content = path.read_bytes()
      expected = self._checksum_path(version).read_text()
    except OSError as error:
      raise errors.CheckpointError(
        f'{path} that cannot be read with its checksum ({error.strerror})',
        expected='both files as they were written',
        fix='delete them, so that an older checkpoint is used',
      ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
      raise errors.CheckpointError(
        f'{path} with checksum {found[:12]}',
        expected=f'{expected[:12]}, as when it was written',
        fix='delete it, so that an older checkpoint is used',
      )
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
      names, places = zip(*tree.flatten_with_path(structure))
      leaves = []
      if archive['names'].tobytes() == _encode(names):
        leaves = [archive[f'leaf_{i}'] for i in range(len(names))]
    if [_form(leaf) for leaf in leaves] != [_form(place) for place in places]:
      raise errors.CheckpointError(
        f'{path} with the state of another algorithm or version',
        expected="the structure of this run's state",
        fix='start the run in another folder',
      )
    return tree.unflatten_as(structure, leaves)

  async def load_latest(self, structure: Any) -> tuple[Any, int]:
    """Loads the newest version that is intact.

    A corrupt checkpoint is logged and the one before it is used.

    Args:
      structure: A state of the same structure.

    Returns:
      The state and its version; `(None, 0)` if there is no checkpoint.

    Raises:
      CheckpointError: If there are checkpoints and none can be read.
    """
    versions = await self.get_versions()
    if versions is None:
      return None, 0
    for version in reversed(versions):
      try:
        return await self.load(version, structure), version
      except errors.CheckpointError as error:
        _logger.warning('Falling back to an older checkpoint. %s', error)
        last_error = error
    raise last_error

  async def remove_after(self, version: int) -> None:
    """Removes what a resumed run will write again: all versions above one.

    Also what a kill left half-written or half-removed; no other process may be
    writing here.
    """
    for later in await self.get_versions() or ():
      if later > version:
        self._remove(later)
    for half_written in self._root_dir.glob(f'.{_PREFIX}*'):
      half_written.unlink()
    for checksum in self._root_dir.glob(f'{_PREFIX}*.sha256'):
      if not checksum.with_suffix('').exists():
        checksum.unlink()

  async def remove_all(self) -> None:
    """Removes all versions."""
    for version in await self.get_versions() or ():
      self._remove(version)

  def _path(self, version: int) -> pathlib.Path:
    return self._root_dir / f'{_PREFIX}{version:08d}.npz'

  def _checksum_path(self, version: int) -> pathlib.Path:
    return self._root_dir / f'{_PREFIX}{version:08d}.npz.sha256'

  def _remove(self, version: int) -> None:
    self._path(version).unlink(missing_ok=True)
    self._checksum_path(version).unlink(missing_ok=True)


def _form(leaf: Any) -> tuple:
  array = np.asarray(leaf)
  return array.shape, array.dtype


def _encode(names: tuple) -> bytes:
  return json.dumps(names).encode()
