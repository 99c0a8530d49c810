"""Things chosen by name on the command line: losses, models, tasks, ..."""

from collections.abc import Callable
from typing import Generic, TypeVar

from tff_codist import errors

_T = TypeVar('_T')


class Registry(Generic[_T]):
  """A table from names to functions, filled by a decorator.

  Example:
    >>> losses = Registry('loss')
    >>> @losses.register('zero')
    ... def zero(): return 0
    >>> losses['zero']()
    0
  """

  def __init__(self, kind: str):
    self._kind = kind
    self._entries: dict[str, _T] = {}
    self._reads: dict[str, frozenset] = {}

  def register(self, name: str, *reads: str) -> Callable[[_T], _T]:
    """Returns a decorator that enters a function under `name`.

    Args:
      name: The name.
      *reads: Fields (`'server.beta1'`) or groups (`'merged'`) of the
        configuration that this entry reads and others of the table do not.
        Setting one while another entry is chosen is an error.
    """

    def enter(entry: _T) -> _T:
      if self._entries.setdefault(name, entry) is not entry:
        raise ValueError(f'{self._kind} {name!r} is registered twice')
      self._reads[name] = frozenset(reads)
      return entry

    return enter

  def __getitem__(self, name: str) -> _T:
    """Returns the entry, or raises `UnknownNameError` with the nearest."""
    if name not in self._entries:
      raise errors.UnknownNameError(self._kind, name, self._entries)
    return self._entries[name]

  def names(self) -> list[str]:
    """Returns the registered names, sorted."""
    return sorted(self._entries)

  def reads(self, name: str, field: str) -> bool:
    """Returns whether a field of the configuration matters to an entry.

    Args:
      name: The entry.
      field: The field's full name, e.g. `'server.beta1'`.

    Returns:
      False exactly if other entries of the table read the field or its group,
      and this one does not.
    """
    keys = {field, field.partition('.')[0]}
    known = frozenset().union(*self._reads.values())
    return bool(keys & self._reads[name]) or not keys & known
