"""The training command line: flags from the configuration tree."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, Optional

import simple_parsing
from simple_parsing import wrappers

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import experiment
from tff_codist import task as task_lib


class Arguments(NamedTuple):
  """A parsed command line.

  Attributes:
    config: The preset's configuration with the flags applied.
    folder: Where the command writes; `None` if nowhere.
  """

  config: config_lib.Config
  folder: Optional[str]


class _ErrorMixin:
  """Makes a parser's errors ours."""

  def error(self, message: str) -> NoReturn:
    raise errors.ConfigError(
      f'a command line with {message}',
      expected='flags as --help lists them',
      fix='correct the command (a negative value needs --flag=value)',
    )


class _PresetParser(_ErrorMixin, argparse.ArgumentParser):
  """Reads what is needed before the other flags have defaults."""


class _Parser(_ErrorMixin, simple_parsing.ArgumentParser):
  """Reads the whole command line."""


def parse(
  argv: Sequence[str],
  *,
  description: str,
  folder_flag: Optional[str] = 'run_dir',
) -> Arguments:
  """Parses the command line of a command that takes a configuration.

  Args:
    argv: Arguments, without the program's name.
    description: The command's description, for --help.
    folder_flag: Name of the flag that says where the command writes; `None` if
      it writes nowhere.

  Returns:
    The arguments.

  Raises:
    ConfigError: If a flag or a value is wrong, is given twice or has no effect;
      names come with the nearest.
  """
  folder_flags = () if folder_flag is None else (f'--{folder_flag}',)
  given = _check_flags(argv, folder_flags)
  choice = _PresetParser(add_help=False, allow_abbrev=False)
  choice.add_argument('--preset', default='digits')
  choice.add_argument('--quick', action='store_true')
  chosen, _ = choice.parse_known_args(argv)
  preset = task_lib.presets[chosen.preset](chosen.quick)

  parser = _Parser(
    description=description,
    nested_mode=wrappers.field_wrapper.NestedMode.WITHOUT_ROOT,
    argument_generation_mode=simple_parsing.ArgumentGenerationMode.NESTED,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--preset',
    default='digits',
    help=f'configuration to start from: {", ".join(task_lib.presets.names())}',
  )
  parser.add_argument(
    '--quick', action='store_true', help="the preset's smoke form, seconds"
  )
  for flag in folder_flags:
    parser.add_argument(
      flag,
      dest='folder',
      required=True,
      help='folder that is written, made if missing',
    )
  parser.set_defaults(folder=None)
  parser.add_arguments(config_lib.Config, dest='config', default=preset)
  parsed = parser.parse_args(argv)
  experiment.check_names(parsed.config)
  experiment.check_no_idle_field(parsed.config, given)
  return Arguments(config=parsed.config, folder=parsed.folder)


def _check_flags(argv: Sequence[str], folder_flags: Sequence[str]) -> list[str]:
  """Returns the configuration's fields that a command line sets.

  Raises:
    ConfigError: If a flag is unknown or given twice.
  """
  fields_by_flag = config_lib.fields_by_flag()
  known = {*fields_by_flag, '--preset', '--quick', *folder_flags, '--help'}
  flags = [a.partition('=')[0] for a in argv if a.startswith('--')]
  for flag in flags:
    if flag not in known:
      raise errors.UnknownNameError('flag', flag, known)
  names = [fields_by_flag.get(flag, flag) for flag in flags]
  for name in names:
    if names.count(name) > 1:
      raise errors.ConfigError(
        f'{name.lstrip("-")!r} given {names.count(name)} times',
        expected='every flag once',
        fix='leave out all but one',
      )
  return [name for name in names if name in fields_by_flag.values()]
