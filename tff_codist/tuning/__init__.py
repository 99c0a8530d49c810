"""Hyperparameter search: many short trainings, judged on validation clients.

A study is a folder. What has been suggested is in its `study.json`, what came
of it in the run folders of its trials; everything else follows from these two,
so that a study that was killed goes on. Reading a study needs no TensorFlow.
"""

from tff_codist.tuning.results import plot_trials
from tff_codist.tuning.results import trials_csv
from tff_codist.tuning.results import trials_table
from tff_codist.tuning.results import winner_command
from tff_codist.tuning.search import run_trials
from tff_codist.tuning.space import Parameter
from tff_codist.tuning.space import Space
from tff_codist.tuning.space import parse_space
from tff_codist.tuning.study import Settings
from tff_codist.tuning.study import Study
from tff_codist.tuning.study import Trial

__all__ = [
  'Parameter',
  'Settings',
  'Space',
  'Study',
  'Trial',
  'parse_space',
  'plot_trials',
  'run_trials',
  'trials_csv',
  'trials_table',
  'winner_command',
]
