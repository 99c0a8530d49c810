"""Cohorts, seeds, caching and the order of distillation data."""

import numpy as np
import pytest

from tff_codist import clients
from tff_codist import errors
from tff_codist import pools as pools_lib
from tff_codist import randomness
from tff_codist.testing import toys

_IDS = [f'client {i}' for i in range(100)]


def _sample(**key):
  key = {'seed': 1, 'round_num': 1, 'pool': 'a', **key}
  return clients.sample_cohort(_IDS, 10, **key)


def test_cohort_is_a_function_of_seed_round_and_pool():
  assert _sample() == _sample()
  assert len(set(_sample())) == 10
  for other in ({'seed': 2}, {'round_num': 2}, {'pool': 'b'}):
    assert _sample(**other) != _sample()


def test_cohorts_are_uniform():
  # 2,000 rounds of 10 of 100: each client 200 times, standard deviation 13.4.
  # Beyond 6 standard deviations: less than once in 10^6 runs.
  counts = dict.fromkeys(_IDS, 0)
  for round_num in range(2000):
    for client_id in _sample(round_num=round_num):
      counts[client_id] += 1
  assert max(abs(count - 200) for count in counts.values()) < 6 * 13.4


def test_derived_seeds_differ_by_every_part_of_the_key():
  keys = [(1,), (2,), (1, 'a'), (1, 'b'), (1, 'a', 1), (1, 'a', '1'), (1, 1)]
  seeds = {tuple(randomness.derive_seed(*key)) for key in keys}
  assert len(seeds) == len(keys)
  # Fixed for ever: another value would change every run.
  assert randomness.derive_seed(1, 'a').tolist() == [1957180387, -1936161017]
  assert randomness.derive_seed(1, 'a').dtype == np.int32


def test_loader_gives_the_same_cohorts_in_any_order():
  setting = toys.make_setting()
  loader = clients.CohortLoader(setting.task.train, setting.pools, seed=1)
  forward = [loader.load(r) for r in (1, 2, 3)]
  again = loader.load(2)
  loader.close()
  toys.assert_same(forward[1], again)
  assert {name: len(c) for name, c in again.items()} == {'a': 5, 'b': 3}
  seeds = [
    tuple(c['seed']) for cohorts in forward for c in cohorts['a'] + cohorts['b']
  ]
  assert len(set(seeds)) == len(seeds)


def test_loader_passes_errors_on():
  def fail(client_id):
    raise errors.DataError('x', expected='y', fix='z')

  setting = toys.make_setting()
  data = clients.ClientData(setting.task.train.client_ids, fail)
  loader = clients.CohortLoader(data, setting.pools, seed=1)
  with pytest.raises(errors.DataError):
    loader.load(1)
  loader.close()


def test_cache_keeps_recent_clients_and_is_bounded():
  loads = []

  def load(client_id):
    loads.append(client_id)
    return clients.Examples(x=np.zeros(40 * 2**20, np.uint8), y=np.zeros(1))

  cached = clients.cached(load)
  cached('a')
  cached('a')
  assert loads == ['a']
  for i in range(7):
    cached(i)
  cached('a')
  assert loads.count('a') == 2


def test_unknown_client_and_subset():
  data = clients.ClientData(['b', 'a'], lambda c: toys.make_examples(1))
  assert data.client_ids == ('a', 'b')
  part = data.subset(['b'])
  assert part.client_ids == ('b',)
  with pytest.raises(errors.DataError, match="'a'"):
    part.load('a')


def test_distillation_data_is_passed_over_in_shuffled_epochs():
  data = clients.UnlabelledData(np.arange(10), seed=3)
  whole = data.batches(0, 6, 5).ravel()
  for epoch in np.split(whole, 3):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
  assert not np.array_equal(whole[:10], whole[10:20])
  # The place in the stream depends on the number of the step alone.
  np.testing.assert_array_equal(data.batches(4, 2, 5).ravel(), whole[20:])
  np.testing.assert_array_equal(data.batches(2, 1, 5)[0], whole[10:15])
  other = clients.UnlabelledData(np.arange(10), seed=4)
  assert not np.array_equal(other.batches(0, 6, 5).ravel(), whole)


def test_batch_larger_than_the_distillation_data_repeats_it():
  data = clients.UnlabelledData(np.arange(3), seed=1)
  (batch,) = data.batches(0, 1, 7)
  assert sorted(np.bincount(batch)) == [2, 2, 3]


def test_distillation_data_must_not_be_empty():
  with pytest.raises(errors.DataError, match='without an example'):
    clients.UnlabelledData(np.zeros((0, 4)), seed=1)


def test_capacity_pools_are_nested_and_independent_of_order():
  large = pools_lib.by_capacity(_IDS, 0.2, seed=1)
  medium = pools_lib.by_capacity(_IDS, 0.5, seed=1)
  assert len(large) == 20
  assert set(large) < set(medium) < set(pools_lib.by_capacity(_IDS, 1, seed=1))
  assert pools_lib.by_capacity(_IDS[::-1], 0.2, seed=1) == large
  assert pools_lib.by_capacity(_IDS, 0.2, seed=2) != large
  assert len(pools_lib.by_capacity(_IDS, 1e-9, seed=1)) == 1


def test_pools_from_lists(tmp_path):
  path = tmp_path / 'ids.txt'
  path.write_text('client 3\n\nclient 1\n')
  assert pools_lib.from_list(path, _IDS) == ('client 1', 'client 3')
  path.write_text('client 3\nnobody\n')
  with pytest.raises(errors.ConfigError, match="'nobody'"):
    pools_lib.from_list(path, _IDS)
  path.write_text('\n')
  with pytest.raises(errors.ConfigError, match='no client id'):
    pools_lib.from_list(path, _IDS)
  with pytest.raises(errors.DataNotFoundError):
    pools_lib.from_list(tmp_path / 'missing', _IDS)


def test_cohort_larger_than_its_pool_and_other_classes_are_refused():
  (pool, _) = toys.make_setting().pools
  with pytest.raises(errors.ConfigError, match='cohort of 13'):
    pools_lib.check_pools([pool._replace(cohort_size=13)], num_classes=3)
  with pytest.raises(errors.ConfigError, match='with 3 classes'):
    pools_lib.check_pools([pool], num_classes=4)
  pools_lib.check_pools([pool], num_classes=3)
