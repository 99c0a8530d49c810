"""What a task provides: data, preprocessing and models."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Optional, Protocol

import numpy as np
import tensorflow as tf

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import registry


class Preprocess(Protocol):
  """Turns a batch of raw inputs into a model's inputs, in a graph."""

  def __call__(
    self, x: tf.Tensor, seed: Optional[tf.Tensor] = None
  ) -> tf.Tensor:
    """Returns model inputs.

    Args:
      x: Raw inputs `[batch, ...]` as stored, e.g. uint8 images.
      seed: int32 `[2]` for the random augmentation of training, stateless;
        `None` gives the deterministic form of evaluation and distillation.
    """


class ForeignInputs(Protocol):
  """Makes raw inputs of a task from data that are not the task's own.

  Attributes:
    feature: Name of the feature in a TFDS set: 'image' or 'text'.
  """

  feature: str

  def convert(self, items: list) -> np.ndarray:
    """Returns raw inputs `[examples, ...]`.

    Args:
      items: Images, uint8 `[height, width, 1 or 3]`, or sentences, `str`.

    Raises:
      DataError: If an item cannot be made an input.
    """

  def noise(self, rng: np.random.Generator, num_examples: int) -> np.ndarray:
    """Returns raw inputs, uniform over all that there could be."""


class Task(NamedTuple):
  """A learning problem on clients.

  Attributes:
    name: The task's name.
    num_classes: Length of a logits vector, C.
    train: The training clients.
    test: The test clients.
    preprocess: From raw to model inputs.
    models: For each model name, a function that builds the Keras model; what
      `--pools.models` chooses from.
    pad_id: Label of padding, which counts nowhere; `None` without padding. A
      task with padding is a language task: its inputs are tokens, its labels
      the next ones.
    eos_id: Token at the end of a sentence, after which nothing is predicted;
      `None` without one.
    uncounted_labels: For each further accuracy of the evaluation, by its name,
      the labels beside padding that it leaves out.
    domains: Names of the domains; the clients' examples then have a `domain`,
      an index into them. Empty if the task has none.
    client_domain: From a client's id to its domain's index, if all examples of
      a client are in one domain; `None` if only the examples know.
    held_out: Clients that the data set holds out for the server; `None` if it
      has none.
    foreign: Makes inputs from other data sets and from noise; `None` if that
      has no meaning.
    own_datasets: Names of TFDS sets with the task's own examples, among them
      those of its test; they are refused as distillation data.
    public: Labelled examples `<x, y>` that the server and all clients have;
      `None` if there are none.
    augments: Whether `preprocess` augments when it has a seed.
  """

  name: str
  num_classes: int
  train: clients.ClientData
  test: clients.ClientData
  preprocess: Preprocess
  models: Mapping[str, Callable[[], tf.keras.Model]]
  pad_id: Optional[int] = None
  eos_id: Optional[int] = None
  uncounted_labels: Mapping[str, tuple] = MappingProxyType({})
  domains: tuple = ()
  client_domain: Optional[Callable[[str], int]] = None
  held_out: Optional[clients.ClientData] = None
  foreign: Optional[ForeignInputs] = None
  own_datasets: tuple = ()
  public: Optional[clients.Examples] = None
  augments: bool = False

  @property
  def padding(self) -> tuple[int, ...]:
    """Labels that count nowhere."""
    return () if self.pad_id is None else (self.pad_id,)

  @property
  def last_tokens(self) -> tuple[int, ...]:
    """Input tokens after which nothing is predicted."""
    return self.padding + (() if self.eos_id is None else (self.eos_id,))

  def domain_indices(self, names: Sequence[str]) -> tuple[int, ...]:
    """Returns domains' indices, as in the `domain` of the examples.

    Raises:
      UnknownNameError: If the task has no such domain, with the nearest.
    """
    if names and not self.domains:
      raise errors.ConfigError(
        f'domain {names[0]!r} for task {self.name!r}, which has no domains',
        expected='all',
        fix='leave out --pools.domains and --unlabelled.domains',
      )
    for name in names:
      if name not in self.domains:
        raise errors.UnknownNameError(
          f'domain of task {self.name}', name, self.domains
        )
    return tuple(map(self.domains.index, names))


LoadTaskFn = Callable[[config_lib.Config], Task]
PresetFn = Callable[[bool], config_lib.Config]

# Functions `config -> Task`.
tasks: registry.Registry[LoadTaskFn] = registry.Registry('task')
# Functions `quick -> Config`; `quick` gives a smoke form of seconds.
presets: registry.Registry[PresetFn] = registry.Registry('preset')
