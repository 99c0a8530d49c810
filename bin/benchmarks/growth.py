"""Workload `growth`: what clients and rounds cost on the in_process runtime.

Memory must grow with the examples of a cohort only, not with what was computed
on them, and not with the number of rounds. Clients train the dense network.
"""

from typing import Any

from benchmarks import averaging
from benchmarks import processes

_COHORT_SIZES = (10, 50, 200)
_QUICK_COHORT_SIZES = (2, 4)
# Rounds of the smallest cohort after which memory is read: when everything has
# been compiled, and much later.
_READ_AFTER = (20, 200)
_QUICK_READ_AFTER = (2, 6)


def measure(rounds: processes.Rounds, *, quick: bool) -> dict[str, Any]:
  """Runs rounds of cohorts of several sizes, most of them of the smallest.

  Args:
    rounds: Rounds of each cohort.
    quick: Whether cohorts are small and rounds few.

  Returns:
    What is printed and written to the JSON file.
  """
  sizes = _QUICK_COHORT_SIZES if quick else _COHORT_SIZES
  early, late = _QUICK_READ_AFTER if quick else _READ_AFTER
  dense = averaging.WORKLOADS['dense']
  num_rounds = sum(rounds)
  taken = processes.take_turns(
    {
      f'{size} clients': (
        averaging.run_rounds,
        'in_process',
        dense._replace(num_clients=size),
        max(num_rounds, late) if size == sizes[0] else num_rounds,
      )
      for size in sizes
    }
  )
  cohorts = [
    {
      'num_clients': size,
      'seconds_per_client': min(
        one.seconds for one in results[rounds.warmup : num_rounds]
      )
      / size,
      'peak_rss_bytes': results[num_rounds - 1].peak_rss_bytes['process'],
    }
    for size, results in zip(sizes, taken.values())
  ]
  smallest, *_, largest = cohorts
  rss_bytes = [one.rss_bytes for one in next(iter(taken.values()))]
  early_bytes, late_bytes = rss_bytes[early - 1], rss_bytes[late - 1]
  return {
    'examples_per_client': dense.examples_per_client,
    'cohorts': cohorts,
    'bytes_per_client': (largest['peak_rss_bytes'] - smallest['peak_rss_bytes'])
    / (sizes[-1] - sizes[0]),
    'rounds': {
      'early': early,
      'late': late,
      'early_rss_bytes': early_bytes,
      'late_rss_bytes': late_bytes,
      'bytes_per_round': (late_bytes - early_bytes) / (late - early),
    },
  }
