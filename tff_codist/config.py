"""The configuration of a run: one tree of frozen dataclasses.

Plain values only. Command-line flags are generated from this tree, it is saved
with every run, and two runs are the same experiment exactly if their trees are
equal. Symbols in the docstrings are those of the CoDist paper (arXiv
2310.02549) and of Reddi et al. (arXiv 2003.00295).

Fields that hold one value for each pool are tuples in the order of
`PoolsConfig.names`; a single value stands for every pool. What is None by
default can be set back to it by the flag's value `none`.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Optional, TypeVar, Union

import simple_parsing

from tff_codist import errors

_T = TypeVar('_T')

SAMPLINGS = ('fixed', 'poisson', 'epochs')
ACCOUNTANTS = ('pld', 'rdp')
EVALUATED_ON = ('test', 'validation')


class _Range(NamedTuple):
  """The values that a field may have, in words and as a predicate."""

  expected: str
  holds: Callable[[Any], bool]


_POSITIVE = _Range('a number above 0', lambda v: 0 < v < math.inf)
_POSITIVE_ALL = _Range('numbers above 0', lambda v: 0 < v < math.inf)
_NOT_NEGATIVE = _Range('a number of at least 0', lambda v: 0 <= v < math.inf)
_NOT_NEGATIVE_ALL = _Range('numbers of at least 0', lambda v: 0 <= v < math.inf)
_INNER_SHARE = _Range('a number in (0, 1)', lambda v: 0 < v < 1)
_DELTA = _Range('a number above 0 and at most 0.01', lambda v: 0 < v <= 0.01)
_SHARE = _Range('numbers in (0, 1]', lambda v: 0 < v <= 1)
_WEIGHT = _Range('numbers in [0, 1]', lambda v: 0 <= v <= 1)
_BELOW_ONE = _Range('a number in [0, 1)', lambda v: 0 <= v < 1)
_COUNT = _Range('an integer above 0', lambda v: v >= 1)
_AT_LEAST_2 = _Range('an integer of at least 2', lambda v: v >= 2)
_COUNT_OR_0 = _Range('an integer of at least 0', lambda v: v >= 0)


def _one_of(*values: Any) -> _Range:
  return _Range(f'one of {", ".join(map(str, values))}', lambda v: v in values)


def _field(default: Any, allowed: _Range) -> Any:
  """Returns a dataclass field whose value, or each of it, is checked."""
  return dataclasses.field(default=default, metadata={'allowed': allowed})


def _optional(kind: type, allowed: Optional[_Range] = None) -> Any:
  """Returns a field that is None unless it is set, and `none` in flags."""

  def parse(text: str) -> Any:
    return None if text == 'none' else kind(text)

  parse.__name__ = kind.__name__  # For the parser's messages.
  if allowed is not None:
    allowed = allowed._replace(expected=f'{allowed.expected}, or none')
  return simple_parsing.field(
    default=None,
    type=parse,
    nargs=None,
    metavar=f'{kind.__name__}|none',
    metadata={'allowed': allowed},
  )


def _require(holds: bool, flag: str, value: object, expected: str) -> None:
  """Raises `ConfigError` that names the flag, unless `holds`."""
  if not holds:
    raise errors.ConfigError(
      f'{flag} = {value!r}',
      expected=expected,
      fix=f'give another value with --{flag}',
    )


def _has_type(value: Any, annotation: Any) -> bool:
  """Returns whether a value has a field's type; an int may be a float."""
  if annotation is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if typing.get_origin(annotation) is Union:
    return any(_has_type(value, a) for a in typing.get_args(annotation))
  if typing.get_origin(annotation) is tuple:
    item_type = typing.get_args(annotation)[0]
    return isinstance(value, tuple) and all(
      _has_type(item, item_type) for item in value
    )
  return isinstance(value, annotation)


class _Group:
  """A branch of the tree, whose fields are checked when it is made."""

  # Name of the branch, as in flags.
  group: ClassVar[str]

  def __post_init__(self):
    for field in dataclasses.fields(self):
      flag, value = f'{self.group}.{field.name}', getattr(self, field.name)
      _require(_has_type(value, field.type), flag, value, f'{field.type}')
      allowed = field.metadata.get('allowed')
      if allowed is None or value is None:
        continue
      for item in value if isinstance(value, tuple) else (value,):
        _require(allowed.holds(item), flag, value, allowed.expected)


@dataclasses.dataclass(frozen=True)
class TaskConfig(_Group):
  """What is learned, and from which data."""

  group: ClassVar[str] = 'task'

  # digits, cifar100, emnist, emnist_digits, stackoverflow, mnist_letters or
  # cifar_subclasses.
  name: str = 'digits'
  # Directory of the data sets; None takes $TFF_CODIST_DATA_DIR, else TFF's
  # default cache directory.
  data_dir: Optional[str] = _optional(str)
  # Training clients whose labelled examples are the server's validation set,
  # which measures the teachers, and the models with program.evaluate_on
  # validation, and trains nobody. 0 is none.
  validation_clients: int = _field(0, _COUNT_OR_0)


@dataclasses.dataclass(frozen=True)
class TextConfig(_Group):
  """How language tasks turn sentences into tokens."""

  group: ClassVar[str] = 'text'

  # Words in the vocabulary, the commonest; every other word is
  # out-of-vocabulary. At least 1.
  vocab_size: int = _field(10000, _COUNT)
  # Tokens of a sentence, L; longer ones are cut, shorter ones padded. At least
  # 2.
  sequence_length: int = _field(20, _AT_LEAST_2)
  # Sentences of a client that are used, the first ones. At least 1.
  max_sentences: int = _field(1000, _COUNT)


@dataclasses.dataclass(frozen=True)
class UnlabelledConfig(_Group):
  """The server's unlabelled distillation data, U."""

  group: ClassVar[str] = 'unlabelled'

  # Where U comes from, one or several of: clients (training clients, set aside
  # from all pools), held_out (clients that the data set holds out itself),
  # tfds:NAME (training split of a TFDS set), generator:FILE.keras (a frozen
  # generator from normal latent vectors to images in [0, 1]), text:FILE (one
  # sentence a line), noise (uniform); or none.
  sources: tuple[str, ...] = ('clients',)
  # Proportions of the sources in U, one for each or one for all. At least 0,
  # and not 0 everywhere. A source of weight 0 takes part in nothing, but
  # clients still sets its clients aside: runs with other data train on the same
  # ones.
  weights: tuple[float, ...] = _field((1.0,), _NOT_NEGATIVE_ALL)
  # Share of the training clients that the source clients sets aside. (0, 1).
  clients_fraction: float = _field(0.1, _INNER_SHARE)
  # Domains of the examples that clients and held_out give; empty takes all.
  domains: tuple[str, ...] = ()
  # Examples in U at most. At least 1.
  max_examples: int = _field(10000, _COUNT)

  def __post_init__(self):
    super().__post_init__()
    _require(
      bool(self.sources)
      and len(set(self.sources)) == len(self.sources)
      and ('none' not in self.sources or len(self.sources) == 1),
      'unlabelled.sources',
      self.sources,
      'different sources, or none alone',
    )
    _require(
      len(self.weights) in (1, len(self.sources)),
      'unlabelled.weights',
      self.weights,
      f'one weight, or one for each of {", ".join(self.sources)}',
    )
    _require(
      any(self.weights),
      'unlabelled.weights',
      self.weights,
      'at least one number above 0',
    )

  @property
  def shares(self) -> dict[str, float]:
    """The share of each source in U, without those of weight 0."""
    weights = self.weights * (len(self.sources) // len(self.weights))
    return {
      source: weight / sum(weights)
      for source, weight in zip(self.sources, weights)
      if weight
    }


@dataclasses.dataclass(frozen=True)
class PoolsConfig(_Group):
  """The pools of clients and the model that each of them trains."""

  group: ClassVar[str] = 'pools'

  # Names of the pools, e.g. small large.
  names: tuple[str, ...] = ('small', 'large')
  # Name of each pool's model; the task's file lists its models.
  models: tuple[str, ...] = ('small', 'large')
  # Share of the clients that can run each pool's model, chosen by a seeded
  # hash of the client id; smaller shares are subsets of larger ones. (0, 1].
  clients_fraction: tuple[float, ...] = _field((1.0, 0.2), _SHARE)
  # Whether no client is in two pools: the clients are dealt out to them, and
  # the shares add up to 1 at most.
  disjoint: bool = False
  # CSV file with the header client_id,capacity and a line for each training
  # client, in place of clients_fraction.
  capacity_table: Optional[str] = _optional(str)
  # Least capacity of each pool's clients in capacity_table, which needs it.
  min_capacity: tuple[float, ...] = _field(
    (), _Range('finite numbers', math.isfinite)
  )
  # Files with one client id a line, one file for each pool, in place of
  # clients_fraction.
  client_lists: tuple[str, ...] = ()
  # Domain that each pool's clients train on, several joined by +, e.g.
  # answers questions; all for no restriction. Clients without an example in it
  # are not drawn.
  domains: tuple[str, ...] = ('all',)
  # Clients sampled from each pool in every round.
  cohort_size: tuple[int, ...] = _field((10,), _COUNT)
  # fixed: so many, without replacement. poisson: each client on its own, so
  # that cohort_size is expected. epochs: so many, and none of them again before
  # a round cannot be filled with clients that have not trained since.
  sampling: str = _field('fixed', _one_of(*SAMPLINGS))

  def __post_init__(self):
    super().__post_init__()
    _require(bool(self.names), 'pools.names', self.names, 'at least one name')
    _require(
      len(set(self.names)) == len(self.names)
      and all(name.isidentifier() for name in self.names),
      'pools.names',
      self.names,
      'different names made of letters, digits and underscores',
    )
    for field in (
      'models',
      'clients_fraction',
      'domains',
      'cohort_size',
    ):
      self.per_pool(f'pools.{field}', getattr(self, field))
    shares = self.per_pool('pools.clients_fraction', self.clients_fraction)
    _require(
      not self.disjoint or sum(shares.values()) < 1 + 1e-9,
      'pools.clients_fraction',
      self.clients_fraction,
      'numbers that add up to 1 at most, together with --pools.disjoint',
    )
    _require(
      len(self.client_lists) in (0, len(self.names)),
      'pools.client_lists',
      self.client_lists,
      f'no file or one for each of {", ".join(self.names)}',
    )
    _require(
      self.capacity_table != '',
      'pools.capacity_table',
      self.capacity_table,
      'the name of a file',
    )
    _require(
      not self.capacity_table or len(self.min_capacity) in (1, len(self.names)),
      'pools.min_capacity',
      self.min_capacity,
      'one value, or one for each pool, together with --pools.capacity_table',
    )
    _require(
      not (self.client_lists and self.capacity_table),
      'pools.capacity_table',
      self.capacity_table,
      'either a table of capacities or lists of clients',
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
class AlgorithmConfig(_Group):
  """Which algorithm trains the pools."""

  group: ClassVar[str] = 'algorithm'

  # fed_avg, periodic_codist, merged_codist, fed_df, fed_aux, ds_fl, fd, fed_md,
  # fd_f_aug or fed_avg_f_aug.
  name: str = 'merged_codist'


@dataclasses.dataclass(frozen=True)
class ClientConfig(_Group):
  """Local training on a client (FedAvg's client update)."""

  group: ClassVar[str] = 'client'

  # Learning rate of local SGD, eta_l. Above 0.
  learning_rate: float = _field(0.1, _POSITIVE)
  # Heavy-ball momentum of local SGD, in [0, 1); 0 is plain SGD.
  momentum: float = _field(0.0, _BELOW_ONE)
  # Passes over the client's examples, E. At least 1.
  epochs: int = _field(1, _COUNT)
  # Examples in a local step, B. At least 1; the last batch may be smaller.
  batch_size: int = _field(20, _COUNT)
  # Weight of a client in the mean: examples (n_k) or uniform.
  weighting: str = _field('examples', _one_of('examples', 'uniform'))
  # How the clients' updates are combined: mean; robust (tff.learning's
  # zeroing and adaptive clipping); compressed (its lossy uplink).
  aggregator: str = 'mean'


@dataclasses.dataclass(frozen=True)
class ServerConfig(_Group):
  """The server optimizer (Reddi et al., Algorithm 2)."""

  group: ClassVar[str] = 'server'

  # fedavg, fedavgm, fedadam, fedyogi or fedadagrad.
  optimizer: str = 'fedadam'
  # tff: TensorFlow Federated's optimizers, with bias correction. reddi: the
  # paper's rules, x + eta * m / (sqrt(v) + tau), without it.
  flavor: str = _field('tff', _one_of('tff', 'reddi'))
  # Server learning rate, eta. Above 0.
  learning_rate: float = _field(0.01, _POSITIVE)
  # Rounds after which the learning rate is multiplied by learning_rate_decay,
  # again and again. At least 1; None keeps it.
  rounds_per_decay: Optional[int] = _optional(int, _COUNT)
  # That factor, in (0, 1).
  learning_rate_decay: float = _field(0.1, _INNER_SHARE)
  # Momentum of FedAvgM, in [0, 1).
  momentum: float = _field(0.9, _BELOW_ONE)
  # Decay of the first moment, in [0, 1).
  beta1: float = _field(0.9, _BELOW_ONE)
  # Decay of the second moment, in [0, 1).
  beta2: float = _field(0.99, _BELOW_ONE)
  # Adaptivity, tau in the paper. Above 0.
  epsilon: float = _field(1e-3, _POSITIVE)
  # Second moment before the first round, v_{-1}. At least 0; None takes the
  # flavor's own: 0 (reddi), 0.1 (TFF's Adagrad), 1e-6 (TFF's Yogi).
  initial_accumulator: Optional[float] = _optional(float, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class PrivacyConfig(_Group):
  """Differential privacy of the clients, one mechanism for each pool.

  The unit is a client: two data sets are neighbours if one has all examples of
  one client more. What a pool releases in a round is the noised mean of its
  clients' clipped pseudo-gradients.
  """

  group: ClassVar[str] = 'privacy'

  # none; gaussian (fixed clip); adaptive_gaussian (clip at a quantile of the
  # norms, Andrew et al.); tree (DP-FTRL, Kairouz et al., with --pools.sampling
  # epochs).
  mechanism: tuple[str, ...] = ('none',)
  # Standard deviation of the noise on the sum over clip, z. Above 0.
  noise_multiplier: tuple[float, ...] = _field((1.0,), _POSITIVE_ALL)
  # Clipping norm C, at first for adaptive_gaussian. Above 0.
  clip: tuple[float, ...] = _field((0.1,), _POSITIVE_ALL)
  # Quantile of the norms at which adaptive_gaussian clips, gamma.
  target_quantile: float = _field(0.5, _INNER_SHARE)
  # Learning rate of the clip of adaptive_gaussian, eta_C. Above 0.
  clip_learning_rate: float = _field(0.2, _POSITIVE)
  # Standard deviation of the noise on the count of clients below the clip of
  # adaptive_gaussian, sigma_b; above half of noise_multiplier. None takes a
  # twentieth of the cohort.
  clipped_count_stddev: Optional[float] = _optional(float, _POSITIVE)
  # Noise multiplier of the clients' training metrics, their loss and accuracy,
  # which are then released and accounted for. None releases none.
  metrics_noise_multiplier: Optional[float] = _optional(float, _POSITIVE)
  # Failure probability delta, which should be below one over the clients.
  delta: float = _field(1e-5, _DELTA)
  # Training ends before the worst client's epsilon exceeds it; None: never.
  max_epsilon: Optional[float] = _optional(float, _POSITIVE)
  # pld (privacy loss distributions) or rdp (Renyi).
  accountant: str = _field('pld', _one_of(*ACCOUNTANTS))
  # Draw the noise from the run's seed. Who knows the seed can then take the
  # noise off again: for tests of the program, not for people's data.
  reproducible_noise: bool = False

  @property
  def is_on(self) -> bool:
    """Whether any pool has a mechanism."""
    return any(name != 'none' for name in self.mechanism)


@dataclasses.dataclass(frozen=True)
class DistillationConfig(_Group):
  """One distillation pass of a student on the server's unlabelled data."""

  group: ClassVar[str] = 'distillation'

  # kl, cross_entropy (soft labels) or l2 (on logits).
  loss: str = 'kl'
  # Softmax temperature T. Above 0; larger is softer.
  temperature: float = _field(1.0, _POSITIVE)
  # Exponent a of the factor T^a on the loss: 2 (Hinton) keeps the gradient's
  # size independent of T; 0 leaves the loss as it is.
  temperature_exponent: int = _field(2, _one_of(0, 2))
  # Unlabelled examples in a distillation step. At least 1.
  batch_size: int = _field(128, _COUNT)
  # Decay rates of the distillation's Adam, in [0, 1).
  beta1: float = _field(0.9, _BELOW_ONE)
  beta2: float = _field(0.999, _BELOW_ONE)
  # Epsilon of the distillation's Adam. Above 0.
  epsilon: float = _field(1e-7, _POSITIVE)
  # Norm to which the gradient of a distillation step is clipped, over all
  # tensors. Above 0; None clips nothing.
  clip_norm: Optional[float] = _optional(float, _POSITIVE)
  # Whether student and teachers see inputs that are augmented anew in each
  # step, as the clients' are. Only for tasks that augment.
  augment: bool = False
  # Whether that Adam's state goes on from exchange to exchange. A reset Adam
  # with one step is sign descent.
  keep_optimizer_state: bool = True
  # How the logits of several teachers are averaged: equal, or by the number of
  # clients in the teacher's pool. Two pools have one teacher each.
  teacher_weighting: str = _field('equal', _one_of('equal', 'clients'))
  # Gate: a teacher whose accuracy on the validation set (in language tasks on
  # all tokens but padding) is lower teaches nobody in this exchange. None lets
  # all teach; needs task.validation_clients.
  min_teacher_accuracy: Optional[float] = _optional(float, _WEIGHT)
  # Gate: a teacher whose mean entropy on U, as a share of log C, is higher
  # teaches nobody in this exchange. None lets all teach.
  max_teacher_entropy: Optional[float] = _optional(float, _WEIGHT)


@dataclasses.dataclass(frozen=True)
class PeriodicConfig(_Group):
  """PERIODIC CODIST: a block of distillation steps every p rounds."""

  group: ClassVar[str] = 'periodic'

  # Rounds between two blocks, p. At least 1.
  period: int = _field(200, _COUNT)
  # Distillation steps in a block, s. At least 0.
  steps: int = _field(200, _COUNT_OR_0)
  # Learning rate of the distillation's Adam; its steps are applied as they
  # are. Above 0.
  learning_rate: float = _field(1e-3, _POSITIVE)


@dataclasses.dataclass(frozen=True)
class MergedConfig(_Group):
  """MERGED CODIST: distillation every round, merged before the server step."""

  group: ClassVar[str] = 'merged'

  # The interpolation factor alpha of each pool, in [0, 1]: it multiplies the
  # distillation pseudo-gradient, 1 - alpha the federated one.
  distillation_weight: tuple[float, ...] = _field((0.5,), _WEIGHT)
  # Distillation steps in a round. At least 1.
  steps: int = _field(1, _COUNT)
  # Learning rate of the distillation's Adam; the server optimizer multiplies
  # its steps. Above 0. With match_norm and a single step any rate is the same.
  learning_rate: float = _field(1e-5, _POSITIVE)
  # Rounds at the start in which alpha is 0. At least 0.
  warmup_rounds: int = _field(0, _COUNT_OR_0)
  # Give the distillation pseudo-gradient the norm of the federated one. Not for
  # training with differential privacy, where that is the norm of the noise.
  match_norm: bool = False
  # Divide the merged pseudo-gradient by 1 - alpha, so that distillation adds
  # to the federated step and does not shrink it. alpha must be below 1.
  rescale: bool = False

  def __post_init__(self):
    super().__post_init__()
    _require(
      not self.rescale or max(self.distillation_weight, default=0) < 1,
      'merged.distillation_weight',
      self.distillation_weight,
      'numbers below 1 together with --merged.rescale',
    )


@dataclasses.dataclass(frozen=True)
class FedDFConfig(_Group):
  """FedDF: the averages of the clients' models learn from their ensemble."""

  group: ClassVar[str] = 'fed_df'

  # Distillation steps in a round, N. At least 0.
  steps: int = _field(100, _COUNT_OR_0)
  # Learning rate of the distillation's Adam, at first. Above 0.
  learning_rate: float = _field(1e-3, _POSITIVE)
  # Whether it falls to 0 along a cosine over the N steps.
  anneal: bool = True
  # Whose logits a prototype learns: those of all clients, or of its own only.
  teachers: str = _field('all', _one_of('all', 'prototype'))
  # Which student is kept: the last one, or the best on the validation set, the
  # average before the first step among them.
  selection: str = _field('last', _one_of('last', 'best'))
  # Steps between two measurements on the validation set. At least 1.
  steps_per_validation: int = _field(100, _COUNT)
  # Steps without a better student after which distillation ends. At least 1.
  patience: int = _field(1000, _COUNT)
  # Leave out clients whose model is no better than 1.2 times chance on the
  # validation set.
  drop_worst: bool = False


@dataclasses.dataclass(frozen=True)
class DSFLConfig(_Group):
  """DS-FL: clients and server learn sharpened mean soft labels on open data."""

  group: ClassVar[str] = 'ds_fl'

  # How the clients' soft labels p become q: era (softmax of their mean over T),
  # simple (their mean), or power (their mean to the power of 1 / T, normalised;
  # not in the paper), which always sharpens.
  aggregation: str = _field('era', _one_of('era', 'simple', 'power'))
  # Temperature T of era and power, in (0, 1); smaller is sharper.
  temperature: float = _field(0.1, _INNER_SHARE)
  # Examples of U that are drawn in a round, |o_r|. At least 1, at most U.
  open_examples: int = _field(1000, _COUNT)
  # Passes over o_r in a distillation, by clients and server. At least 1.
  epochs: int = _field(5, _COUNT)
  # Examples in a step of a distillation. At least 1.
  batch_size: int = _field(100, _COUNT)
  # Learning rate of a distillation's SGD. Above 0.
  learning_rate: float = _field(0.1, _POSITIVE)


@dataclasses.dataclass(frozen=True)
class FDConfig(_Group):
  """FD: clients exchange their mean answer to each label."""

  group: ClassVar[str] = 'fd'

  # Weight of the cross-entropy with the others' mean answer, gamma. At least
  # 0, which is training alone.
  gamma: float = _field(1.0, _NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class FedMDConfig(_Group):
  """FedMD: clients with models of their own agree on logits of public data."""

  group: ClassVar[str] = 'fed_md'

  # Public examples on which the clients of a round agree, |d_j|; all of them if
  # they are fewer. At least 1.
  alignment_size: int = _field(5000, _COUNT)
  # Weight c of the clients of each pool in the consensus, relative to the
  # others'. At least 0, and not 0 everywhere.
  consensus_weights: tuple[float, ...] = _field((1.0,), _NOT_NEGATIVE_ALL)
  # Learning rate of all Adams. Above 0.
  learning_rate: float = _field(1e-3, _POSITIVE)
  # Passes over d_j that digest the consensus. At least 0; with 0 nobody learns
  # from anybody.
  digest_epochs: int = _field(1, _COUNT_OR_0)
  # Examples in a step of the digestion, b_d. At least 1.
  digest_batch_size: int = _field(256, _COUNT)
  # Passes over the public data before the first round, at most. At least 0.
  warmup_epochs: int = _field(20, _COUNT_OR_0)
  # Public examples in a step of them. At least 1.
  warmup_batch_size: int = _field(128, _COUNT)
  # They end after so many passes in a row without a gain, at least 1 ...
  warmup_patience: int = _field(3, _COUNT)
  # ... of more than this in accuracy on public examples set aside. In [0, 1).
  warmup_min_gain: float = _field(1e-3, _BELOW_ONE)
  # Share of the public examples that is set aside for it. In (0, 1).
  validation_fraction: float = _field(0.1, _INNER_SHARE)
  # Passes over a client's own examples when it joins. At least 0.
  transfer_epochs: int = _field(25, _COUNT_OR_0)
  # Examples in a step of them. At least 1.
  transfer_batch_size: int = _field(32, _COUNT)

  def __post_init__(self):
    super().__post_init__()
    _require(
      any(self.consensus_weights),
      'fed_md.consensus_weights',
      self.consensus_weights,
      'at least one number above 0',
    )


@dataclasses.dataclass(frozen=True)
class PublicPrivateConfig(_Group):
  """Tasks with public data, and a few clients with a little private data."""

  group: ClassVar[str] = 'public_private'

  # Clients that train. At least 1.
  clients: int = _field(10, _COUNT)
  # How the private data is split over them: iid; or non_iid, by writers or by
  # subclasses.
  split: str = _field('iid', _one_of('iid', 'non_iid'))
  # Private examples that a client has of each class. At least 1; None takes 3.
  # Not for writers, who have what they wrote.
  examples_per_class: Optional[int] = _optional(int, _COUNT)
  # A single client that has the data of all: the upper bound.
  pooled: bool = False
  # Public examples at most, the first ones; None takes all.
  public_examples: Optional[int] = _optional(int, _COUNT)


@dataclasses.dataclass(frozen=True)
class FedAUXConfig(_Group):
  """FedAUX: pre-training on U, and an ensemble weighted by certainty scores.

  The fields of its distillation are those of `fed_df`, without `anneal`.
  """

  group: ClassVar[str] = 'fed_aux'

  # Passes of the autoencoders over U before the first round. At least 0; 0
  # leaves the extractors as they were drawn.
  pretraining_epochs: int = _field(10, _COUNT_OR_0)
  # Learning rate of the autoencoders' Adam. Above 0.
  pretraining_learning_rate: float = _field(1e-3, _POSITIVE)
  # Standard deviation of the noise that an autoencoder takes off its inputs, in
  # their unit. At least 0.
  pretraining_noise: float = _field(0.1, _NOT_NEGATIVE)
  # Share of U that stands for what no client has, U^-; the rest is distilled
  # on. (0, 1).
  negatives_fraction: float = _field(0.2, _INNER_SHARE)
  # Regularisation of the clients' logistic regression, of its mean loss,
  # lambda. Above 0.
  regularization: float = _field(0.01, _POSITIVE)
  # Differential privacy of a client's certainty scores, epsilon, of one release
  # for each pool that it is in. (0, 1], or inf, which adds no noise.
  epsilon: float = _field(
    0.1,
    _Range('a number in (0, 1], or inf', lambda v: 0 < v <= 1 or v == math.inf),
  )
  # Its delta, which should be below one over the client's examples.
  delta: float = _field(1e-5, _DELTA)
  # Draw the scores' noise from the run's seed. Who knows the seed can then take
  # it off again: for tests of the program, not for people's data.
  reproducible_noise: bool = False


@dataclasses.dataclass(frozen=True)
class FAugConfig(_Group):
  """FAug: a generator from the clients' seed samples balances their labels."""

  group: ClassVar[str] = 'f_aug'

  # A label is lacking on a client, a target, if it has at most so many examples
  # of it. At least 1.
  lacking_examples: int = _field(5, _COUNT)
  # Seed samples that a client uploads of each label. At least 1.
  seed_samples: int = _field(5, _COUNT)
  # Labels that are not lacking of which it uploads seeds as well. At least 0.
  redundant_labels: int = _field(0, _COUNT_OR_0)
  # Training steps of the generator. At least 1.
  steps: int = _field(2000, _COUNT)
  # Seeds in a step. At least 1.
  batch_size: int = _field(64, _COUNT)
  # Learning rate of its Adam. Above 0.
  learning_rate: float = _field(2e-4, _POSITIVE)


@dataclasses.dataclass(frozen=True)
class RuntimeConfig(_Group):
  """What executes the federated computations."""

  group: ClassVar[str] = 'runtime'

  # in_process: compiled into TensorFlow functions of this process, on CPU or
  # GPU. stock: TFF's own C++ worker, on the CPU.
  name: str = 'in_process'
  # Where in_process trains clients: auto (the first GPU, or else the CPU), cpu,
  # gpu, gpu:N for the one of this number, or gpu:all to share each cohort.
  device: str = 'auto'
  # Whether a computation that in_process cannot compile is an error. Otherwise
  # it runs on TFF's worker, with a warning.
  strict: bool = False

  @property
  def options(self) -> dict[str, Any]:
    """What the runtime is told: the fields that are not as by default."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != 'name' and getattr(self, field.name) != field.default
    }


@dataclasses.dataclass(frozen=True)
class ProgramConfig(_Group):
  """The training loop."""

  group: ClassVar[str] = 'program'

  # Rounds of training, numbered from 1. At least 1.
  rounds: int = _field(100, _COUNT)
  # Every so many rounds, and after the last, all models are evaluated.
  rounds_per_evaluation: int = _field(10, _COUNT)
  # Every so many rounds, and at the end, a checkpoint is written.
  rounds_per_checkpoint: int = _field(10, _COUNT)
  # Checkpoints kept, the newest ones. At least 2, so that one can be corrupt.
  checkpoints_kept: int = _field(3, _AT_LEAST_2)
  # On whom the models are evaluated: test clients, or, to choose
  # hyperparameters, task.validation_clients; then no test client is loaded.
  evaluate_on: str = _field('test', _one_of(*EVALUATED_ON))
  # How many of them, a fixed sample drawn by the seed; None takes all.
  evaluation_clients: Optional[int] = _optional(int, _COUNT)
  # Clients of each pool whose own models are evaluated, a fixed sample; for
  # algorithms that train a model for each client. At least 1.
  evaluation_models: int = _field(10, _COUNT)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that determines a run's numbers.

  Raises:
    ConfigError: If a value is outside its range, or values contradict.
  """

  task: TaskConfig = TaskConfig()
  text: TextConfig = TextConfig()
  unlabelled: UnlabelledConfig = UnlabelledConfig()
  pools: PoolsConfig = PoolsConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  client: ClientConfig = ClientConfig()
  server: ServerConfig = ServerConfig()
  privacy: PrivacyConfig = PrivacyConfig()
  distillation: DistillationConfig = DistillationConfig()
  periodic: PeriodicConfig = PeriodicConfig()
  merged: MergedConfig = MergedConfig()
  fed_df: FedDFConfig = FedDFConfig()
  fed_aux: FedAUXConfig = FedAUXConfig()
  ds_fl: DSFLConfig = DSFLConfig()
  fd: FDConfig = FDConfig()
  f_aug: FAugConfig = FAugConfig()
  fed_md: FedMDConfig = FedMDConfig()
  public_private: PublicPrivateConfig = PublicPrivateConfig()
  runtime: RuntimeConfig = RuntimeConfig()
  program: ProgramConfig = ProgramConfig()
  # Seed of every random choice of the run.
  seed: int = 1


def change(config: Config, **groups: Mapping[str, Any]) -> Config:
  """Returns a configuration with some fields of some groups changed.

  Args:
    config: The configuration to start from.
    **groups: For each group's name its new values by field.

  Raises:
    ConfigError: If a value is outside its range, or values contradict.
  """
  return dataclasses.replace(
    config,
    **{
      name: dataclasses.replace(getattr(config, name), **fields)
      for name, fields in groups.items()
    },
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


def switch(name: str, is_on: bool) -> str:
  """Returns the flag that sets a field that is true or false."""
  group, dot, leaf = name.rpartition('.')
  return f'--{group}{dot}{"" if is_on else "no"}{leaf}'


def fields_by_flag() -> dict[str, str]:
  """Returns the full name of the field that each flag sets."""
  fields = flatten(Config())
  by_flag = {f'--{name}': name for name in fields}
  for name, value in fields.items():
    if isinstance(value, bool):
      by_flag[switch(name, False)] = name
  return by_flag


def in_words(different: Mapping[str, tuple[object, object]]) -> str:
  """Returns fields that differ, with the values there and now.

  Args:
    different: By name both values, as `differences` has them.
  """
  return '; '.join(
    f'{name}: {theirs!r} there, {ours!r} now'
    for name, (theirs, ours) in different.items()
  )


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
      this version, with those that it lacks and those that are unknown.
  """
  try:
    values = json.loads(text)
  except json.JSONDecodeError as error:
    raise errors.ConfigError(
      f'a configuration that is no JSON ({error})',
      expected='a config.json written by bin/train.py',
      fix='start the run again in another folder',
    ) from error
  if not isinstance(values, dict):
    raise errors.ConfigError(
      f'a configuration that is a JSON {type(values).__name__}',
      expected='a config.json written by bin/train.py',
      fix='start the run again in another folder',
    )
  lacking, unknown = _other_fields(Config, values)
  if lacking or unknown:
    parts = [
      f'{what} {", ".join(names)}'
      for what, names in (('without', lacking), ('with unknown', unknown))
      if names
    ]
    raise errors.ConfigError(
      f'a configuration {" and ".join(parts)}',
      expected='exactly the fields of this version of the package',
      fix='use the version that wrote this run',
    )
  return _from_dict(Config, values)


def _other_fields(
  cls: type, values: Mapping[str, Any], prefix: str = ''
) -> tuple[list[str], list[str]]:
  """Returns the full names of fields that values lack, and of unknown ones.

  A group that is missing as a whole, or is none, counts as one field.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  lacking = [f'{prefix}{name}' for name in fields if name not in values]
  unknown = [f'{prefix}{name}' for name in values if name not in fields]
  for name, field in fields.items():
    if name in values and dataclasses.is_dataclass(field.type):
      if isinstance(values[name], dict):
        more = _other_fields(field.type, values[name], f'{prefix}{name}.')
        lacking += more[0]
        unknown += more[1]
      else:
        lacking.append(f'{prefix}{name}')
  return lacking, unknown


def _from_dict(cls: type, values: Mapping[str, Any]) -> Any:
  """Builds a dataclass of the tree from its JSON form, field by field."""
  arguments = {}
  for field in dataclasses.fields(cls):
    value = values[field.name]
    if dataclasses.is_dataclass(field.type):
      value = _from_dict(field.type, value)
    elif isinstance(value, list):
      value = tuple(value)
    arguments[field.name] = value
  return cls(**arguments)
