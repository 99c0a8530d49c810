#!/usr/bin/env python3
"""Compares FedAvg, PERIODIC and MERGED CODIST on scikit-learn's digits."""

import argparse
import dataclasses
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist import errors
from tff_codist import reports
from tff_codist.program import command

_ALGORITHMS = ('fed_avg', 'periodic_codist', 'merged_codist')


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument('--seeds', type=int, default=3, help='runs of each kind')
  parser.add_argument('--quick', action='store_true', help='a few rounds only')
  parser.add_argument(
    '--out',
    help='folder of the runs and pictures (default: runs/quickstart, and '
    'runs/quickstart_quick with --quick)',
  )
  arguments = parser.parse_args(argv)
  errors.check_above_0(seeds=arguments.seeds)

  from tasks import digits
  from tff_codist import config as config_lib
  from tff_codist.program import training

  preset = digits.preset(arguments.quick)
  default_out = f'runs/quickstart{"_quick" if arguments.quick else ""}'
  out = pathlib.Path(arguments.out or default_out)
  started = time.monotonic()
  runs = []
  for seed in range(1, arguments.seeds + 1):
    for name in _ALGORITHMS:
      config = dataclasses.replace(
        preset, algorithm=config_lib.AlgorithmConfig(name), seed=seed
      )
      print(f'{name}, seed {seed}', file=sys.stderr)
      run_dir = out / f'{name}_seed_{seed}'
      training.train(config, run_dir)
      runs.append(reports.load_run(run_dir))
  print(reports.comparison_table(runs))
  for path in reports.plot_comparison(runs, out):
    print(path)
  print(f'{time.monotonic() - started:.0f} s')


if __name__ == '__main__':
  command.run(main)
