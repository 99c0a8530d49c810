import pytest

from tff_codist import errors
from tff_codist import files


def test_write_makes_folders_and_replaces_the_file(tmp_path):
  path = tmp_path / 'a' / 'b' / 'table.csv'
  files.write(path, b'first')
  files.write(path, b'second')
  assert path.read_bytes() == b'second'
  # No temporary file is left beside it.
  assert list(path.parent.iterdir()) == [path]


def test_write_says_what_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.StorageError, match=r'^Found .*cannot be written'):
    files.write(tmp_path / 'file' / 'table.csv', b'')


def test_write_leaves_nothing_when_the_name_is_taken(tmp_path):
  (tmp_path / 'table.csv').mkdir()
  with pytest.raises(errors.StorageError):
    files.write(tmp_path / 'table.csv', b'data')
  assert list(tmp_path.iterdir()) == [tmp_path / 'table.csv']


def test_lock_keeps_others_out_until_it_ends(tmp_path):
  folder = tmp_path / 'a' / 'b'
  with (
    files.lock(folder),
    pytest.raises(errors.RunFolderError, match='another process'),
    files.lock(folder),
  ):
    raise AssertionError('two locks')
  with files.lock(folder):
    assert folder.is_dir()
