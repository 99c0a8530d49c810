"""The configuration of a run: one tree of frozen dataclasses.

Plain values only. Command-line flags are generated from this tree, it is saved
with every run, and two runs are the same experiment exactly if their trees are
equal. Symbols in the docstrings are those of the CoDist paper (arXiv
2310.02549) and of Reddi et al. (arXiv 2003.00295).

Fields that hold one value for each pool are tuples in the order of
`PoolsConfig.names`; a single value stands for every pool.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Optional, TypeVar

from tff_codist import errors

_T = TypeVar('_T')


def _require(holds: bool, field: str, value: object, expected: str) -> None:
  """Raises `ConfigError` that names the flag, unless `holds`."""
  if not holds:
    raise errors.ConfigError(
      f'{field} = {value!r}',
      expected=expected,
      fix=f'give another value with --{field}',
    )


def _positive(value: float) -> bool:
  return math.isfinite(value) and value > 0


def _fraction(value: float) -> bool:
  return 0 <= value <= 1


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What is learned, and from which data."""

  # A task's name: digits, cifar100.
  name: str = 'digits'
  # Directory of the data sets; None takes $TFF_CODIST_DATA_DIR, else TFF's
  # default cache directory.
  data_dir: Optional[str] = None
  # Share of the training clients whose examples, without labels, become the
  # server's distillation data U. In [0, 1).
  distillation_clients_fraction: float = 0.1

  def __post_init__(self):
    _require(
      0 <= self.distillation_clients_fraction < 1,
      'task.distillation_clients_fraction',
      self.distillation_clients_fraction,
      'a number in [0, 1)',
    )


@dataclasses.dataclass(frozen=True)
class PoolsConfig:
  """The pools of clients and the model that each of them trains."""

  # Names of the pools, e.g. small large.
  names: tuple[str, ...] = ('small', 'large')
  # Name of each pool's model; bin/train.py --help lists a task's models.
  models: tuple[str, ...] = ('small', 'large')
  # Share of the clients that can run each pool's model, chosen by a seeded
  # hash of the client id; smaller shares are subsets of larger ones. (0, 1].
  clients_fraction: tuple[float, ...] = (1.0, 0.2)
  # Files with one client id a line, one file for each pool, in place of
  # clients_fraction.
  client_lists: tuple[str, ...] = ()
  # Clients sampled from each pool in every round, without replacement.
  cohort_size: tuple[int, ...] = (10,)

  def __post_init__(self):
    _require(bool(self.names), 'pools.names', self.names, 'at least one name')
    _require(
      len(set(self.names)) == len(self.names)
      and all(name.isidentifier() for name in self.names),
      'pools.names',
      self.names,
      'different names made of letters, digits and underscores',
    )
    for share in self.clients_fraction:
      _require(
        0 < share <= 1, 'pools.clients_fraction', share, 'numbers in (0, 1]'
      )
    for size in self.cohort_size:
      _require(size > 0, 'pools.cohort_size', size, 'integers above 0')
    for field in ('models', 'clients_fraction', 'cohort_size'):
      self.per_pool(f'pools.{field}', getattr(self, field))
    _require(
      len(self.client_lists) in (0, len(self.names)),
      'pools.client_lists',
      self.client_lists,
      f'no file or one for each of {", ".join(self.names)}',
    )

  def per_pool(self, field: str, values: tuple[_T, ...]) -> dict[str, _T]:
    """Returns a field's value for each pool, by pool name.

    Args:
      field: The field's full name, for the error.
      values: One value, which stands for every pool, or one for each pool.

    Raises:
      ConfigError: If the number of values fits neither.
    """
    _require(
      len(values) in (1, len(self.names)),
      field,
      values,
      f'one value, or one for each pool of {", ".join(self.names)}',
    )
    values = values * len(self.names) if len(values) == 1 else values
    return dict(zip(self.names, values))


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """Which algorithm trains the pools."""

  # fed_avg, periodic_codist or merged_codist.
  name: str = 'merged_codist'


@dataclasses.dataclass(frozen=True)
class ClientConfig:
  """Local training on a client (FedAvg's client update)."""

  # Learning rate of local SGD, eta_l. Above 0.
  learning_rate: float = 0.1
  # Heavy-ball momentum of local SGD, in [0, 1); 0 is plain SGD.
  momentum: float = 0.0
  # Passes over the client's examples, E. At least 1.
  epochs: int = 1
  # Examples in a local step, B. At least 1; the last batch may be smaller.
  batch_size: int = 20
  # Weight of a client in the mean: examples (n_k) or uniform.
  weighting: str = 'examples'
  # How the clients' updates are combined: mean; robust (tff.learning's
  # zeroing and adaptive clipping); compressed (its lossy uplink).
  aggregator: str = 'mean'

  def __post_init__(self):
    _require(
      _positive(self.learning_rate),
      'client.learning_rate',
      self.learning_rate,
      'a number above 0',
    )
    _require(
      0 <= self.momentum < 1,
      'client.momentum',
      self.momentum,
      'a number in [0, 1)',
    )
    _require(
      self.epochs >= 1, 'client.epochs', self.epochs, 'an integer above 0'
    )
    _require(
      self.batch_size >= 1,
      'client.batch_size',
      self.batch_size,
      'an integer above 0',
    )
    if self.weighting not in ('examples', 'uniform'):
      raise errors.UnknownNameError(
        'client.weighting', self.weighting, ('examples', 'uniform')
      )


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  """The server optimizer (Reddi et al., Algorithm 2)."""

  # fedavg, fedavgm, fedadam, fedyogi or fedadagrad.
  optimizer: str = 'fedadam'
  # tff: TensorFlow Federated's optimizers, with bias correction. reddi: the
  # paper's rules, x + eta * m / (sqrt(v) + tau), without it.
  flavor: str = 'tff'
  # Server learning rate, eta. Above 0.
  learning_rate: float = 0.01
  # Momentum of FedAvgM, in [0, 1).
  momentum: float = 0.9
  # Decay of the first moment, in [0, 1).
  beta1: float = 0.9
  # Decay of the second moment, in [0, 1).
  beta2: float = 0.99
  # Adaptivity, tau in the paper. Above 0.
  epsilon: float = 1e-3
  # Second moment before the first round, v_{-1}. At least 0; None takes the
  # flavor's own: 0 (reddi), 0.1 (TFF's Adagrad), 1e-6 (TFF's Yogi).
  initial_accumulator: Optional[float] = None

  def __post_init__(self):
    _require(
      _positive(self.learning_rate),
      'server.learning_rate',
      self.learning_rate,
      'a number above 0',
    )
    for field in ('momentum', 'beta1', 'beta2'):
      value = getattr(self, field)
      _require(0 <= value < 1, f'server.{field}', value, 'a number in [0, 1)')
    _require(
      _positive(self.epsilon),
      'server.epsilon',
      self.epsilon,
      'a number above 0',
    )
    _require(
      self.initial_accumulator is None
      or 0 <= self.initial_accumulator < math.inf,
      'server.initial_accumulator',
      self.initial_accumulator,
      'a number of at least 0',
    )
    if self.flavor not in ('tff', 'reddi'):
      raise errors.UnknownNameError(
        'server.flavor', self.flavor, ('tff', 'reddi')
      )


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """One distillation pass of a student on the server's unlabelled data."""

  # kl, cross_entropy (soft labels) or l2 (on logits).
  loss: str = 'kl'
  # Softmax temperature T. Above 0; larger is softer.
  temperature: float = 1.0
  # Exponent a of the factor T^a on the loss: 2 (Hinton) keeps the gradient's
  # size independent of T; 0 leaves the loss as it is.
  temperature_exponent: int = 2
  # Unlabelled examples in a distillation step. At least 1.
  batch_size: int = 128
  # Decay rates of the distillation's Adam, in [0, 1).
  beta1: float = 0.9
  beta2: float = 0.999
  # Epsilon of the distillation's Adam. Above 0.
  epsilon: float = 1e-7
  # Whether that Adam's state goes on from exchange to exchange. A reset Adam
  # with one step is sign descent.
  keep_optimizer_state: bool = True

  def __post_init__(self):
    _require(
      _positive(self.temperature),
      'distillation.temperature',
      self.temperature,
      'a number above 0',
    )
    _require(
      self.temperature_exponent in (0, 2),
      'distillation.temperature_exponent',
      self.temperature_exponent,
      '0 or 2',
    )
    _require(
      self.batch_size >= 1,
      'distillation.batch_size',
      self.batch_size,
      'an integer above 0',
    )
    for field in ('beta1', 'beta2'):
      value = getattr(self, field)
      _require(
        0 <= value < 1, f'distillation.{field}', value, 'a number in [0, 1)'
      )
    _require(
      _positive(self.epsilon),
      'distillation.epsilon',
      self.epsilon,
      'a number above 0',
    )


@dataclasses.dataclass(frozen=True)
class PeriodicConfig:
  """PERIODIC CODIST: a block of distillation steps every p rounds."""

  # Rounds between two blocks, p. At least 1.
  period: int = 200
  # Distillation steps in a block, s. At least 0.
  steps: int = 200
  # Learning rate of the distillation's Adam; its steps are applied as they
  # are. Above 0.
  learning_rate: float = 1e-3

  def __post_init__(self):
    _require(
      self.period >= 1, 'periodic.period', self.period, 'an integer above 0'
    )
    _require(
      self.steps >= 0, 'periodic.steps', self.steps, 'an integer of at least 0'
    )
    _require(
      _positive(self.learning_rate),
      'periodic.learning_rate',
      self.learning_rate,
      'a number above 0',
    )


@dataclasses.dataclass(frozen=True)
class MergedConfig:
  """MERGED CODIST: distillation every round, merged before the server step."""

  # The interpolation factor alpha of each pool, in [0, 1]: it multiplies the
  # distillation pseudo-gradient, 1 - alpha the federated one.
  distillation_weight: tuple[float, ...] = (0.5,)
  # Distillation steps in a round. At least 1.
  steps: int = 1
  # Learning rate of the distillation's Adam; the server optimizer multiplies
  # its steps. Above 0.
  learning_rate: float = 1e-5
  # Rounds at the start in which alpha is 0. At least 0.
  warmup_rounds: int = 0
  # Give the distillation pseudo-gradient the norm of the federated one.
  match_norm: bool = False
  # Divide the merged pseudo-gradient by 1 - alpha, so that distillation adds
  # to the federated step and does not shrink it. alpha must be below 1.
  rescale: bool = False

  def __post_init__(self):
    for weight in self.distillation_weight:
      _require(
        _fraction(weight),
        'merged.distillation_weight',
        weight,
        'numbers in [0, 1]',
      )
    _require(
      not self.rescale or max(self.distillation_weight, default=0) < 1,
      'merged.distillation_weight',
      self.distillation_weight,
      'numbers below 1 together with --merged.rescale',
    )
    _require(self.steps >= 1, 'merged.steps', self.steps, 'an integer above 0')
    _require(
      _positive(self.learning_rate),
      'merged.learning_rate',
      self.learning_rate,
      'a number above 0',
    )
    _require(
      self.warmup_rounds >= 0,
      'merged.warmup_rounds',
      self.warmup_rounds,
      'an integer of at least 0',
    )


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
  """What executes the federated computations."""

  # stock: TFF's own C++ worker.
  name: str = 'stock'


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
  """The training loop."""

  # Rounds of training, numbered from 1. At least 1.
  rounds: int = 100
  # Every so many rounds, and after the last, all models are evaluated.
  rounds_per_evaluation: int = 10
  # Every so many rounds, and at the end, a checkpoint is written.
  rounds_per_checkpoint: int = 10
  # Checkpoints kept, the newest ones. At least 2, so that one can be corrupt.
  checkpoints_kept: int = 3

  def __post_init__(self):
    for field in ('rounds', 'rounds_per_evaluation', 'rounds_per_checkpoint'):
      value = getattr(self, field)
      _require(value >= 1, f'program.{field}', value, 'an integer above 0')
    _require(
      self.checkpoints_kept >= 2,
      'program.checkpoints_kept',
      self.checkpoints_kept,
      'an integer of at least 2',
    )


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that determines a run's numbers.

  Raises:
    ConfigError: If a value is outside its range, or values contradict.
  """

  task: TaskConfig = TaskConfig()
  pools: PoolsConfig = PoolsConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  client: ClientConfig = ClientConfig()
  server: ServerConfig = ServerConfig()
  distillation: DistillationConfig = DistillationConfig()
  periodic: PeriodicConfig = PeriodicConfig()
  merged: MergedConfig = MergedConfig()
  runtime: RuntimeConfig = RuntimeConfig()
  program: ProgramConfig = ProgramConfig()
  # Seed of every random choice of the run.
  seed: int = 1

  def __post_init__(self):
    self.pools.per_pool(
      'merged.distillation_weight', self.merged.distillation_weight
    )


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the tree's leaves by their flag names, e.g. `server.epsilon`."""
  leaves = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    name = f'{prefix}{field.name}'
    if dataclasses.is_dataclass(value):
      leaves.update(flatten(value, f'{name}.'))
    else:
      leaves[name] = value
  return leaves


def differences(
  left: Config, right: Config
) -> dict[str, tuple[object, object]]:
  """Returns the fields in which two configurations differ, with both values."""
  other = flatten(right)
  return {
    name: (value, other[name])
    for name, value in flatten(left).items()
    if value != other[name]
  }


def to_json(config: Config) -> str:
  """Returns the tree as indented JSON."""
  return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def from_json(text: str) -> Config:
  """Returns the configuration that `to_json` wrote.

  Raises:
    ConfigError: If the text is no JSON or does not have exactly the fields of
      this version.
  """
  try:
    return _from_dict(Config, json.loads(text), 'config')
  except json.JSONDecodeError as error:
    raise errors.ConfigError(
      f'a configuration that is no JSON ({error})',
      expected='a config.json written by bin/train.py',
      fix='start the run again in another folder',
    ) from error


def _from_dict(cls: type, values: Mapping[str, Any], where: str) -> Any:
  """Builds a dataclass of the tree from its JSON form, strictly."""
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, dict) or set(values) != set(fields):
    found = sorted(values) if isinstance(values, dict) else values
    raise errors.ConfigError(
      f'{where} with {found}',
      expected=f'exactly the fields {", ".join(fields)}',
      fix='use the version of the package that wrote this run',
    )
  arguments = {}
  for name, field in fields.items():
    value = values[name]
    if dataclasses.is_dataclass(field.type):
      value = _from_dict(field.type, value, f'{where}.{name}')
    elif isinstance(value, list):
      value = tuple(value)
    arguments[name] = value
  return cls(**arguments)
