"""What the training program knows of an algorithm, and nothing more."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import registry
from tff_codist import task as task_lib

State = Any
Cohorts = Mapping[str, list]
Metrics = dict


class Algorithm(NamedTuple):
  """A federated algorithm over pools, as three functions of values.

  Attributes:
    initialize: `seed -> state`. The state is nested NamedTuples, dicts and
      tuples of arrays; a round makes a new one and changes none.
    next: `(state, cohorts, round_num) -> (state, metrics)`: one round, numbered
      from 1, on each pool's list of client examples. Metrics are scalars under
      flat names such as `train/large/loss`.
    models: `state -> {pool: weights}`, the models to evaluate and to save.
  """

  initialize: Callable[[int], State]
  next: Callable[[State, Cohorts, int], tuple]
  models: Callable[[State], Mapping[str, models.Weights]]


class Setting(NamedTuple):
  """What an algorithm is built for.

  Attributes:
    pools: The pools.
    task: The task, of which an algorithm uses preprocessing and padding.
    examples_type: TFF type of a client's examples.
    unlabelled: The server's distillation data U; `None` if there is none.
  """

  pools: Sequence[pools_lib.Pool]
  task: task_lib.Task
  examples_type: Any
  unlabelled: Optional[clients.UnlabelledData]


BuildAlgorithmFn = Callable[[Setting, config_lib.Config], Algorithm]


class Entry(NamedTuple):
  """An algorithm's row in the table.

  Attributes:
    build: `(setting, config) -> Algorithm`.
    config_groups: The groups of the configuration that it reads beside those
      that every run reads. Setting a field of another group is an error.
  """

  build: BuildAlgorithmFn
  config_groups: tuple = ()


algorithms: registry.Registry[Entry] = registry.Registry('algorithm')


def register(name: str, *config_groups: str):
  """Enters a builder into the table under `name`; see `Entry`."""

  def enter(build: BuildAlgorithmFn) -> BuildAlgorithmFn:
    algorithms.register(name)(Entry(build, config_groups))
    return build

  return enter
