"""Every table's rows are command lines that bin/train.py takes."""

import pathlib

import pytest

import tables  # noqa: F401  Registers them.
from tff_codist import reproduction
from tff_codist.program import command_line
from tff_codist.reports import groups
from tff_codist.reproduction import table as table_lib


@pytest.mark.parametrize('scale', reproduction.SCALES)
@pytest.mark.parametrize('name', reproduction.tables.names())
def test_rows_can_be_run(name, scale):
  table = reproduction.tables[name](scale)
  configs = {}
  for row in table.rows:
    flags = table_lib.render({**row.flags, 'run_dir': 'x'})
    configs[row.name] = command_line.parse(flags, description='').config
  assert len(configs) == len(table.rows) > 1
  assert len(set(configs.values())) == len(configs)
  cells = reproduction.cells(table, num_seeds=2, out_dir=pathlib.Path('out'))
  assert len({cell.log for cell in cells}) == len(cells)
  labels = [row.label or row.name for row in table.rows]
  assert groups.BASELINE in labels
  for row in table.rows:
    for metric, pool in {*row.published, *row.published_gain}:
      assert metric in table.metrics
      assert pool in configs[row.name].pools.names
  if scale != 'quick':
    assert len({c.program.rounds for c in configs.values()}) == 1
