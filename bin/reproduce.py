#!/usr/bin/env python3
"""Reproduces a table: trains its runs, prints published values beside ours.

Runs that have finished are kept, interrupted ones go on, so the same command
continues after a stop; with more --seeds it adds runs. A run that fails is
reported, with its log, and the others go on. Writes report.md, report.csv and
report.html into --out.

  bin/reproduce.py codist_cifar100 --scale quick
  bin/reproduce.py codist_cifar100 --seeds 3 --jobs 2 --out runs/cifar100
  bin/reproduce.py codist_cifar100 --out runs/cifar100 --report_only
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist.program import command

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(argv):
  import tables  # Registers the tables, and with them all that trains.
  from tff_codist import errors
  from tff_codist import reproduction
  from tff_codist.reproduction import publication
  from tff_codist.reproduction import runner

  del tables
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  names = ', '.join(reproduction.tables.names())
  parser.add_argument('table', metavar='TABLE', help=f'one of {names}')
  parser.add_argument(
    '--scale',
    default='machine',
    help='full: as in the paper, as far as it says; machine: hours on two '
    'cores; quick: minutes, to see that everything runs (default: machine)',
  )
  parser.add_argument(
    '--seeds',
    type=int,
    metavar='N',
    help='runs of each row, with seeds 1 to N (default: 3, quick: 1; more if '
    'the folder has more)',
  )
  parser.add_argument(
    '--jobs',
    type=int,
    metavar='N',
    help='trainings at a time (default: 1)',
  )
  parser.add_argument(
    '--out',
    metavar='DIR',
    help='where everything goes (default: runs/TABLE_SCALE)',
  )
  parser.add_argument(
    '--report_only',
    action='store_true',
    help='train nothing, report the runs that have finished',
  )
  parser.add_argument(
    '--publish',
    action='store_true',
    help="also copy the report into this clone's docs/, and its numbers into "
    'the tables of README.md and docs/*.md that are marked with its name',
  )
  arguments = parser.parse_args(argv)
  if arguments.report_only and arguments.jobs is not None:
    raise errors.ConfigError(
      '--jobs with --report_only',
      expected='one of them: a report alone trains nothing',
      fix='leave one out',
    )
  if arguments.publish and arguments.scale == 'quick':
    raise errors.ConfigError(
      '--publish of a table of quick runs',
      expected='a table at scale machine or full',
      fix='leave out --publish, or give another --scale',
    )
  out = arguments.out or f'runs/{arguments.table}_{arguments.scale}'
  missing = runner.reproduce(
    arguments.table,
    scale=arguments.scale,
    num_seeds=arguments.seeds,
    jobs=1 if arguments.jobs is None else arguments.jobs,
    out_dir=pathlib.Path(out),
    report_only=arguments.report_only,
  )
  if arguments.publish:
    if missing:
      raise errors.ConfigError(
        f'--publish of a table without {missing[0].name}',
        expected='a table with all of its runs',
        fix='train them first',
      )
    documents = (_ROOT / 'README.md', *sorted((_ROOT / 'docs').glob('*.md')))
    for path in publication.publish(
      arguments.table, pathlib.Path(out), _ROOT / 'docs', documents
    ):
      print(path)


if __name__ == '__main__':
  command.run(main)
