"""What a task provides: data, preprocessing and models."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional, Protocol

import tensorflow as tf

from tff_codist import clients
from tff_codist import config as config_lib
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


class Task(NamedTuple):
  """A learning problem on clients.

  Attributes:
    name: The task's name.
    num_classes: Length of a logits vector.
    train: The training clients, distillation clients among them.
    test: The test clients.
    preprocess: From raw to model inputs.
    models: For each model name, a function that builds the Keras model; what
      `--pools.models` chooses from.
    pad_id: Label of padding, which counts nowhere; `None` without padding.
  """

  name: str
  num_classes: int
  train: clients.ClientData
  test: clients.ClientData
  preprocess: Preprocess
  models: Mapping[str, Callable[[], tf.keras.Model]]
  pad_id: Optional[int] = None


LoadTaskFn = Callable[[config_lib.TaskConfig, int], Task]
PresetFn = Callable[[bool], config_lib.Config]

# Functions `(config, seed) -> Task`.
tasks: registry.Registry[LoadTaskFn] = registry.Registry('task')
# Functions `(quick) -> Config`; `quick` gives a smoke form of seconds.
presets: registry.Registry[PresetFn] = registry.Registry('preset')
