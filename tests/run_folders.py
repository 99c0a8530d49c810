"""Run folders written by hand."""

import csv
import itertools
import json

import pytest

from tff_codist.reports import runs


def _counts(clients):
  """Returns clients as in pools.json from label counts, or as they are."""
  return {
    client: {'examples': sum(counts), 'labels': counts}
    if isinstance(counts, list)
    else counts
    for client, counts in clients.items()
  }


@pytest.fixture
def write_run(tmp_path):
  """Returns a function that writes a run folder and returns its path."""

  def write(
    name='run',
    *,
    accuracies=None,
    rounds=(0, 10, 20),
    algorithm='fed_avg',
    seed=1,
    task='digits',
    metrics=None,
    config=None,
    clients=None,
    num_classes=2,
    domains=(),
    done=True,
  ):
    """Writes one run.

    Args:
      name: Name of the folder.
      accuracies: By pool, the accuracy in each of `rounds`.
      rounds: The rounds of the evaluations.
      algorithm: Name of the algorithm.
      seed: The seed.
      task: Name of the task.
      metrics: More columns, by name the values by round.
      config: More fields of config.json.
      clients: By pool and client, what was counted, or the label counts alone;
        None is one client each.
      num_classes: Number of labels.
      domains: Names of the task's domains.
      done: Whether the run has finished.
    """
    accuracies = accuracies or {'small': [0.5, 0.6, 0.7]}
    folder = tmp_path / name
    folder.mkdir()
    columns = {
      f'eval/{pool}/accuracy': dict(zip(rounds, values))
      for pool, values in accuracies.items()
    }
    columns.update(metrics or {})
    all_rounds = sorted({r for values in columns.values() for r in values})
    with open(folder / 'metrics.csv', 'w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(['round', *columns])
      for round_num in all_rounds:
        cells = [values.get(round_num, '') for values in columns.values()]
        writer.writerow([round_num, *cells])
    tree = {
      'task': {'name': task},
      'algorithm': {'name': algorithm},
      'pools': {'names': list(accuracies)},
      'seed': seed,
      **(config or {}),
    }
    (folder / 'config.json').write_text(json.dumps(tree, indent=2))
    of_pools = {
      pool: _counts((clients or {}).get(pool, {'a': [1] * num_classes}))
      for pool in accuracies
    }
    overlaps = {
      f'{a} & {b}': len(of_pools[a].keys() & of_pools[b].keys())
      for a, b in itertools.combinations(of_pools, 2)
    }
    pools = {
      'num_classes': num_classes,
      'domains': list(domains),
      'num_clients': len(set().union(*of_pools.values())),
      'counted_clients': len(set().union(*of_pools.values())),
      'pools': {
        pool: {
          'model': f'cnn_{pool}',
          'num_parameters': 1234567,
          'cohort_size': 1,
          'domains': [],
          'num_clients': len(of_pool),
          'clients': of_pool,
        }
        for pool, of_pool in of_pools.items()
      },
      'overlaps': overlaps,
      'disjoint': not any(overlaps.values()),
      'distillation_clients': 3,
      'distillation_examples': 1000,
      'distillation_origin': {'clients': 800, 'noise': 200},
      'validation_clients': 0,
      'fingerprint': {},
    }
    (folder / 'pools.json').write_text(json.dumps(pools))
    if done:
      (folder / 'DONE').touch()
    return folder

  return write


@pytest.fixture
def load(write_run):
  """Returns a function that writes a run folder and loads it."""
  return lambda *args, **kwargs: runs.load_run(write_run(*args, **kwargs))


@pytest.fixture
def three_seeds(load):
  """Accuracies of small: fed_avg 40, 42, 44 %; merged_codist 43, 44, 48 %."""
  final = {'fed_avg': (0.40, 0.42, 0.44), 'merged_codist': (0.43, 0.44, 0.48)}
  return [
    load(
      f'{algorithm}_{seed}',
      algorithm=algorithm,
      seed=seed,
      # The mean of rounds 10 and 20 is the intended value.
      accuracies={'small': [0.1, value - 0.01, value + 0.01]},
    )
    for algorithm, values in final.items()
    for seed, value in enumerate(values, start=1)
  ]


@pytest.fixture
def load_private(load):
  """Returns a function that loads a run of small and large with privacy."""

  def write_and_load(
    name='private', *, noise=(1.0,), epsilons=(2, 4, 5), privacy=None, **kwargs
  ):
    """Writes and loads one run.

    Args:
      name: Name of the folder.
      noise: The noise multipliers.
      epsilons: Of small, large and the worst client in round 20; half of it in
        round 10.
      privacy: More fields of `privacy`.
      **kwargs: See `write_run`.
    """
    fields = {
      'mechanism': ['gaussian'],
      'noise_multiplier': list(noise),
      'clip': [0.1],
      'clipped_count_stddev': None,
      'delta': 1e-5,
      'max_epsilon': None,
      'reproducible_noise': False,
      **(privacy or {}),
    }
    metrics = {
      f'privacy/{who}/epsilon': {10: epsilon / 2, 20: epsilon}
      for who, epsilon in zip(('small', 'large', 'worst_client'), epsilons)
    }
    return load(
      name,
      **{
        'accuracies': {'small': [0.1, 0.6, 0.7], 'large': [0.1, 0.4, 0.5]},
        'metrics': metrics,
        'config': {'privacy': fields},
        **kwargs,
      },
    )

  return write_and_load
