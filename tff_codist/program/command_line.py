"""The training command line: flags from the configuration tree."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

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
    run_dir: The run folder.
  """

  config: config_lib.Config
  run_dir: str


class _Parser(simple_parsing.ArgumentParser):
  """A parser whose errors are ours."""

  def error(self, message: str) -> NoReturn:
    raise errors.ConfigError(
      f'a command line with {message}',
      expected='flags as --help lists them',
      fix='correct the command',
    )


def parse(argv: Sequence[str], *, description: str) -> Arguments:
  """Parses a training command line.

  Args:
    argv: Arguments, without the program's name.
    description: The command's description, for --help.

  Returns:
    The arguments.

  Raises:
    ConfigError: If a flag or a value is wrong; names come with the nearest.
  """
  choice = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  choice.add_argument('--preset', default='digits')
  choice.add_argument('--quick', action='store_true')
  chosen, rest = choice.parse_known_args(argv)
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
  parser.add_argument(
    '--run_dir', required=True, help='folder of the run, made if missing'
  )
  parser.add_arguments(config_lib.Config, dest='config', default=preset)
  known = {
    option for action in parser._actions for option in action.option_strings
  }
  for argument in rest:
    flag = argument.partition('=')[0]
    if flag.startswith('--') and known and flag not in known | _flags():
      raise errors.UnknownNameError('flag', flag, known | _flags())
  parsed = parser.parse_args(argv)
  config = parsed.config
  experiment.check_names(config)
  experiment.check_no_idle_field(config, preset)
  return Arguments(config=config, run_dir=parsed.run_dir)


def _flags() -> set[str]:
  return {f'--{name}' for name in config_lib.flatten(config_lib.Config())}
