"""What the training program knows of an algorithm, and nothing more."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import registry
from tff_codist import task as task_lib
from tff_codist import unlabelled as unlabelled_lib

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
    releases: `state -> {pool: count}`, how many aggregates of each pool's
      clients there were so far, which is what differential privacy counts.
  """

  initialize: Callable[[int], State]
  next: Callable[[State, Cohorts, int], tuple]
  models: Callable[[State], Mapping[str, models.Weights]]
  releases: Callable[[State], Mapping[str, int]]


class Setting(NamedTuple):
  """What an algorithm is built for.

  Attributes:
    pools: The pools.
    task: The task, of which an algorithm uses preprocessing and padding.
    examples_type: TFF type of a client's examples.
    unlabelled: The server's distillation data U; `None` if there is none.
    validation: The server's labelled examples `<x, y>`, which measure teachers
      and train nobody; `None` if there are none.
  """

  pools: Sequence[pools_lib.Pool]
  task: task_lib.Task
  examples_type: Any
  unlabelled: Optional[unlabelled_lib.UnlabelledData]
  validation: Optional[clients.Examples] = None


BuildAlgorithmFn = Callable[[Setting, config_lib.Config], Algorithm]

# Functions `(setting, config) -> Algorithm`; they read the groups of the
# configuration under which they are registered, beside those all runs read.
algorithms: registry.Registry[BuildAlgorithmFn] = registry.Registry('algorithm')
