#!/usr/bin/env python3
"""Trains pools of clients in a run folder, or resumes the run in it."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tff_codist import reports
from tff_codist.program import command


def main(argv):
  import baselines  # noqa: F401  Registers its algorithms.
  import tasks  # noqa: F401  Registers the tasks and their presets.
  from tff_codist.program import command_line
  from tff_codist.program import training

  arguments = command_line.parse(argv, description=__doc__)
  training.train(arguments.config, arguments.folder)
  run = reports.load_run(arguments.folder)
  print(reports.summary_table(run))
  for path in reports.plot_run(run):
    print(path)


if __name__ == '__main__':
  command.run(main)
