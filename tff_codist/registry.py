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

  def register(self, name: str) -> Callable[[_T], _T]:
    """Returns a decorator that enters a function under `name`."""

    def enter(entry: _T) -> _T:
      if self._entries.setdefault(name, entry) is not entry:
        raise ValueError(f'{self._kind} {name!r} is registered twice')
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
