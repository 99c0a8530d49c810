"""Every exception of the package, and a check that commands share.

An error states what was found, what was expected and how to fix it. Each class
also derives from the builtin that fits it, so callers may catch either, and
carries the exit code with which a command ends on it.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional


class CodistError(Exception):
  """Base of all errors that the package raises on purpose.

  Attributes:
    found: What was found, a phrase without a full stop.
    expected: What would have been right.
    fix: What the user can do about it, an imperative phrase.
    exit_code: Exit code of a command that ends on this error.
  """

  exit_code = 1

  def __init__(self, found: str, *, expected: str, fix: str):
    super().__init__(f'Found {found}; expected {expected}. To fix: {fix}.')
    self.found = found
    self.expected = expected
    self.fix = fix


class ConfigError(CodistError, ValueError):
  """A value of the configuration that cannot be run."""

  exit_code = 2


# A message lists at most so many names.
_MOST_NAMES = 12


class UnknownNameError(ConfigError):
  """A name that no registry, preset or field has."""

  def __init__(self, kind: str, name: str, known: Iterable[str]):
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    super().__init__(
      f'unknown {kind} {name!r}',
      expected=f'one of {", ".join(known)}'
      if len(known) <= _MOST_NAMES
      else f'a known {kind}',
      fix=f'use {nearest[0]!r}' if nearest else f'choose a known {kind}',
    )
    self.nearest = nearest[0] if nearest else None


class DataError(CodistError, ValueError):
  """Data that is missing, corrupt or of the wrong shape."""

  exit_code = 2


class DataNotFoundError(DataError, FileNotFoundError):
  """A data file that is not in the data directory."""


class RunFolderError(CodistError, ValueError):
  """A run folder that belongs to another configuration, or to none."""

  exit_code = 2


class CheckpointError(CodistError, RuntimeError):
  """No checkpoint of a run folder can be read."""


class StorageError(CodistError, OSError):
  """A file that could not be written, for example because the disk is full."""

  exit_code = 3


class EnvironmentSetupError(CodistError, RuntimeError):
  """A machine or installation on which the package cannot run."""

  exit_code = 3


class WorkerError(EnvironmentSetupError):
  """TFF's worker did not start, or died and died again on the retry."""


class NonFiniteModelError(CodistError, ArithmeticError):
  """A pool's model that is no longer finite."""


class FailedRunsError(CodistError, RuntimeError):
  """Trainings of a table or a study that failed; the others are there."""


class ArgumentError(CodistError, TypeError, ValueError):
  """An argument that is not of the type a computation was built for."""


class ComputationError(CodistError, RuntimeError):
  """A federated computation that failed while it ran.

  Attributes:
    client: Place in the cohort of the client that failed, from 0; `None` if it
      was the server.
  """

  def __init__(
    self, found: str, *, expected: str, fix: str, client: Optional[int] = None
  ):
    super().__init__(found, expected=expected, fix=fix)
    self.client = client


@contextlib.contextmanager
def in_pool(pool: str, client_ids: Sequence[str] = ()) -> Iterator[None]:
  """Names the pool, and the client, of a `ComputationError` inside.

  Args:
    pool: The pool.
    client_ids: The clients of its cohort, as far as they are known.
  """
  try:
    yield
  except ComputationError as error:
    where = f'in pool {pool!r}'
    if error.client is not None and client_ids:
      where += f', client id {client_ids[error.client]!r}'
    raise ComputationError(
      f'{where}, {error.found}',
      expected=error.expected,
      fix=error.fix,
      client=error.client,
    ) from error


def check_above_0(**numbers: int) -> None:
  """Checks numbers of a command line.

  Args:
    **numbers: By flag, without its dashes.

  Raises:
    ConfigError: If one is below 1.
  """
  for name, number in numbers.items():
    if number < 1:
      raise ConfigError(
        f'--{name} {number}',
        expected='an integer above 0',
        fix=f'correct --{name}',
      )
