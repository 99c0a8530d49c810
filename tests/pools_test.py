"""Who is in which pool."""

import pytest

from tff_codist import errors
from tff_codist import pools as pools_lib
from tff_codist.testing import toys

_IDS = [f'client {i}' for i in range(100)]


def test_capacity_pools_are_nested_and_independent_of_order():
  large = pools_lib.by_capacity(_IDS, 0.2, seed=1)
  medium = pools_lib.by_capacity(_IDS, 0.5, seed=1)
  assert len(large) == 20
  assert set(large) < set(medium) < set(pools_lib.by_capacity(_IDS, 1, seed=1))
  assert pools_lib.by_capacity(_IDS[::-1], 0.2, seed=1) == large
  assert pools_lib.by_capacity(_IDS, 0.2, seed=2) != large
  assert len(pools_lib.by_capacity(_IDS, 1e-9, seed=1)) == 1


def test_clients_are_dealt_out_by_their_shares():
  shares = {'a': 0.5, 'b': 0.25, 'c': 0.1}
  dealt = pools_lib.deal(_IDS, shares, seed=1)
  assert {name: len(ids) for name, ids in dealt.items()} == {
    'a': 50,
    'b': 25,
    'c': 10,
  }
  assert len(set().union(*dealt.values())) == 85
  assert set().union(*dealt.values()) < set(_IDS)
  assert pools_lib.deal(_IDS[::-1], shares, seed=1) == dealt
  assert pools_lib.deal(_IDS, shares, seed=2) != dealt


def test_equal_shares_deal_one_client_to_each_pool():
  """Sums of 0.1 are not exact."""
  shares = dict.fromkeys('abcdefghij', 0.1)
  dealt = pools_lib.deal(_IDS[:10], shares, seed=1)
  assert [len(ids) for ids in dealt.values()] == [1] * 10
  assert len(set().union(*dealt.values())) == 10


def test_pools_from_lists(tmp_path):
  path = tmp_path / 'ids.txt'
  path.write_text('client 3\n\nclient 1\n')
  assert pools_lib.from_list(path, _IDS) == ('client 1', 'client 3')
  path.write_text('client 3\nnobody\n')
  with pytest.raises(errors.ConfigError, match=r"'nobody' .* line 2"):
    pools_lib.from_list(path, _IDS)
  path.write_text('client 3\nclient 3\n')
  with pytest.raises(errors.ConfigError, match=r'again in .* line 2'):
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


def test_capacity_table(tmp_path):
  path = tmp_path / 'capacities.csv'

  def read(*lines):
    path.write_text('\n'.join(lines) + '\n')
    return pools_lib.read_capacities(path, ['a', 'b,c'])

  header = 'client_id,capacity'
  assert read(header, 'a,4', '"b,c",0.5') == {'a': 4, 'b,c': 0.5}
  # As a spreadsheet writes it.
  assert read('\ufeff' + header, 'a,4', '', '"b,c",1') == {'a': 4, 'b,c': 1}
  for lines, message in (
    (['a,4'], 'no header'),
    ([header, 'a,4', 'a,4'], "'a' again in .* line 3"),
    ([header, 'a,4', 'd,4'], "unknown client id 'd' in .* line 3"),
    ([header, 'a,much'], "'a,much' in .* line 2"),
    ([header, 'a'], "'a' in .* line 2"),
    ([header, 'a,nan'], "'a,nan'"),
    ([header, 'a,4'], "no capacity of 1 clients, such as 'b,c'"),
    ([header, '"' + 'a' * 200000 + '",1'], 'field larger'),
    ([], 'no header'),
  ):
    with pytest.raises(errors.ConfigError, match=message):
      read(*lines)
  with pytest.raises(errors.DataNotFoundError):
    pools_lib.read_capacities(tmp_path / 'missing', _IDS)
