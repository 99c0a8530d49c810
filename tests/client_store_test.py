"""Client store: values by checksum, kept by versions."""

import sqlite3

import numpy as np
import pytest

from tff_codist import client_store
from tff_codist import errors


def _value(number):
  return {
    'weights': (np.full((2, 3), number, np.float32), np.zeros(0, np.float32)),
    'step': np.int64(number),
  }


@pytest.fixture
def store(tmp_path):
  made = client_store.ClientStore(tmp_path / 'run' / 'clients.sqlite')
  yield made
  made.close()


def test_value_comes_back_with_its_types(store):
  found = store.get(store.put(_value(3)), _value(0))
  assert list(found) == ['weights', 'step']
  assert found['step'] == 3 and found['step'].dtype == np.int64
  np.testing.assert_array_equal(found['weights'][0], _value(3)['weights'][0])
  assert found['weights'][0].dtype == np.float32


def test_equal_values_have_one_digest(store):
  assert store.put(_value(1)) == store.put(_value(1))
  assert store.put(_value(1)) != store.put(_value(2))


def test_values_survive_if_they_are_kept(store, tmp_path):
  kept, lost = store.put(_value(1)), None
  store.keep(10, [kept, client_store.NOTHING])
  lost = store.put(_value(2))
  # A kill: the file is left as it is.
  store.close()
  again = client_store.ClientStore(tmp_path / 'run' / 'clients.sqlite')
  assert again.get(kept, _value(0))['step'] == 1
  with pytest.raises(errors.CheckpointError, match='without state'):
    again.get(lost, _value(0))
  again.close()


def test_only_values_of_kept_versions_stay(store):
  old, shared, new = (store.put(_value(i)) for i in range(3))
  store.keep(1, [old, shared])
  store.keep(2, [shared, new])
  store.keep_only([2])
  assert store.get(shared, _value(0))['step'] == 1
  assert store.get(new, _value(0))['step'] == 2
  with pytest.raises(errors.CheckpointError):
    store.get(old, _value(0))


def test_file_does_not_grow_with_versions(store, tmp_path):
  big = {'w': np.arange(100_000, dtype=np.float32)}
  sizes = []
  for version in range(12):
    store.keep(version, [store.put({'w': big['w'] + version})])
    store.keep_only(range(max(0, version - 1), version + 1))
    sizes.append((tmp_path / 'run' / 'clients.sqlite').stat().st_size)
  assert max(sizes) <= 4 * big['w'].nbytes


def test_nothing_is_written_before_there_is_something(store, tmp_path):
  store.keep(1, [client_store.NOTHING])
  store.keep_only([])
  with pytest.raises(errors.CheckpointError, match='without state'):
    store.get(b'1' * 32, _value(0))
  assert not (tmp_path / 'run').exists()


def test_damage_is_found(store, tmp_path):
  digest = store.put(_value(1))
  store.keep(1, [digest])
  connection = sqlite3.connect(tmp_path / 'run' / 'clients.sqlite')
  connection.execute('UPDATE clients SET content = zeroblob(32)')
  connection.commit()
  connection.close()
  with pytest.raises(errors.CheckpointError, match='another client state'):
    store.get(digest, _value(0))


def test_another_structure_is_refused(store):
  digest = store.put(_value(1))
  for other in ({'w': np.zeros(3)}, {'w': np.zeros(1, np.float32)}):
    with pytest.raises(errors.CheckpointError, match='another model'):
      store.get(digest, other)


def test_another_file_is_refused(tmp_path):
  path = tmp_path / 'clients.sqlite'
  path.write_bytes(b'no database' * 100)
  store = client_store.ClientStore(path)
  with pytest.raises(errors.CheckpointError, match='not readable'):
    store.get(b'1' * 32, _value(0))
  with pytest.raises(errors.StorageError):
    store.put(_value(1))
