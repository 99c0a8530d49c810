import pathlib

from tff_codist import reproduction
from tff_codist.reproduction import table


def test_render():
  assert table.render(
    {
      'preset': 'cifar100',
      'quick': True,
      'merged.rescale': True,
      'merged.match_norm': False,
      'pools.names': ('small', 'large'),
      'server.epsilon': 1e-3,
    }
  ) == (
    '--preset',
    'cifar100',
    '--quick',
    '--merged.rescale',
    '--merged.nomatch_norm',
    '--pools.names',
    'small',
    'large',
    '--server.epsilon',
    '0.001',
  )


def test_cells_go_seed_by_seed_into_folders_of_their_own():
  rows = tuple(
    reproduction.Row(name, {'preset': 'digits', 'algorithm.name': name})
    for name in ('fed_avg', 'merged_codist')
  )
  made = reproduction.Table('t', 's', 'c', 'c', rows)
  cells = reproduction.cells(made, num_seeds=2, out_dir=pathlib.Path('out'))
  assert [cell.name for cell in cells] == [
    'fed_avg, seed 1',
    'merged_codist, seed 1',
    'fed_avg, seed 2',
    'merged_codist, seed 2',
  ]
  assert cells[3].flags(**{'program.rounds': 4}) == (
    '--preset',
    'digits',
    '--algorithm.name',
    'merged_codist',
    '--seed',
    '2',
    '--run_dir',
    'out/runs/merged_codist_2',
    '--program.rounds',
    '4',
  )
  assert cells[3].log == pathlib.Path('out/runs/merged_codist_2.log')
