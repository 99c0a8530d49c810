#!/usr/bin/env python3
"""Evaluates the models of a run's newest checkpoint, as the run itself does.

On the test clients, or on the validation clients if the run was trained with
--program.evaluate_on validation; the first line says on which.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist.program import command


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument('--run_dir', required=True, help='folder of the run')
  arguments = parser.parse_args(argv)

  import baselines  # noqa: F401  Registers its algorithms.
  import tasks  # noqa: F401  Registers the tasks.
  from tff_codist.program import run_folder
  from tff_codist.program import training

  round_num, metrics = training.evaluate(arguments.run_dir)
  config = run_folder.RunFolder(arguments.run_dir).read_config()
  print(f'round {round_num}, {config.program.evaluate_on} clients')
  for name, value in metrics.items():
    print(f'{name:<32} {value:.4f}')


if __name__ == '__main__':
  command.run(main)
