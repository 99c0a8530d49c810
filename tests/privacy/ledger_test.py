"""The ledger, its metrics, its budget, and the statement."""

import pytest

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist.privacy import accounting
from tff_codist.privacy import ledger as ledger_lib
from tff_codist.testing import toys

_IDS = tuple(f'{i:03}' for i in range(500))


def _pools(sampling='poisson'):
  return [
    pools_lib.Pool(
      name=name,
      model=models.Model(name, toys.MODELS[name]),
      client_ids=_IDS[:count],
      cohort_size=10,
      sampling=sampling,
    )
    for name, count in (('small', 500), ('large', 100))
  ]


def _config(**privacy):
  fields = {'mechanism': ('gaussian',), 'delta': 1e-4, **privacy}
  return config_lib.change(
    config_lib.Config(), privacy=fields, program={'rounds': 1000}
  )


def test_epsilon_of_each_pool_and_of_the_worst_client():
  ledger = ledger_lib.Ledger(_pools(), _config())
  metrics = ledger.metrics({'small': 1000, 'large': 1000})
  # From dp_accounting: PLD of the two compositions, alone and together.
  assert metrics['privacy/small/epsilon'] == pytest.approx(3.31, abs=0.01)
  assert metrics['privacy/large/epsilon'] == pytest.approx(22.63, abs=0.01)
  assert metrics['privacy/worst_client/epsilon'] == pytest.approx(
    23.24, abs=0.01
  )


def test_only_what_was_released_counts():
  ledger = ledger_lib.Ledger(_pools(), _config())
  nothing = ledger.metrics({'small': 0, 'large': 0})
  assert set(nothing.values()) == {0.0}
  early = ledger.metrics({'small': 10, 'large': 10})
  late = ledger.metrics({'small': 20, 'large': 20})
  assert all(0 < early[name] < late[name] for name in early)


def test_settings_of_distillation_cost_nothing():
  counts = {'small': 100, 'large': 100}
  plain = ledger_lib.Ledger(_pools(), _config()).metrics(counts)
  other = config_lib.change(
    _config(), merged={'distillation_weight': (0.9, 0.1), 'steps': 50}
  )
  assert ledger_lib.Ledger(_pools(), other).metrics(counts) == plain


def test_training_ends_before_the_budget_is_exceeded():
  ledger = ledger_lib.Ledger(_pools(), _config(max_epsilon=8.0))
  assert 1 < ledger.final_round < 1000

  def worst(rounds):
    return ledger.loss({'small': rounds, 'large': rounds}).worst.epsilon

  assert worst(ledger.final_round) <= 8.0 < worst(ledger.final_round + 1)


def test_budget_that_is_never_reached_changes_nothing():
  assert ledger_lib.Ledger(_pools(), _config()).final_round == 1000
  ledger = ledger_lib.Ledger(_pools(), _config(max_epsilon=50.0))
  assert ledger.final_round == 1000


def test_budget_below_the_first_round_is_refused():
  with pytest.raises(errors.ConfigError, match='at least one round'):
    ledger_lib.Ledger(_pools(), _config(max_epsilon=1e-4))
  bare = _config(mechanism=('gaussian', 'none'), max_epsilon=8.0)
  with pytest.raises(errors.ConfigError, match='give every pool a'):
    ledger_lib.Ledger(_pools(), bare)


def test_pool_without_a_mechanism_leaves_its_clients_without_protection():
  config = _config(mechanism=('gaussian', 'none'))
  metrics = ledger_lib.Ledger(_pools(), config).metrics(
    {'small': 5, 'large': 5}
  )
  assert metrics['privacy/worst_client/epsilon'] == float('inf')
  assert metrics['privacy/small/epsilon'] < 10


def test_no_mechanism_needs_no_ledger():
  config = _config(mechanism=('none',))
  assert ledger_lib.open_ledger(_pools(), config) is None


def test_statement_says_what_the_guarantee_rests_on():
  ledger = ledger_lib.Ledger(_pools(), _config())
  counts = {'small': 1000, 'large': 1000}
  text = ledger.statement(counts)
  loss = ledger.loss(counts)
  for part in (
    'one client with all of its examples',
    f'epsilon = {loss.worst.epsilon:.4g} at delta = 0.0001',
    'the 100 clients in small and large',
    '| 400 | small | 3.3',
    '| large | gaussian | 0.1 | 1 | 100 | 10 | poisson | 1000 |',
    'joins a round of large with probability 0.1',
    'dp_accounting 0.4',
    'proven upper bound',
    'to tune on them is a release',
    'are public: the people in them are not protected',
    'drawn from the seed of the run',
    'Secure aggregation is not part',
    'not released',
  ):
    assert part in text, part
  assert 'BROKEN' not in text


def test_statement_of_what_is_no_guarantee():
  config = _config(reproducible_noise=True, delta=0.005)
  ledger = ledger_lib.Ledger(_pools('fixed'), config)
  text = ledger.statement({'small': 10, 'large': 10})
  assert 'THE GUARANTEE IS BROKEN' in text
  assert 'no proven bound' in text
  assert 'Delta 0.005 is not below 1/500' in text


def test_adaptive_clip_states_both_noises():
  config = _config(mechanism=('adaptive_gaussian',), clipped_count_stddev=2.0)
  text = ledger_lib.Ledger(_pools(), config).statement(
    {'small': 10, 'large': 10}
  )
  z_delta = (1.0 - 4.0**-2) ** -0.5
  assert f'noised with 2, the sum with a multiplier of {z_delta:.4g}' in text


def test_ledger_takes_the_mechanisms_that_the_accountant_has():
  for name in accounting.MECHANISMS:
    sampling = 'epochs' if name == 'tree' else 'poisson'
    stddev = 2.0 if name == 'adaptive_gaussian' else None
    config = _config(mechanism=(name,), clipped_count_stddev=stddev)
    metrics = ledger_lib.Ledger(_pools(sampling), config).metrics(
      {'small': 10, 'large': 10}
    )
    assert 0 < metrics['privacy/worst_client/epsilon'] < 100
