"""The metric of the evaluation that a report is about.

A metric is named by the end of its columns: `accuracy` is
`eval/<pool>/accuracy` of every pool, `questions/accuracy` the same on the
domain `questions`. What it is, and so how it is written and drawn, is in the
last part of its name: `accuracy_p10` is an accuracy.
"""

DEFAULT = 'accuracy'
# Everything else is better if it is higher.
_LOWER_IS_BETTER = ('loss', 'perplexity')


def kind(metric: str) -> str:
  """Returns what a metric is, e.g. `accuracy` for `questions/accuracy_p10`."""
  return metric.rpartition('/')[2].partition('_')[0]


def is_fraction(metric: str) -> bool:
  """Returns whether a metric is in [0, 1] and written in percent."""
  return kind(metric) == 'accuracy'


def is_better_if_lower(metric: str) -> bool:
  """Returns whether models with a lower value are better."""
  return kind(metric) in _LOWER_IS_BETTER


def has_chance(metric: str) -> bool:
  """Returns whether guessing gets one in the number of classes."""
  return metric.rpartition('/')[2] == 'accuracy'


def title(metric: str) -> str:
  """Returns the name with which a title or caption begins."""
  return metric.capitalize() if metric.isalpha() else metric


def file_stem(metric: str) -> str:
  """Returns the name for a file."""
  return metric.replace('/', '_')


def unit(metric: str) -> str:
  """Returns `percent`, or nothing for a number without a unit."""
  return 'percent' if is_fraction(metric) else ''


def number(metric: str, value: float, sign: str = '') -> str:
  """Returns a value or a difference in the metric's unit, without the unit."""
  if is_fraction(metric):
    return f'{100 * value:{sign}.2f}'
  return f'{value:{sign}.4g}'


def text(metric: str, value: float) -> str:
  """Returns a value with its unit, `62.50%` or `1.25`."""
  return number(metric, value) + ('%' if is_fraction(metric) else '')
