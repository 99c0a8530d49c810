"""Median stopping: ends trials that do worse than half of the others.

Golovin et al., Google Vizier: A Service for Black-Box Optimization, KDD 2017,
section 3.2.
"""

from collections.abc import Iterable
from typing import Optional

import numpy as np

from tff_codist.reports import runs


def round_to_stop(
  trial: runs.Series, others: Iterable[runs.Series]
) -> Optional[int]:
  """Returns the first round at which the rule stops a trial.

  In round s it does if the best value of the trial up to s is below the median,
  over the other trials that got to s, of their mean up to s.

  Args:
    trial: Rounds (increasing) and values, of which higher ones are better.
    others: The same of other trials.

  Returns:
    The round, one of the trial's; `None` if it goes on.
  """
  others = list(others)
  for s, best in zip(trial[0], np.maximum.accumulate(trial[1])):
    running_means = [
      values[rounds <= s].mean()
      for rounds, values in others
      if rounds[0] <= s <= rounds[-1]
    ]
    if running_means and best < np.median(running_means):
      return int(s)
  return None
