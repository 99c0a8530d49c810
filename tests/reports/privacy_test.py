from tff_codist.reports import privacy


def test_a_field_has_a_value_for_each_pool_with_a_mechanism(load, load_private):
  one = load_private('a', noise=(0.5,))
  assert privacy.of_pools(one, 'noise_multiplier') == {
    'small': 0.5,
    'large': 0.5,
  }
  other = load_private(
    'b', noise=(0.5, 1.0), privacy={'mechanism': ['none', 'tree']}
  )
  noise = privacy.of_pools(other, 'noise_multiplier')
  assert noise == {'small': None, 'large': 1.0}
  assert privacy.is_private(one) and privacy.is_private(other)
  assert not privacy.is_private(load('c'))


def test_fields_are_text_without_those_that_are_not_set(load, load_private):
  run = load_private(
    noise=(0.5, 1.0),
    privacy={'mechanism': ['gaussian', 'none'], 'accountant': 'pld'},
  )
  assert privacy.fields(run) == {
    'mechanism': 'gaussian/none',
    'noise_multiplier': '0.5/none',
    'clip': '0.1/none',
    'delta': '1e-05',
    'accountant': 'pld',
  }
  assert privacy.fields(load('without')) == {}


def test_distinctive_fields_are_the_noise_and_those_that_differ():
  one = {'mechanism': 'tree', 'noise_multiplier': '1', 'clip': '0.1'}
  assert privacy.distinctive([{}, one]) == ['noise_multiplier']
  other = {**one, 'clip': '0.2', 'max_epsilon': '8'}
  assert privacy.distinctive([one, other]) == [
    'noise_multiplier',
    'clip',
    'max_epsilon',
  ]
  assert privacy.distinctive([{}, {}]) == []


def test_epsilon_is_the_last_one_that_was_recorded(load, load_private):
  run = load_private('a', epsilons=(2.0, 4.0, 5.0))
  assert privacy.epsilon(run, 'large') == 4.0
  assert privacy.worst_epsilon(run) == 5.0
  rounds, values = privacy.series(run)['worst client']
  assert (rounds.tolist(), values.tolist()) == ([10, 20], [2.5, 5.0])
  without = load('b')
  assert privacy.epsilon(without, 'small') is None
  assert privacy.worst_epsilon(without) is None
  assert privacy.series(without) == {}
