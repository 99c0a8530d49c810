"""What a study searches: fields of the configuration and their ranges.

A parameter is written as on the command line: `merged.learning_rate=
log:1e-6:1e-2`, `linear:LOW:HIGH`, `int:LOW:HIGH` or a list `v1,v2`. Its values
are texts, as flags of `bin/train.py` have them. The field with a value for each
pool takes one for all, or `merged.distillation_weight[large]` that of a pool.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Optional

from tff_codist import config as config_lib
from tff_codist import errors

_RANGES = ('log', 'linear', 'int')
# Digits of a number in a range: no more than a person would try.
_DIGITS = 6
# The field that decides on whom a trial is measured.
EVALUATE_ON = 'program.evaluate_on'
# Fields that change how long a trial trains, or on what and when it is
# measured, and with that what its value means.
_OF_THE_JUDGE = re.compile(
  r'seed|(task|text)\..*|program\.(evaluat.*|rounds|rounds_per_evaluation)'
)
# Tuples whose values do not belong to the pools one by one.
_NOT_PER_POOL = re.compile(r'pools\.(names|client_lists)|unlabelled\..*')
_BOOLEANS = ('true', 'false')


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A field that is searched.

  Attributes:
    field: Full name of the field.
    pool: The pool whose value it is; `None` for one value for all.
    scale: `log`, `linear` or `int` for a range, `list` for a list.
    low: Lower end of a range, included.
    high: Upper end, included; above `low`.
    values: The values of a list, as flags have them; empty for a range.
  """

  field: str
  pool: Optional[str]
  scale: str
  low: float = 0.0
  high: float = 0.0
  values: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    """The name, which the study uses: `field` or `field[pool]`."""
    return self.field if self.pool is None else f'{self.field}[{self.pool}]'

  @property
  def choices(self) -> Optional[tuple[str, ...]]:
    """All values, in order; `None` for a range of real numbers."""
    if self.scale == 'int':
      return tuple(map(str, range(int(self.low), int(self.high) + 1)))
    return self.values or None

  @property
  def extremes(self) -> tuple[str, ...]:
    """The values that are checked before a study starts."""
    return self.values or (self.text(self.low), self.text(self.high))

  def at(self, u: float) -> str:
    """Returns the value at a point of the unit interval.

    Args:
      u: In [0, 1]. Values are uniform in it on their scale: a list and `int`
        have equal parts, `log` is uniform in the logarithm.
    """
    if self.scale == 'list':
      return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
    if self.scale == 'log':
      return self.text(self.low * (self.high / self.low) ** u)
    parts = self.high - self.low + (self.scale == 'int')
    return self.text(self.low + u * parts)

  def text(self, value: float) -> str:
    """Returns a number of a range, within it, as a flag has it."""
    if self.scale == 'int':
      return str(min(math.floor(value), int(self.high)))
    return f'{min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)!r}'


Space = tuple[Parameter, ...]


def parse_space(texts: Sequence[str], config: config_lib.Config) -> Space:
  """Returns what is searched.

  Args:
    texts: `NAME=RANGE` or `NAME=v1,v2,...`, each name once.
    config: The configuration of which the trials change these fields.

  Raises:
    UnknownNameError: If a field or pool is unknown, with the nearest one.
    ConfigError: If a range or list is empty or malformed, a name is there
      twice, or a field changes what the value of a trial means.
  """
  space = tuple(_parse(text, config) for text in texts)
  names = [parameter.name for parameter in space]
  for parameter in space:
    # For all pools and for one of them would contradict each other.
    if names.count(parameter.name) > 1 or (
      parameter.pool is not None and parameter.field in names
    ):
      raise errors.ConfigError(
        f'--search {parameter.name} together with another of this field',
        expected='one value for all pools, or one for each pool, once',
        fix='leave one of them out',
      )
  return space


def set_flags(
  flags: Sequence[str], values: Mapping[str, str], config: config_lib.Config
) -> list[str]:
  """Returns the flags of `bin/train.py` that also set some parameters.

  Args:
    flags: Flags that give the configuration. Where one pool's value of a field
      is a parameter, they may have the values of the others.
    values: By name of the parameter.
    config: The configuration.
  """
  fields = config_lib.flatten(config)
  by_field: dict[str, dict[str, str]] = {}
  for name, value in values.items():
    field, pool = _split(name)
    by_field.setdefault(field, {})[pool or ''] = value
  of_one_pool = {
    f'--{field}' for field, of_pools in by_field.items() if '' not in of_pools
  }
  result, is_kept = [], True
  for argument in flags:
    if argument.startswith('--'):
      is_kept = argument.partition('=')[0] not in of_one_pool
    if is_kept:
      result.append(argument)
  for field, of_pools in by_field.items():
    if '' not in of_pools:
      others = config.pools.per_pool(field, fields[field])
      result.append(f'--{field}')
      result += [of_pools.get(p, str(value)) for p, value in others.items()]
    elif isinstance(fields[field], bool):
      result.append(config_lib.switch(field, of_pools[''] == 'true'))
    else:
      result.append(f'--{field}={of_pools[""]}')
  return result


def _split(name: str) -> tuple[str, Optional[str]]:
  field, bracket, pool = name.partition('[')
  return field, pool[:-1] if bracket else None


def _parse(text: str, config: config_lib.Config) -> Parameter:
  fields = config_lib.flatten(config)
  match = re.fullmatch(r'([^=\[\]]+)(?:\[([^=\[\]]*)\])?=(.*)', text)
  if not match:
    raise _malformed(text, 'NAME=log:LOW:HIGH, or NAME=v1,v2,...')
  field, pool, values = match.groups()
  if field not in fields:
    raise errors.UnknownNameError('field', field, fields)
  if _OF_THE_JUDGE.fullmatch(field):
    raise errors.ConfigError(
      f'--search {field}',
      expected='a field that changes the training alone: all trials train as '
      'long and are measured alike, on validation clients',
      fix='leave it out'
      if field == EVALUATE_ON
      else f'give --{field} one value, for all trials',
    )
  if pool is not None:
    if not isinstance(fields[field], tuple) or _NOT_PER_POOL.fullmatch(field):
      raise errors.ConfigError(
        f'--search {field}[{pool}]',
        expected='a field with a value for each pool',
        fix=f'search {field}',
      )
    if pool not in config.pools.names:
      raise errors.UnknownNameError('pool', pool, config.pools.names)
  scale, colon, ends = values.partition(':')
  if colon and scale in _RANGES:
    low, high = _ends(text, scale, ends)
    return Parameter(field, pool, scale, low=low, high=high)
  choices = tuple(value.strip() for value in values.split(','))
  if '' in choices or len(set(choices)) < len(choices):
    raise _malformed(text, 'different values with commas between them')
  if isinstance(fields[field], bool) and not set(choices) <= set(_BOOLEANS):
    raise _malformed(text, 'true, false, or both')
  return Parameter(field, pool, 'list', values=choices)


def _ends(text: str, scale: str, ends: str) -> tuple[float, float]:
  """Returns the ends of a range."""
  number = int if scale == 'int' else float
  try:
    low, high = map(number, ends.split(':'))
  except ValueError as error:
    raise _malformed(text, f'two numbers, {scale}:LOW:HIGH') from error
  if not (low < high and math.isfinite(low) and math.isfinite(high)):
    raise _malformed(text, 'finite numbers with LOW below HIGH')
  if scale == 'log' and low <= 0:
    raise _malformed(text, 'a range above 0 with log')
  return low, high


def _malformed(text: str, expected: str) -> errors.ConfigError:
  return errors.ConfigError(
    f'--search {text}', expected=expected, fix='correct --search'
  )
