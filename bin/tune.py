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
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tff_codist
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import files
from tff_codist import tuning
from tff_codist.program import command
from tff_codist.tuning import designers


def main(argv):
  parser = _parser()
  arguments, flags = parser.parse_known_args(argv)
  options = vars(arguments)
  _check_known(flags, parser)
  if 'search' in options:
    study = _search(flags, **options)
  elif flags or set(options) > {'out'}:
    raise errors.ConfigError(
      f'options besides --out, but no --search, in {" ".join(argv)!r}',
      expected='--out alone, which shows a study, or a whole command',
      fix='leave the others out, or repeat the whole command with them',
    )
  else:
    study = tuning.Study.load(arguments.out)
  files.write(study.path / 'trials.csv', tuning.trials_csv(study).encode())
  print(tuning.trials_table(study))
  print(study.path / 'trials.csv')
  print(tuning.plot_trials(study))
  best = tuning.winner_command(study)
  if best:
    print(f'\nThe best, on the test clients:\n{best}')


def _check_known(flags, parser):
  """Raises `UnknownNameError` for a flag of neither bin/train.py nor this."""
  known = {
    *('--preset', '--quick'),
    *re.findall(r'--\w+', parser.format_usage()),
    *config_lib.fields_by_flag(),
  }
  for flag in flags:
    name = flag.partition('=')[0]
    if name.startswith('--') and name not in known:
      raise errors.UnknownNameError('flag', name, known)


def _search(flags, *, trials=16, jobs=1, **options):
  """Runs a study as far as it has not run yet, and returns it."""
  errors.check_above_0(trials=trials, jobs=jobs)
  if 'min_trials' in options and not options.get('median_stopping', True):
    raise errors.ConfigError(
      '--min_trials with --nomedian_stopping',
      expected='one of them: without the rule, no trial is stopped',
      fix='leave one out',
    )
  tff_codist.check_installation()

  import baselines  # noqa: F401  Registers its algorithms.
  import tasks  # noqa: F401  Registers the tasks and their presets.
  from tff_codist.tuning import plan

  study = plan.plan(flags, **options)
  tuning.run_trials(study, num_trials=trials, jobs=jobs)
  return study


def _parser():
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    # What is not given is not there; the defaults are those of the study.
    argument_default=argparse.SUPPRESS,
  )
  parser.add_argument(
    '--out', required=True, metavar='DIR', help='folder of the study'
  )
  parser.add_argument(
    '--search',
    action='append',
    metavar='NAME=RANGE',
    help='a field and its values: log:LOW:HIGH, linear:LOW:HIGH, int:LOW:HIGH '
    'or v1,v2,...; NAME[POOL] is the value of one pool; give the flag again '
    'for more fields',
  )
  parser.add_argument(
    '--trials',
    type=int,
    metavar='N',
    help='trials in the end (default: 16)',
  )
  parser.add_argument(
    '--designer',
    metavar='NAME',
    help='who suggests: '
    f'{", ".join(designers.designers.names())} (default: quasi_random); vizier '
    'needs the packages of requirements-tune.lock',
  )
  parser.add_argument(
    '--metric',
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
    metavar='N',
    help='evaluations in the mean at the end of a trial (default: 3)',
  )
  parser.add_argument(
    '--jobs',
    type=int,
    metavar='N',
    help='trials that train at a time (default: 1)',
  )
  parser.add_argument(
    '--nomedian_stopping',
    action='store_false',
    dest='median_stopping',
    help='train every trial to its end; otherwise one is stopped whose best '
    'value is below the median of the others',
  )
  parser.add_argument(
    '--min_trials',
    type=int,
    metavar='N',
    help='completed trials before the first is stopped (default: 5)',
  )
  return parser


if __name__ == '__main__':
  command.run(main, needs_tff=False)
