import warnings

import numpy as np
import pytest
from matplotlib import image

from tff_codist.reports import pool_plots
from tff_codist.reports import runs


@pytest.fixture(autouse=True)
def no_warnings():
  """Fails on matplotlib's warnings: a lost glyph, a layout that broke."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    yield


def _draw(write_run, out_dir, clients, **kwargs):
  """Draws pools and returns the names of the pictures, after a check."""
  run = runs.load_run(
    write_run(
      accuracies={pool: [0.5] for pool in clients},
      rounds=[0],
      clients=clients,
      **kwargs,
    )
  )
  paths = pool_plots.plot_membership(run.pools, out_dir, task='toy', seed=1)
  for path in paths:
    assert 5_000 < path.stat().st_size < 150_000
    assert image.imread(path).std() > 0.05
  return [path.name for path in paths]


def test_many_clients_and_labels_make_small_files(write_run, tmp_path):
  rng = np.random.default_rng(0)
  counts = rng.multinomial(50, rng.dirichlet(np.full(100, 0.1), size=800))
  clients = {f'client_{i}': row.tolist() for i, row in enumerate(counts)}
  few = dict(list(clients.items())[:100])
  names = _draw(
    write_run,
    tmp_path,
    {'small': clients, 'large': few, 'huge': few},
    num_classes=100,
  )
  assert names == ['pools.png', 'sizes.png']


def test_clients_without_labels_are_drawn_by_domain(write_run, tmp_path):
  clients = {
    'answers': {'a': {'examples': 3, 'domains': [3, 0]}},
    'both': {
      'a': {'examples': 7, 'domains': [3, 4]},
      'b': {'examples': 0, 'domains': [0, 0]},
    },
  }
  names = _draw(
    write_run,
    tmp_path,
    clients,
    num_classes=10_000,
    domains=('answers', 'questions'),
  )
  assert names == ['pools.png', 'sizes.png']


def test_clients_without_labels_and_domains_have_sizes_only(
  write_run, tmp_path
):
  clients = {'small': {'a': {'examples': 3}, 'b': {'examples': 50}}}
  names = _draw(write_run, tmp_path, clients, num_classes=10_000)
  assert names == ['sizes.png']


def test_pools_without_an_example_are_drawn(write_run, tmp_path):
  names = _draw(write_run, tmp_path, {'small': {'a': [0, 0]}})
  assert names == ['pools.png', 'sizes.png']
