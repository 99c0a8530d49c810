"""Checkpoints: round trip, checksums, fallback, no half-written file."""

import asyncio
import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from tff_codist import errors
from tff_codist import files
from tff_codist.program import checkpoints
from tff_codist.testing import toys


def _state(value=1.0):
  return collections.OrderedDict(
    small=(np.full((2, 3), value, np.float32), ()),
    large=collections.OrderedDict(step=np.int64(7), v=np.float32(value)),
  )


@pytest.fixture
def manager(tmp_path):
  return checkpoints.CheckpointManager(tmp_path / 'checkpoints', keep=2)


def _save(manager, version, value=1.0):
  asyncio.run(manager.save(_state(value), version))


def test_round_trip_keeps_bits_types_and_structure(manager):
  state = _state(np.float32(0.1))
  asyncio.run(manager.save(state, 3))
  loaded = asyncio.run(manager.load(3, _state(0.0)))
  toys.assert_same(state, loaded)
  assert loaded['large']['step'].dtype == np.int64


def test_keeps_the_newest(manager):
  for version in (1, 2, 10):
    _save(manager, version)
  assert asyncio.run(manager.get_versions()) == [2, 10]
  asyncio.run(manager.remove_all())
  assert asyncio.run(manager.get_versions()) is None
  assert asyncio.run(manager.load_latest(_state())) == (None, 0)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'no checksum'])
def test_corrupt_checkpoint_falls_back_and_says_so(
  manager, tmp_path, caplog, damage
):
  _save(manager, 1, 1.0)
  _save(manager, 2, 2.0)
  path = tmp_path / 'checkpoints' / 'round_00000002.npz'
  content = path.read_bytes()
  if damage == 'flip':
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
  elif damage == 'cut':
    path.write_bytes(content[:-10])
  else:
    path.with_name(f'{path.name}.sha256').unlink()
  with caplog.at_level('WARNING', logger='absl'):
    state, version = asyncio.run(manager.load_latest(_state()))
  assert version == 1
  toys.assert_same(state, _state(1.0))
  assert 'round_00000002.npz' in caplog.text


def test_no_intact_checkpoint_is_an_error(manager, tmp_path):
  _save(manager, 1)
  (tmp_path / 'checkpoints' / 'round_00000001.npz').write_bytes(b'')
  with pytest.raises(errors.CheckpointError, match='checksum'):
    asyncio.run(manager.load_latest(_state()))


def test_state_of_another_structure_is_refused(manager):
  _save(manager, 1)
  with pytest.raises(errors.CheckpointError, match='another algorithm'):
    asyncio.run(manager.load(1, {'other': np.zeros(3)}))


def test_resumed_run_removes_later_and_half_written_checkpoints(
  manager, tmp_path
):
  for version in (1, 2):
    _save(manager, version)
  (tmp_path / 'checkpoints' / '.round_00000003.npz.42').touch()
  # Between the checksum and its checkpoint, when it was written or removed.
  (tmp_path / 'checkpoints' / 'round_00000000.npz.sha256').touch()
  (tmp_path / 'checkpoints' / 'round_00000003.npz.sha256').touch()
  asyncio.run(manager.remove_after(1))
  names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'round_00000001.npz', 'round_00000001.npz.sha256'}


def test_missing_and_existing_versions(manager):
  with pytest.raises(tff.program.ProgramStateNotFoundError):
    asyncio.run(manager.load(5, _state()))
  _save(manager, 1)
  with pytest.raises(tff.program.ProgramStateExistsError):
    _save(manager, 1)


@pytest.mark.parametrize('num_written', [0, 1])
def test_full_disk_leaves_no_half_written_file(
  manager, tmp_path, monkeypatch, num_written
):
  _save(manager, 1)
  calls = []

  def no_space(descriptor):
    calls.append(descriptor)
    if len(calls) > num_written:
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', no_space)
  with pytest.raises(errors.StorageError, match='No space left'):
    _save(manager, 2)
  names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'round_00000001.npz', 'round_00000001.npz.sha256'}
  assert asyncio.run(manager.load_latest(_state()))[1] == 1
