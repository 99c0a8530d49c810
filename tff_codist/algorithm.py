"""What the training program knows of an algorithm, and nothing more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

from tff_codist import client_store as client_store_lib
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import registry
from tff_codist import task as task_lib
from tff_codist import unlabelled as unlabelled_lib

BYTES_PER_FLOAT = 4

State = Any
Cohorts = Mapping[str, list]
Metrics = dict


class Traffic(NamedTuple):
  """What clients and the server send each other.

  Attributes:
    down: Floats from the server to the clients.
    up: Floats from the clients to the server.
  """

  down: int
  up: int


class Algorithm(NamedTuple):
  """A federated algorithm over pools, as functions of values.

  Attributes:
    initialize: `seed -> state`. The state is nested NamedTuples, dicts and
      tuples of arrays; a round makes a new one and changes none.
    next: `(state, cohorts, round_num) -> (state, metrics)`: one round, numbered
      from 1, on each pool's list of client examples. Metrics are scalars under
      flat names such as `train/large/loss`.
    models: `state -> {pool: sequence of weights}`, the models to evaluate and
      to save: one for a pool that shares a model, and those of a sample of its
      clients where each has its own.
    releases: `state -> {pool: count}`, how many aggregates of each pool's
      clients there were so far, which is what differential privacy counts.
      Empty for methods without it.
    traffic: {pool: what each client of a cohort receives and sends in every
      round}.
    once: `state -> {pool: Traffic}`, what the clients of each pool, all of them
      together, have received and sent so far beside that, as in an exchange
      before the first round. Empty for methods without it.
    client_states: `state -> digests`, the values in the client store to which
      the state refers.
  """

  initialize: Callable[[int], State]
  next: Callable[[State, Cohorts, int], tuple]
  models: Callable[[State], Mapping[str, Sequence[models.Weights]]]
  releases: Callable[[State], Mapping[str, int]] = lambda state: {}
  traffic: Mapping[str, Traffic] = MappingProxyType({})
  once: Callable[[State], Mapping[str, Traffic]] = lambda state: {}
  client_states: Callable[[State], Iterable[bytes]] = lambda state: ()


class Setting(NamedTuple):
  """What an algorithm is built for.

  Attributes:
    pools: The pools.
    task: The task.
    examples_type: TFF type of a client's examples.
    unlabelled: The server's distillation data U; `None` if there is none.
    validation: The server's labelled examples `<x, y>`, which measure teachers
      and train nobody; `None` if there are none.
    client_store: Where methods keep what clients have between rounds; `None`
      if there is no place for it.
  """

  pools: Sequence[pools_lib.Pool]
  task: task_lib.Task
  examples_type: Any
  unlabelled: Optional[unlabelled_lib.UnlabelledData]
  validation: Optional[clients.Examples] = None
  client_store: Optional[client_store_lib.ClientStore] = None


BuildAlgorithmFn = Callable[[Setting, config_lib.Config], Algorithm]

# Functions `(setting, config) -> Algorithm`; they read the groups of the
# configuration under which they are registered, beside those all runs read.
algorithms: registry.Registry[BuildAlgorithmFn] = registry.Registry('algorithm')


def require_unlabelled(
  setting: Setting, config: config_lib.Config
) -> unlabelled_lib.UnlabelledData:
  """Returns the distillation data U of an algorithm that needs it.

  Raises:
    ConfigError: If there is none.
  """
  if setting.unlabelled is None:
    raise errors.ConfigError(
      f'algorithm {config.algorithm.name!r} without distillation data',
      expected='unlabelled examples at the server',
      fix='choose --unlabelled.sources, or train with --algorithm.name fed_avg',
    )
  return setting.unlabelled


def refuse_privacy(config: config_lib.Config, because: str) -> None:
  """Refuses differential privacy for an algorithm that cannot have it.

  Args:
    config: The algorithm's name and the group `privacy`.
    because: Why not, a clause.

  Raises:
    ConfigError: If the clients are to be protected.
  """
  if config.privacy.is_on:
    raise errors.ConfigError(
      f'--privacy.mechanism {" ".join(config.privacy.mechanism)} with '
      f'{config.algorithm.name}: {because}',
      expected='an algorithm whose clients send pseudo-gradients to be summed',
      fix='leave out --privacy.mechanism, or choose fed_avg or merged_codist',
    )
