"""From a configuration to everything that a run needs."""

import math
from collections.abc import Iterable
from typing import NamedTuple, Optional

import numpy as np

from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients
from tff_codist import codist  # Registers its algorithms.
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import losses
from tff_codist import models
from tff_codist import pools as pools_lib
from tff_codist import registry
from tff_codist import runtime
from tff_codist import server_update
from tff_codist import task as task_lib

del codist


class Experiment(NamedTuple):
  """A validated configuration with its data, pools and algorithm.

  Attributes:
    config: The configuration.
    task: The task.
    train: The training clients, without the distillation clients.
    pools: The pools.
    distillation_clients: Ids of the clients whose inputs are U.
    unlabelled: U; `None` if there are no distillation clients.
    examples_type: TFF type of a client's examples.
    algorithm: The algorithm.
  """

  config: config_lib.Config
  task: task_lib.Task
  train: clients.ClientData
  pools: tuple
  distillation_clients: tuple
  unlabelled: Optional[clients.UnlabelledData]
  examples_type: object
  algorithm: algorithm.Algorithm


def check_names(config: config_lib.Config) -> None:
  """Checks names and what depends on them, before any data is loaded.

  Raises:
    UnknownNameError: If a name is unknown, with the nearest one.
    ConfigError: If the algorithm or the server optimizer cannot take a value.
  """
  named = (
    (task_lib.tasks, config.task.name),
    (algorithm.algorithms, config.algorithm.name),
    (client_update.aggregators, config.client.aggregator),
    (server_update.server_optimizers, config.server.optimizer),
    (losses.distillation_losses, config.distillation.loss),
  )
  for table, name in named:
    table[name]
  runtime.check(config.runtime.name)
  if 'merged' in algorithm.algorithms[config.algorithm.name].config_groups:
    config.pools.per_pool(
      'merged.distillation_weight', config.merged.distillation_weight
    )
  server_update.build_server_optimizer(config.server)


def check_no_idle_field(
  config: config_lib.Config, given: Iterable[str]
) -> None:
  """Checks that every field that was set is read by something.

  Args:
    config: The configuration.
    given: Full names of the fields that the user set.

  Raises:
    ConfigError: If one of them belongs to another algorithm or server
      optimizer, or is replaced by another field.
  """
  optional_groups = {
    group
    for name in algorithm.algorithms.names()
    for group in algorithm.algorithms[name].config_groups
  }
  optimizers = server_update.server_optimizers
  optional_fields = {
    f'server.{field}'
    for name in optimizers.names()
    for field in optimizers[name].fields
  }
  name, optimizer = config.algorithm.name, config.server.optimizer
  for field in given:
    group, _, leaf = field.partition('.')
    reader = None
    if group in optional_groups - set(algorithm.algorithms[name].config_groups):
      reader = name
    elif field in optional_fields and leaf not in optimizers[optimizer].fields:
      reader = optimizer
    elif field == 'pools.clients_fraction' and config.pools.client_lists:
      reader = '--pools.client_lists'
    if reader:
      raise errors.ConfigError(
        f'--{field}, which has no effect with {reader}',
        expected=f'fields that {reader} reads',
        fix=f'leave it out or choose something else than {reader}',
      )


def build_experiment(config: config_lib.Config) -> Experiment:
  """Builds everything that a run needs; loads data, computes nothing.

  Args:
    config: The configuration.

  Returns:
    The experiment.

  Raises:
    ConfigError: If values contradict each other or the data.
    DataError: If data is missing or corrupt.
  """
  check_names(config)
  task = task_lib.tasks[config.task.name](config.task, config.seed)
  distillation_clients = _distillation_clients(task, config)
  train = task.train.subset(
    set(task.train.client_ids) - set(distillation_clients)
  )
  unlabelled = None
  if distillation_clients:
    unlabelled = clients.UnlabelledData(
      np.concatenate([task.train.load(c)['x'] for c in distillation_clients]),
      seed=config.seed,
    )
  pools = _pools(config, task, train)
  pools_lib.check_pools(pools, num_classes=task.num_classes)
  examples_type = client_update.examples_type(train.load(train.client_ids[0]))
  setting = algorithm.Setting(pools, task, examples_type, unlabelled)
  build = algorithm.algorithms[config.algorithm.name].build
  return Experiment(
    config=config,
    task=task,
    train=train,
    pools=pools,
    distillation_clients=distillation_clients,
    unlabelled=unlabelled,
    examples_type=examples_type,
    algorithm=build(setting, config),
  )


def _distillation_clients(
  task: task_lib.Task, config: config_lib.Config
) -> tuple[str, ...]:
  fraction = config.task.distillation_clients_fraction
  ranked = pools_lib.ranked(
    task.train.client_ids, seed=config.seed, purpose='distillation'
  )
  return tuple(sorted(ranked[: math.ceil(fraction * len(ranked))]))


def _pools(
  config: config_lib.Config, task: task_lib.Task, train: clients.ClientData
) -> tuple[pools_lib.Pool, ...]:
  fields = config.pools
  model_fns: registry.Registry = registry.Registry(f'model of {task.name}')
  for name, model_fn in task.models.items():
    model_fns.register(name)(model_fn)
  model_names = fields.per_pool('pools.models', fields.models)
  fractions = fields.per_pool('pools.clients_fraction', fields.clients_fraction)
  sizes = fields.per_pool('pools.cohort_size', fields.cohort_size)
  lists = dict(zip(fields.names, fields.client_lists))
  return tuple(
    pools_lib.Pool(
      name=name,
      model=models.Model(model_names[name], model_fns[model_names[name]]),
      client_ids=(
        pools_lib.from_list(lists[name], train.client_ids)
        if lists
        else pools_lib.by_capacity(
          train.client_ids, fractions[name], seed=config.seed
        )
      ),
      cohort_size=sizes[name],
    )
    for name in fields.names
  )
