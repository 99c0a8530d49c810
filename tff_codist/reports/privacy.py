"""Differential privacy of a run: what was set, and what it cost its clients.

Epsilon is what the ledger wrote into `metrics.csv` with every evaluation. A
pool's is that of its releases alone; the worst client's is over all pools of
the clients that lose most. It is infinite if they are in a pool without a
mechanism.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from tff_codist.reports import runs as runs_lib

# The field that every name and table of private runs has.
NOISE = 'noise_multiplier'
_WORST = 'privacy/worst_client/epsilon'


def of_pools(run: runs_lib.Run, field: str) -> dict[str, Any]:
  """Returns a field of `privacy` by pool; None for a pool without mechanism.

  Args:
    run: The run.
    field: Name of a field with one value for all pools or one for each.
  """
  fields = run.config.get('privacy', {})
  mechanisms = _per_pool(run, fields.get('mechanism', ['none']))
  values = _per_pool(run, fields.get(field, [None]))
  return {
    pool: None if mechanisms[pool] == 'none' else values[pool]
    for pool in run.pool_names
  }


def is_private(run: runs_lib.Run) -> bool:
  """Returns whether any pool has a mechanism."""
  return any(of_pools(run, 'mechanism').values())


def fields(run: runs_lib.Run) -> dict[str, str]:
  """Returns the fields of `privacy` that are set, as text.

  Returns:
    By name of the field, its value, or `1/none` if it differs between pools, of
    which the second has no mechanism; empty if no pool has one.
  """
  if not is_private(run):
    return {}
  texts = {}
  for name, value in run.config['privacy'].items():
    if isinstance(value, list):
      values = [text(value) for value in of_pools(run, name).values()]
      texts[name] = values[0] if len(set(values)) == 1 else '/'.join(values)
    elif value is not None and value is not False:
      texts[name] = text(value)
  return texts


def distinctive(settings: Iterable[Mapping[str, str]]) -> list[str]:
  """Returns the fields that name private runs beside each other.

  Args:
    settings: The `fields` of the runs.

  Returns:
    The noise multiplier, and all fields in which private runs differ; empty if
    no run is private.
  """
  private = [setting for setting in settings if setting]
  names = dict.fromkeys(name for setting in private for name in setting)
  return [
    name
    for name in names
    if name == NOISE or len({setting.get(name) for setting in private}) > 1
  ]


def epsilon(run: runs_lib.Run, pool: str) -> Optional[float]:
  """Returns what a pool's releases have cost alone; None if not recorded."""
  return _last(run, f'privacy/{pool}/epsilon')


def worst_epsilon(run: runs_lib.Run) -> Optional[float]:
  """Returns what the worst-off clients have lost; None if not recorded."""
  return _last(run, _WORST)


def series(run: runs_lib.Run) -> dict[str, runs_lib.Series]:
  """Returns epsilon over the rounds: by pool, and of the `worst client`."""
  columns = {pool: f'privacy/{pool}/epsilon' for pool in run.pool_names}
  columns['worst client'] = _WORST
  return {
    name: run.metrics[column]
    for name, column in columns.items()
    if column in run.metrics
  }


def text(value: Any) -> str:
  """Returns a value of a field, a float with up to nine digits."""
  if value is None:
    return 'none'
  return f'{value:.9g}' if isinstance(value, float) else str(value)


def _per_pool(run: runs_lib.Run, values: list) -> dict[str, Any]:
  names = run.pool_names
  return dict(zip(names, values * len(names) if len(values) == 1 else values))


def _last(run: runs_lib.Run, column: str) -> Optional[float]:
  series = run.metrics.get(column)
  return None if series is None else float(series[1][-1])
