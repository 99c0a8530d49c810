"""Cohorts, seeds, domains and caching."""

import collections
import itertools

import numpy as np
import pytest

from tff_codist import clients
from tff_codist import errors
from tff_codist import randomness
from tff_codist.testing import toys

_IDS = [f'client {i}' for i in range(100)]


def _sample(**key):
  key = {'seed': 1, 'round_num': 1, 'pool': 'a', **key}
  return list(itertools.islice(clients.shuffle_clients(_IDS, **key), 10))


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
  loader = clients.CohortLoader(
    setting.task.train, setting.pools, seed=1, last_round=3
  )
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
  loader = clients.CohortLoader(data, setting.pools, seed=1, last_round=1)
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


def test_cohort_skips_clients_without_examples():
  setting = toys.make_setting()
  ids = setting.task.train.client_ids
  key = {'seed': 1, 'round_num': 3, 'pool': 'a'}
  # Client 00 has no example.
  cohort = clients.load_cohort(setting.task.train, ids, 11, **key)
  order = [c for c in clients.shuffle_clients(ids, **key) if c != '00']
  assert [len(c['y']) for c in cohort] == [int(c) for c in order]
  with pytest.raises(errors.DataError, match=r"11 clients .* in pool 'a'"):
    clients.load_cohort(setting.task.train, ids, 12, **key)


def test_cohort_has_the_examples_of_its_domains():
  def load(client_id):
    # Client 0 has domain 0 alone, client 1 has domains 0 and 1, and so on.
    domain = np.arange(int(client_id) + 1, dtype=np.int32)
    return clients.Examples(x=10 * domain, y=domain, domain=domain)

  data = clients.ClientData('0123', load)
  key = {'seed': 1, 'round_num': 1, 'pool': 'a'}
  cohort = clients.load_cohort(data, '0123', 3, **key, domains=[1])
  for client in cohort:
    assert list(client) == ['x', 'y', 'seed']
    assert client['y'].tolist() == [1]
  with pytest.raises(errors.DataError, match='3 clients'):
    clients.load_cohort(data, '0123', 4, **key, domains=[1])
  pool = (
    toys.make_setting()
    .pools[0]
    ._replace(client_ids=tuple('0123'), cohort_size=2, domains=('b', 'd'))
  )
  loader = clients.CohortLoader(
    data, [pool], seed=1, last_round=1, domains='abcd'
  )
  for client in loader.load(1)['a']:
    assert set(client['y']) <= {1, 3}
  loader.close()


def _draw(sampling, round_num, ids=_IDS, cohort_size=20):
  draw = {'poisson': clients.poisson_clients, 'epochs': clients.epoch_clients}
  return list(
    draw[sampling](ids, cohort_size, seed=1, round_num=round_num, pool='a')
  )


def test_poisson_cohorts_have_binomial_sizes_and_each_client_joins_alike():
  ids = [str(i) for i in range(100)]
  cohorts = [_draw('poisson', r, ids) for r in range(1, 2001)]
  sizes = np.array([len(cohort) for cohort in cohorts])
  # Mean 20 and variance 16, within four standard errors.
  assert abs(sizes.mean() - 20) < 4 * np.sqrt(16 / 2000)
  assert abs(sizes.var() - 16) < 4 * 16 * np.sqrt(2 / 2000)
  joined = collections.Counter(itertools.chain.from_iterable(cohorts))
  assert all(abs(joined[i] - 400) < 5 * np.sqrt(2000 * 0.16) for i in ids)
  # Two clients join independently of each other.
  both = sum('3' in cohort and '4' in cohort for cohort in cohorts)
  assert abs(both - 2000 * 0.04) < 5 * np.sqrt(2000 * 0.04)
  assert all(len(set(cohort)) == len(cohort) for cohort in cohorts)


def test_no_client_trains_twice_in_an_epoch():
  ids = [str(i) for i in range(103)]
  rounds = clients.rounds_per_epoch(len(ids), 20)
  assert rounds == 5
  epochs = [
    [c for r in range(rounds) for c in _draw('epochs', e * rounds + r + 1, ids)]
    for e in range(4)
  ]
  for epoch in epochs:
    assert len(epoch) == len(set(epoch)) == 100
  # Another epoch leaves other clients out, in another order.
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize('sampling', ['poisson', 'epochs'])
def test_cohorts_are_a_function_of_seed_round_and_pool(sampling):
  assert _draw(sampling, 3) == _draw(sampling, 3)
  assert _draw(sampling, 3) != _draw(sampling, 4)
