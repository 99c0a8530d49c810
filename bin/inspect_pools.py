#!/usr/bin/env python3
"""Shows the pools of a configuration before anything is trained.

Who trains which model on how much data, how different the clients are, which
clients the pools have in common, and what the server distils on. Takes the
flags of bin/train.py; pictures go into --out. Of each pool, at most 500 clients
are counted.

  bin/inspect_pools.py --preset cifar100 --out pools
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist import reports
from tff_codist.program import command


def main(argv):
  import baselines  # noqa: F401  Registers its algorithms.
  import tasks  # noqa: F401  Registers the tasks and their presets.
  from tff_codist import experiment as experiment_lib
  from tff_codist.program import command_line
  from tff_codist.program import membership

  config, out = command_line.parse(argv, description=__doc__, folder_flag='out')
  pools = membership.describe(experiment_lib.build_experiment(config))
  about = {'task': config.task.name, 'seed': config.seed}
  print(reports.membership_table(pools, **about))
  for path in reports.plot_membership(pools, out, **about):
    print(path)


if __name__ == '__main__':
  command.run(main)
