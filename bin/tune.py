#!/usr/bin/env python3
"""Searches hyperparameters: many trainings, judged on validation clients.

Takes the flags of bin/train.py and a range for each field that is searched.
Every trial is a run folder below --out, trained by bin/train.py; test clients
are never seen. The same command goes on with a study that was interrupted, or
adds trials. With --out alone, shows what a study has found so far, without
TensorFlow.

  bin/tune.py --preset cifar100 --task.validation_clients 50 \\
    --search merged.learning_rate=log:1e-6:1e-2 \\
    --search 'merged.distillation_weight[large]=0.1,0.3,0.5' \\
    --trials 16 --out studies/merged
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tff_codist
from tff_codist import files
from tff_codist import tuning
from tff_codist.program import command
from tff_codist.tuning import designers


def main(argv):
  arguments, flags = _parser().parse_known_args(argv)
  if arguments.search or flags:
    study = _search(arguments, flags)
  else:
    study = tuning.Study.load(arguments.out)
  files.write(study.path / 'trials.csv', tuning.trials_csv(study).encode())
  print(tuning.trials_table(study))
  print(study.path / 'trials.csv')
  print(tuning.plot_trials(study))
  best = tuning.winner_command(study)
  if best:
    print(f'\nThe best, on the test clients:\n{best}')


def _search(arguments, flags):
  """Runs a study as far as it has not run yet, and returns it."""
  tff_codist.check_installation()

  import baselines  # noqa: F401  Registers its algorithms.
  import tasks  # noqa: F401  Registers the tasks and their presets.
  from tff_codist.tuning import plan

  study = plan.plan(
    flags,
    out=arguments.out,
    search=arguments.search,
    designer=arguments.designer,
    metric=arguments.metric,
    pools=arguments.pools,
    last=arguments.last,
    median_stopping=not arguments.nomedian_stopping,
    min_trials=arguments.min_trials,
  )
  tuning.run_trials(study, num_trials=arguments.trials, jobs=arguments.jobs)
  return study


def _parser():
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--out', required=True, metavar='DIR', help='folder of the study'
  )
  parser.add_argument(
    '--search',
    action='append',
    default=[],
    metavar='NAME=RANGE',
    help='a field and its values: log:LOW:HIGH, linear:LOW:HIGH, int:LOW:HIGH '
    'or v1,v2,...; NAME[POOL] is the value of one pool; give the flag again '
    'for more fields',
  )
  parser.add_argument(
    '--trials',
    type=int,
    default=16,
    metavar='N',
    help='trials in the end (default: 16)',
  )
  parser.add_argument(
    '--designer',
    default='quasi_random',
    metavar='NAME',
    help='who suggests: '
    f'{", ".join(designers.designers.names())} (default: quasi_random); vizier '
    'needs the packages of requirements-tune.lock',
  )
  parser.add_argument(
    '--metric',
    default='accuracy',
    metavar='NAME',
    help='what is optimised, the end of a column eval/<pool>/NAME of '
    'metrics.csv (default: accuracy)',
  )
  parser.add_argument(
    '--pools',
    nargs='+',
    metavar='POOL',
    help='pools over which it is averaged (default: all)',
  )
  parser.add_argument(
    '--last',
    type=int,
    default=3,
    metavar='N',
    help='evaluations in the mean at the end of a trial (default: 3)',
  )
  parser.add_argument(
    '--jobs',
    type=int,
    default=1,
    metavar='N',
    help='trials that train at a time (default: 1)',
  )
  parser.add_argument(
    '--nomedian_stopping',
    action='store_true',
    help='train every trial to its end; otherwise one is stopped whose best '
    'value is below the median of the others',
  )
  parser.add_argument(
    '--min_trials',
    type=int,
    default=5,
    metavar='N',
    help='completed trials before the first is stopped (default: 5)',
  )
  return parser


if __name__ == '__main__':
  command.run(main, needs_tff=False)
