"""Writing files so that a reader sees the old or the new content, whole."""

import contextlib
import os
import pathlib

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
