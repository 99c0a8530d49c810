"""From a command line to a study that can start: all that can be wrong.

Needs TensorFlow, for the data and the models that a configuration names.
"""

import os
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import experiment
from tff_codist.program import command_line
from tff_codist.tuning import search as search_lib
from tff_codist.tuning import space as space_lib
from tff_codist.tuning import study as study_lib


def plan(
  flags: Sequence[str],
  *,
  out: os.PathLike,
  search: Sequence[str],
  pools: Optional[Sequence[str]] = None,
  **settings,
) -> study_lib.Study:
  """Returns a study that can start, or go on; writes nothing.

  Args:
    flags: Flags of `bin/train.py`, without `--run_dir`.
    out: Folder of the study.
    search: The parameters, see `space.parse_space`; at least one.
    pools: Names of the pools over which the metric is averaged; `None` for all.
    **settings: Other fields of `study.Settings`.

  Raises:
    ConfigError: If a flag is wrong, a parameter is or one of its values at the
      ends of a range, the run does not read it, there are no validation
      clients, or the designer cannot search this space.
    DataError: If data is missing or corrupt.
    EnvironmentSetupError: If the designer's packages are not installed.
    RunFolderError: If the folder is not this study's.
  """
  # The trials need the devices.
  tf.config.set_visible_devices([], 'GPU')
  _check_flags(flags)
  config = _parse([*flags, f'--{space_lib.EVALUATE_ON}=validation'])
  for pool in pools or ():
    if pool not in config.pools.names:
      raise errors.UnknownNameError('pool', pool, config.pools.names)
  study = study_lib.Study(
    out,
    settings=study_lib.Settings(
      search=tuple(search), pools=tuple(pools or config.pools.names), **settings
    ),
    config=config,
    flags=flags,
  )
  space = space_lib.parse_space(search, config)
  first = {parameter.name: parameter.extremes[0] for parameter in space}
  for parameter in space:
    for value in parameter.extremes:
      values = {**first, parameter.name: value}
      candidate = _parse(search_lib.trial_flags(study, values))
  search_lib.build_suggest(study)
  study.resume()
  if not study.trials:
    experiment.build_experiment(candidate)
  return study


def _check_flags(flags: Sequence[str]) -> None:
  given = [flag.partition('=')[0] for flag in flags]
  if f'--{space_lib.EVALUATE_ON}' in given:
    raise errors.ConfigError(
      f'--{space_lib.EVALUATE_ON}',
      expected='a study, whose trials are all measured on validation clients',
      fix='leave it out',
    )


def _parse(flags: Sequence[str]) -> config_lib.Config:
  return command_line.parse(flags, description='', folder_flag=None).config
