"""Flags: what they set."""

import pytest

import tasks  # noqa: F401 - registers the presets.
from tff_codist.program import command_line


@pytest.mark.parametrize(
  ('value', 'expected'), [('7', 7), ('none', None), ('', 300)]
)
def test_none_unsets_what_a_preset_sets(value, expected):
  argv = ['--preset=cifar100']
  if value:
    argv += ['--server.rounds_per_decay', value]
  parsed = command_line.parse(argv, description='', folder_flag=None)
  assert parsed.config.server.rounds_per_decay == expected
