"""From a configuration to everything that a run needs."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

import numpy as np

from tff_codist import algorithm
from tff_codist import client_store as client_store_lib
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
from tff_codist import unlabelled as unlabelled_lib
from tff_codist.privacy import mechanisms

del codist


class Experiment(NamedTuple):
  """A validated configuration with its data, pools and algorithm.

  Attributes:
    config: The configuration.
    task: The task.
    train: The training clients that no other part of the run sets aside.
    test: The clients on which the models are evaluated: test clients, or with
      `program.evaluate_on` validation the labelled validation clients.
    pools: The pools.
    distillation_clients: Ids of the training clients that are set aside for U;
      their inputs are in it unless the weight of the source is 0.
    validation_clients: Ids of the training clients whose examples are the
      server's validation set.
    setting: What the algorithm was built for, U among it.
    algorithm: The algorithm.
  """

  config: config_lib.Config
  task: task_lib.Task
  train: clients.ClientData
  test: clients.ClientData
  pools: tuple
  distillation_clients: tuple
  validation_clients: tuple
  setting: algorithm.Setting
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
    (runtime.runtimes, config.runtime.name),
    *((mechanisms.mechanisms, name) for name in config.privacy.mechanism),
  )
  for table, name in named:
    table[name]
  unlabelled_lib.check_sources(config.unlabelled)
  if algorithm.algorithms.reads(config.algorithm.name, 'merged.steps'):
    config.pools.per_pool(
      'merged.distillation_weight', config.merged.distillation_weight
    )
  server_update.build_server_optimizer(config.server)
  if config.program.evaluate_on == 'validation' and (
    not config.task.validation_clients
  ):
    raise errors.ConfigError(
      '--program.evaluate_on validation without validation clients',
      expected='labelled training clients that are set aside',
      fix='give their number with --task.validation_clients',
    )


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
  pools, unlabelled = config.pools, config.unlabelled
  replaced = {
    'pools.clients_fraction': (
      (pools.client_lists and '--pools.client_lists')
      or (pools.capacity_table and '--pools.capacity_table')
    ),
    'pools.disjoint': (
      (pools.client_lists and '--pools.client_lists')
      or (pools.capacity_table and '--pools.capacity_table')
    ),
    'pools.min_capacity': not pools.capacity_table
    and 'no --pools.capacity_table',
    'distillation.teacher_weighting': len(pools.names) < 3
    and 'fewer than three pools',
    'unlabelled.weights': len(unlabelled.sources) == 1 and 'a single source',
    'server.learning_rate_decay': not config.server.rounds_per_decay
    and 'no --server.rounds_per_decay',
  }
  if config.distillation.loss == 'l2' and (
    config.distillation.temperature_exponent == 2
  ):
    replaced['distillation.temperature'] = (
      '--distillation.loss l2, whose T^2 takes it out'
    )
  if config.ds_fl.aggregation == 'simple':
    replaced['ds_fl.temperature'] = '--ds_fl.aggregation simple'
  if config.fed_aux.epsilon == math.inf:
    for field in ('fed_aux.delta', 'fed_aux.reproducible_noise'):
      replaced[field] = '--fed_aux.epsilon inf'
  if not config.fed_aux.pretraining_epochs:
    for field in (
      'fed_aux.pretraining_learning_rate',
      'fed_aux.pretraining_noise',
    ):
      replaced[field] = '--fed_aux.pretraining_epochs 0'
  if config.fed_df.selection == 'last':
    for field in ('fed_df.patience', 'fed_df.steps_per_validation'):
      replaced[field] = '--fed_df.selection last'
  sources = f'--unlabelled.sources {" ".join(unlabelled.sources)}'
  if 'clients' not in unlabelled.sources:
    replaced['unlabelled.clients_fraction'] = sources
  if not {'clients', 'held_out'} & {*unlabelled.shares}:
    replaced['unlabelled.domains'] = sources
  if unlabelled.sources == ('none',):
    replaced['unlabelled.max_examples'] = sources
  chosen = (
    ('task.name', task_lib.tasks, [config.task.name]),
    ('algorithm.name', algorithm.algorithms, [config.algorithm.name]),
    (
      'server.optimizer',
      server_update.server_optimizers,
      [config.server.optimizer],
    ),
    ('privacy.mechanism', mechanisms.mechanisms, config.privacy.mechanism),
    ('runtime.name', runtime.runtimes, [config.runtime.name]),
  )
  for field in given:
    idle_with = [
      f'{names[0]!r} (--{choice})'
      for choice, table, names in chosen
      if not any(table.reads(name, field) for name in names)
    ]
    if replaced.get(field):
      idle_with.append(replaced[field])
    if idle_with:
      raise errors.ConfigError(
        f'--{field}, which has no effect with {idle_with[0]}',
        expected='fields that the run reads',
        fix='leave it out, or choose something else that reads it',
      )


def build_experiment(
  config: config_lib.Config,
  *,
  client_store: Optional[client_store_lib.ClientStore] = None,
) -> Experiment:
  """Builds everything that a run needs; loads data, computes nothing.

  Args:
    config: The configuration.
    client_store: Where methods keep what clients have between rounds.

  Returns:
    The experiment.

  Raises:
    ConfigError: If values contradict each other or the data.
    DataError: If data is missing or corrupt.
  """
  check_names(config)
  seed = config.seed
  task = task_lib.tasks[config.task.name](config)
  distillation_clients = unlabelled_lib.clients_set_aside(
    task, config.unlabelled, seed=seed
  )
  others = set(task.train.client_ids) - set(distillation_clients)
  validation_clients = pools_lib.draw(
    others, config.task.validation_clients, seed=seed, purpose='validation'
  )
  train = task.train.subset(others - set(validation_clients))
  if not train.client_ids:
    raise errors.ConfigError(
      f'{len(distillation_clients)} distillation and '
      f'{len(validation_clients)} validation clients of '
      f'{len(task.train.client_ids)}, so that no clients are left',
      expected='clients that train',
      fix='lower --unlabelled.clients_fraction or --task.validation_clients',
    )
  pools = _pools(config, task, train)
  pools_lib.check_pools(pools, num_classes=task.num_classes)
  for pool in pools:
    if pool.domains and pool.sampling == 'fixed':
      # Finds out now whether there are enough clients with such examples.
      clients.load_cohort(
        train,
        pool.client_ids,
        pool.cohort_size,
        seed=seed,
        round_num=1,
        pool=pool.name,
        domains=task.domain_indices(pool.domains),
      )
  setting = algorithm.Setting(
    pools=pools,
    task=task,
    examples_type=client_update.examples_type(train.load(train.client_ids[0])),
    unlabelled=unlabelled_lib.build_unlabelled(
      task, config.unlabelled, client_ids=distillation_clients, seed=seed
    ),
    validation=_validation(task, validation_clients),
    client_store=client_store,
  )
  return Experiment(
    config=config,
    task=task,
    train=train,
    test=_evaluation_clients(config, task, validation_clients),
    pools=pools,
    distillation_clients=distillation_clients,
    validation_clients=validation_clients,
    setting=setting,
    algorithm=algorithm.algorithms[config.algorithm.name](setting, config),
  )


def _evaluation_clients(
  config: config_lib.Config,
  task: task_lib.Task,
  validation_clients: Sequence[str],
) -> clients.ClientData:
  """Returns the clients on which the models are evaluated."""
  kind, num_clients = (
    config.program.evaluate_on,
    config.program.evaluation_clients,
  )
  found = (
    task.train.subset(validation_clients) if kind == 'validation' else task.test
  )
  if num_clients is None:
    return found
  if num_clients > len(found.client_ids):
    raise errors.ConfigError(
      f'program.evaluation_clients = {num_clients} of {len(found.client_ids)} '
      f'{kind} clients',
      expected='at most as many as there are',
      fix='lower --program.evaluation_clients or leave it out',
    )
  return found.subset(
    pools_lib.draw(
      found.client_ids, num_clients, seed=config.seed, purpose='evaluation'
    )
  )


def _validation(
  task: task_lib.Task, client_ids: Iterable[str]
) -> Optional[clients.Examples]:
  loaded = [
    clients.in_domains(task.train.load(client_id), ())
    for client_id in client_ids
  ]
  if not loaded:
    return None
  return clients.Examples(
    (name, np.concatenate([examples[name] for examples in loaded]))
    for name in ('x', 'y')
  )


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
  domains = fields.per_pool('pools.domains', fields.domains)
  lists = dict(zip(fields.names, fields.client_lists))
  if fields.disjoint:
    dealt = pools_lib.deal(train.client_ids, fractions, seed=config.seed)
  if fields.capacity_table:
    thresholds = fields.per_pool('pools.min_capacity', fields.min_capacity)
    capacities = pools_lib.read_capacities(
      fields.capacity_table, task.train.client_ids
    )

  def capable(name: str) -> tuple[str, ...]:
    if lists:
      return pools_lib.from_list(lists[name], train.client_ids)
    if fields.capacity_table:
      return tuple(
        client_id
        for client_id in train.client_ids
        if capacities[client_id] >= thresholds[name]
      )
    if fields.disjoint:
      return dealt[name]
    return pools_lib.by_capacity(
      train.client_ids, fractions[name], seed=config.seed
    )

  def client_ids(name: str) -> tuple[str, ...]:
    indices = task.domain_indices(domains_of(name))
    if not indices or task.client_domain is None:
      return capable(name)
    return tuple(c for c in capable(name) if task.client_domain(c) in indices)

  def domains_of(name: str) -> tuple[str, ...]:
    return () if domains[name] == 'all' else tuple(domains[name].split('+'))

  return tuple(
    pools_lib.Pool(
      name=name,
      model=models.Model(model_names[name], model_fns[model_names[name]]),
      client_ids=client_ids(name),
      cohort_size=sizes[name],
      sampling=fields.sampling,
      domains=domains_of(name),
    )
    for name in fields.names
  )
