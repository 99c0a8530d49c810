"""Files that nobody sees half of, and folders for one process."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

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
