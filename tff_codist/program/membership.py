"""Who is in which pool and with which data: what `pools.json` holds.

Ids are hashed, all of them; examples are counted on a sample of the clients, so
that a data set with hundreds of thousands takes seconds.
"""

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np

from tff_codist import clients
from tff_codist import experiment as experiment_lib
from tff_codist import pools as pools_lib
from tff_codist import task as task_lib
from tff_codist.privacy import accounting

# Beyond so many labels, as with a vocabulary, they are not counted.
_MOST_LABELS = 200


def fingerprint(experiment: experiment_lib.Experiment) -> dict[str, object]:
  """Returns what must be equal to resume a run; loads no client.

  Args:
    experiment: The experiment.

  Returns:
    sha256 sums, plain JSON: of the ids in each pool under `pools`, of
    `distillation_clients` and `validation_clients`, and of the examples in U
    under `distillation_examples`, `None` without U.
  """
  unlabelled = experiment.setting.unlabelled
  return {
    'pools': {pool.name: _sha256(pool.client_ids) for pool in experiment.pools},
    'distillation_clients': _sha256(experiment.distillation_clients),
    'validation_clients': _sha256(experiment.validation_clients),
    'distillation_examples': (
      None
      if unlabelled is None
      else hashlib.sha256(np.ascontiguousarray(unlabelled.x)).hexdigest()
    ),
  }


def describe(
  experiment: experiment_lib.Experiment, *, max_clients: int = 500
) -> dict[str, object]:
  """Returns who is in which pool, with the data of a sample of the clients.

  A pool's sample are the first of its clients in an order that the seed gives
  to all of them.

  Args:
    experiment: The experiment.
    max_clients: Clients of each pool whose examples are counted, at least 1.

  Returns:
    Plain JSON:
      num_classes: Number of labels.
      domains: Names of the task's domains.
      num_clients: Clients in at least one pool.
      counted_clients: Those whose examples are counted.
      pools: By name, `model`, `num_parameters`, `cohort_size`, `domains` (that
        the pool trains on; empty for all), `num_clients` and `clients`: by id
        the number of `examples` in the pool's domains and how many of them are
        in each of the task's `domains`, if it has any; the number of `labels`
        of each class, without padding, if there are at most 200 classes.
      overlaps: For each two pools, 'a & b', the number of their common clients.
      disjoint: Whether no client is in two pools.
      groups: The clients in exactly the same pools: the names of the `pools`
        and the number of `clients`.
      distillation_clients, validation_clients: Clients that the server has.
      distillation_examples: Size of U, 0 without.
      distillation_origin: {source: its examples in U}.
      fingerprint: See `fingerprint`.
  """
  task, unlabelled = experiment.task, experiment.setting.unlabelled
  members = {pool.name: set(pool.client_ids) for pool in experiment.pools}
  overlaps = {
    f'{a} & {b}': len(members[a] & members[b])
    for a, b in itertools.combinations(members, 2)
  }
  samples = {
    pool.name: pools_lib.ranked(
      pool.client_ids, seed=experiment.config.seed, purpose='membership'
    )[:max_clients]
    for pool in experiment.pools
  }
  return {
    'num_classes': task.num_classes,
    'domains': list(task.domains),
    'num_clients': len(set().union(*members.values())),
    'counted_clients': len(set().union(*samples.values())),
    'pools': {
      pool.name: {
        'model': pool.model.name,
        'num_parameters': pool.model.num_parameters,
        'cohort_size': pool.cohort_size,
        'domains': list(pool.domains),
        'num_clients': len(pool.client_ids),
        'clients': {
          client_id: _counts(experiment, pool, client_id)
          for client_id in sorted(samples[pool.name])
        },
      }
      for pool in experiment.pools
    },
    'overlaps': overlaps,
    'disjoint': not any(overlaps.values()),
    'groups': [
      {'pools': list(names), 'clients': count}
      for names, count in accounting.groups_of(members)
    ],
    'distillation_clients': len(experiment.distillation_clients),
    'distillation_examples': 0 if unlabelled is None else len(unlabelled.x),
    'distillation_origin': {} if unlabelled is None else unlabelled.origin,
    'validation_clients': len(experiment.validation_clients),
    'fingerprint': fingerprint(experiment),
  }


def _sha256(client_ids: Iterable[str]) -> str:
  return hashlib.sha256('\n'.join(sorted(client_ids)).encode()).hexdigest()


def _counts(
  experiment: experiment_lib.Experiment,
  pool: pools_lib.Pool,
  client_id: str,
) -> dict[str, object]:
  """Counts the examples that a pool sees of one client."""
  task: task_lib.Task = experiment.task
  examples = experiment.train.load(client_id)
  rows = clients.domain_rows(examples, task.domain_indices(pool.domains))
  labels = examples['y'][rows]
  counts: dict[str, object] = {'examples': len(labels)}
  if task.domains:
    counts['domains'] = _histogram(examples['domain'][rows], len(task.domains))
  if task.num_classes <= _MOST_LABELS:
    labels = labels[~np.isin(labels, task.padding)]
    counts['labels'] = _histogram(labels, task.num_classes)
  return counts


def _histogram(values: np.ndarray, size: int) -> list[int]:
  return np.bincount(values.ravel(), minlength=size).tolist()
