#!/usr/bin/env python3
"""Draws the pictures of run folders and prints their table.

One run: its pictures go into plots/ in the run folder, and its summary is
printed. Several runs of one task: pictures that compare them, comparison.csv,
and the table of the comparison over seeds; if some have differential privacy,
also a table of privacy against the metric. Loads no TensorFlow.

  bin/plot.py --run_dir runs/a
  bin/plot.py --run_dir runs/a --run_dir runs/b --out comparison
  bin/plot.py --run_dir runs/a --metric questions/accuracy
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist import files
from tff_codist import reports
from tff_codist.program import command


def main(argv):
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--run_dir',
    action='append',
    required=True,
    metavar='DIR',
    help='a run folder of bin/train.py; give the flag again for more runs',
  )
  parser.add_argument(
    '--out',
    metavar='DIR',
    help='where the pictures go; default: plots/ in the folder of a single '
    'run, comparison/ in the current directory for several runs',
  )
  parser.add_argument(
    '--last',
    type=int,
    default=5,
    metavar='N',
    help='evaluations in the mean of the table (default: 5)',
  )
  parser.add_argument(
    '--metric',
    default='accuracy',
    metavar='NAME',
    help='what the table and the curves show: the end of a column '
    'eval/<pool>/NAME of metrics.csv, such as loss (default: accuracy)',
  )
  arguments = parser.parse_args(argv)
  loaded = [reports.load_run(run_dir) for run_dir in arguments.run_dir]
  about = {'last': arguments.last, 'metric': arguments.metric}
  # The tables come first: they refuse runs that cannot be compared.
  if len(loaded) == 1:
    tables = [reports.summary_table(loaded[0], **about)]
    paths = reports.plot_run(loaded[0], arguments.out, metric=arguments.metric)
  else:
    tables = [
      reports.comparison_table(loaded, **about),
      reports.privacy_table(loaded, **about),
    ]
    out = pathlib.Path(arguments.out or 'comparison')
    paths = reports.plot_comparison(loaded, out, **about)
    paths.append(out / 'comparison.csv')
    files.write(paths[-1], reports.comparison_csv(loaded, **about).encode())
  print('\n'.join(map(str, paths)), end='\n\n')
  print('\n'.join(filter(None, tables)), end='')


if __name__ == '__main__':
  command.run(main, needs_tff=False)
