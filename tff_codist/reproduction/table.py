"""What a table of a paper consists of: rows, each a training's flags."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

from tff_codist import config as config_lib
from tff_codist import registry
from tff_codist.reports import metrics as metrics_lib

SCALES = ('full', 'machine', 'quick')


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One setting of a table, trained with every seed.

  Attributes:
    name: Its name, unique in the table; of the run folders, too.
    flags: What `bin/train.py` is given, by field of the configuration; a tuple
      is several values, `preset` and `quick` are fields here.
    label: What reports call it; None is the name. Rows that differ in privacy
      alone share a label, and reports tell them apart by their noise.
    published: What the source reports, by metric and pool: accuracies in
      percent.
    published_gain: What the source reports as difference to the baseline,
      where it has no values: percentage points.
  """

  name: str
  flags: Mapping[str, Any]
  label: Optional[str] = None
  published: Mapping[tuple[str, str], float] = dataclasses.field(
    default_factory=dict
  )
  published_gain: Mapping[tuple[str, str], float] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, or a question, of a paper.

  Attributes:
    title: Its title.
    source: Where the published numbers are from.
    claim: What is to be checked, a sentence or two.
    choices: What the source leaves open and was chosen here.
    rows: The rows. Those labelled `fed_avg` are the baseline.
    metrics: The metrics of the evaluation that it reports.
    last: Evaluations in the mean that counts.
  """

  title: str
  source: str
  claim: str
  choices: str
  rows: tuple[Row, ...]
  metrics: tuple[str, ...] = (metrics_lib.DEFAULT,)
  last: int = 5


# From a scale to the table.
TableFn = Callable[[str], Table]
tables: registry.Registry[TableFn] = registry.Registry('table')


class Cell(NamedTuple):
  """One run of a table.

  Attributes:
    row: Its row.
    seed: Its seed.
    run_dir: Its run folder.
  """

  row: Row
  seed: int
  run_dir: pathlib.Path

  @property
  def name(self) -> str:
    """Row and seed."""
    return f'{self.row.name}, seed {self.seed}'

  @property
  def log(self) -> pathlib.Path:
    """The file that takes the training's output."""
    # No with_suffix: a row's name may have a dot, `fed_avg_z0.1`.
    return self.run_dir.with_name(f'{self.run_dir.name}.log')

  def flags(self, **others: Any) -> tuple[str, ...]:
    """Returns the flags of `bin/train.py`.

    Args:
      **others: Further fields, and others' values in place of the row's.
    """
    fields = {**self.row.flags, 'seed': self.seed, 'run_dir': self.run_dir}
    return render({**fields, **others})


def cells(
  table: Table, *, num_seeds: int, out_dir: pathlib.Path
) -> tuple[Cell, ...]:
  """Returns a table's runs, seed by seed: early ones already compare.

  Args:
    table: The table.
    num_seeds: Seeds 1, 2, ... of each row, at least 1.
    out_dir: The folder of the table.
  """
  return tuple(
    Cell(row, seed, out_dir / 'runs' / f'{row.name}_{seed}')
    for seed in range(1, num_seeds + 1)
    for row in table.rows
  )


def render(fields: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns fields of the configuration as flags.

  Args:
    fields: Values by full name.
  """
  flags: list[str] = []
  for name, value in fields.items():
    if isinstance(value, bool):
      flags.append(config_lib.switch(name, value))
    elif isinstance(value, tuple):
      flags += [f'--{name}', *map(str, value)]
    else:
      flags += [f'--{name}', str(value)]
  return tuple(flags)
