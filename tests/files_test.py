import os
import pathlib

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


def test_remove_passes_over_files_that_are_gone(tmp_path):
  (tmp_path / 'a').touch()
  files.remove([tmp_path / 'a', tmp_path / 'b'])
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(errors.StorageError, match='cannot be removed'):
    files.remove([tmp_path])


def test_folder_holds_what_its_marker_says_or_is_free(tmp_path):
  folder = tmp_path / 'a' / 'b'
  assert not files.holds(folder, 'run.json', what='a run')
  folder.mkdir(parents=True)
  # A kill while the first file was written leaves its temporary form.
  (folder / '.run.json.123').touch()
  assert not files.holds(folder, 'run.json', what='a run')
  (folder / 'thesis.tex').touch()
  with pytest.raises(errors.RunFolderError, match='something else than a run'):
    files.holds(folder, 'run.json', what='a run')
  (folder / 'run.json').touch()
  assert files.holds(folder, 'run.json', what='a run')


def test_folder_at_or_below_a_file_cannot_be_used(tmp_path):
  (tmp_path / 'file').touch()
  for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(errors.RunFolderError, match='cannot be used'):
      files.holds(folder, 'run.json', what='a run')


# Tests may run as root, to whom nothing is denied.
@pytest.mark.parametrize('denied', ['stat', 'iterdir', 'access'])
def test_folder_without_permission_cannot_be_used(
  tmp_path, monkeypatch, denied
):
  def deny(*_, **__):
    raise PermissionError(13, 'Permission denied')

  with monkeypatch.context() as patch:
    if denied == 'access':
      patch.setattr(os, 'access', lambda *_: False)
    else:
      patch.setattr(pathlib.Path, denied, deny)
    with pytest.raises(errors.RunFolderError, match='cannot be used'):
      files.holds(tmp_path, 'run.json', what='a run')


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
