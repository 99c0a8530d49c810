"""Files that nobody sees half of, and folders for one process."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterable, Iterator

from tff_codist import errors


def write(path: os.PathLike, content: bytes) -> None:
  """Writes a file under another name, then renames it.

  Args:
    path: The file; its folder is made if missing.
    content: Its new content.

  Raises:
    StorageError: If it cannot be written, for example for lack of space.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise errors.StorageError(
      f'{path} that cannot be written ({error.strerror or error})',
      expected='a writable folder with free space',
      fix='free space or choose another folder, then start the command again',
    ) from error


def remove(paths: Iterable[os.PathLike]) -> None:
  """Removes files, of which some may be gone already.

  Args:
    paths: The files.

  Raises:
    StorageError: If one cannot be removed.
  """
  for path in paths:
    try:
      pathlib.Path(path).unlink(missing_ok=True)
    except OSError as error:
      raise errors.StorageError(
        f'{path} that cannot be removed ({error.strerror or error})',
        expected='a folder that this user may write',
        fix='make it writable, or choose another folder',
      ) from error


def holds(folder: os.PathLike, marker: str, *, what: str) -> bool:
  """Returns whether a folder holds something; false if it can be put there.

  Args:
    folder: The folder; it and its parents may be missing.
    marker: Name of the file that is written first of all.
    what: What has such a file, for messages: `a run`.

  Raises:
    RunFolderError: If the folder holds something else, or cannot be used.
  """
  folder = pathlib.Path(folder)
  try:
    if (folder / marker).exists():
      return True
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
      raise NotADirectoryError(f'{parent} is no folder that can be written')
    # A kill while the first file was written leaves its temporary form.
    is_free = parent != folder or all(
      entry.name.startswith(f'.{marker}.') for entry in folder.iterdir()
    )
  except OSError as error:
    raise errors.RunFolderError(
      f'a folder {folder} that cannot be used ({error})',
      expected='a folder that this user may write',
      fix='choose another folder',
    ) from error
  if not is_free:
    raise errors.RunFolderError(
      f'{folder}, which holds something else than {what}',
      expected='a new or empty folder, or the one that this command has made',
      fix='choose another folder',
    )
  return False


@contextlib.contextmanager
def lock(folder: os.PathLike) -> Iterator[None]:
  """Makes a folder and keeps other processes from working in it.

  The system ends the lock with the process, also when it is killed.

  Args:
    folder: The folder.

  Raises:
    RunFolderError: If another process works in it.
    StorageError: If the folder cannot be made.
  """
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
  except OSError as error:
    raise errors.StorageError(
      f'a folder {folder} that cannot be made ({error})',
      expected='a folder that this user may write',
      fix='choose another folder',
    ) from error
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.RunFolderError(
        f'another process that works in {folder}',
        expected='one process in a folder',
        fix='wait for it, or choose another folder',
      ) from error
    yield
  finally:
    os.close(descriptor)
