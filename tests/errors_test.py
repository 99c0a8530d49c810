"""Messages of errors."""

import pytest

from tff_codist import errors


def test_message_says_found_expected_and_fix():
  error = errors.ConfigError('x = 0', expected='x above 0', fix='raise x')
  assert str(error) == 'Found x = 0; expected x above 0. To fix: raise x.'
  assert isinstance(error, ValueError)
  assert error.exit_code == 2


@pytest.mark.parametrize(('name', 'nearest'), [('kll', 'kl'), ('zzz', None)])
def test_unknown_name_offers_the_nearest(name, nearest):
  error = errors.UnknownNameError('loss', name, ['l2', 'kl'])
  assert error.nearest == nearest
  assert 'one of kl, l2' in str(error)


def test_long_lists_of_names_are_not_printed():
  error = errors.UnknownNameError(
    'flag', '--a1', [f'--a{i}0' for i in range(50)]
  )
  assert '--a490' not in str(error)
  assert error.nearest.startswith('--a1')
