"""The server's unlabelled distillation data U: its sources and its stream.

U is a fixed set of raw inputs. It comes from one or several sources, mixed in
given proportions: clients that are set aside, other data sets, a frozen
generator, noise. Labels end in this file: every source returns inputs only, and
nothing behind `UnlabelledData` ever holds a label.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import pools
from tff_codist import randomness
from tff_codist import task as task_lib
from tff_codist import tfds_sets

# Examples of clients are drawn from those of as many clients as have so many
# together, so that a few do not all come from one client.
_DRAWN_FROM = 20000
# Images that a generator makes in one call, which bounds memory.
_GENERATED_AT_ONCE = 256
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601.


class UnlabelledData:
  """The distillation data as a stream of reshuffled epochs.

  Attributes:
    x: Raw inputs `[examples, ...]`.
    origin: {source: its examples in `x`}.
  """

  def __init__(
    self,
    x: np.ndarray,
    *,
    seed: int,
    origin: Optional[Mapping[str, int]] = None,
  ):
    """Wraps inputs that are already without labels.

    Args:
      x: Raw inputs `[examples, ...]`, at least one.
      seed: The run's seed; it decides the order of the examples.
      origin: {source: its examples in `x`}, for reports.

    Raises:
      DataError: If there is no example.
    """
    if not len(x):
      raise errors.DataError(
        'distillation data without an example',
        expected='at least one unlabelled example at the server',
        fix='choose other --unlabelled.sources or --unlabelled.domains',
      )
    self.x = x
    self.origin = dict(origin or {})
    self._seed = seed

  def sample(self, num_examples: int) -> np.ndarray:
    """Returns a fixed sample of U, all of it if it is smaller."""
    rng = randomness.derive_rng(self._seed, 'distillation', 'sample')
    return self.x[np.sort(rng.permutation(len(self.x))[:num_examples])]

  def batches(
    self, first_step: int, num_steps: int, batch_size: int
  ) -> np.ndarray:
    """Returns the batches of some distillation steps.

    The data is passed over in epochs, each shuffled by the seed and its
    number; the position in it depends on `first_step` only, so a resumed run
    sees the same batches.

    Args:
      first_step: Number of distillation steps before these.
      num_steps: Steps to return.
      batch_size: Examples in a step.

    Returns:
      Raw inputs `[num_steps, batch_size, ...]`.
    """
    n = len(self.x)
    start = first_step * batch_size
    epochs, offsets = np.divmod(
      np.arange(start, start + num_steps * batch_size), n
    )
    order = {
      epoch: randomness.derive_rng(
        self._seed, 'distillation', int(epoch)
      ).permutation(n)
      for epoch in np.unique(epochs)
    }
    rows = np.array(
      [order[e][o] for e, o in zip(epochs, offsets)], dtype=np.int64
    )
    return self.x[rows].reshape(num_steps, batch_size, *self.x.shape[1:])


class Images:
  """Images of other data sets, and noise, as raw inputs of an image task.

  A `task.ForeignInputs`. Another size is resized bilinearly, with
  antialiasing; colour becomes grey by its luma (ITU-R BT.601); grey is
  repeated over the channels.
  """

  feature = 'image'

  def __init__(
    self, shape: Sequence[int], *, high: int = 255, invert: bool = False
  ):
    """Says what the task's images are.

    Args:
      shape: `(height, width, channels)`, with 1 or 3 channels.
      high: Largest pixel of the task; a foreign 255 becomes it.
      invert: Whether ink is dark on a bright ground in the task, where other
        sets have it bright on a dark one.
    """
    self._shape = tuple(shape)
    self._high = high
    self._invert = invert

  def convert(self, items: list) -> np.ndarray:
    """Returns uint8 images `[examples, *shape]`.

    Args:
      items: Images, uint8 `[height, width, 1 or 3]`.

    Raises:
      DataError: If an item is no such image.
    """
    return np.stack([self._convert(image) for image in items])

  def noise(self, rng: np.random.Generator, num_examples: int) -> np.ndarray:
    """Returns images with independent uniform pixels."""
    return rng.integers(
      self._high,
      size=(num_examples, *self._shape),
      dtype=np.uint8,
      endpoint=True,
    )

  def _convert(self, image: np.ndarray) -> np.ndarray:
    is_image = image.ndim == 3 and image.shape[-1] in (1, 3)
    if not is_image or image.dtype != np.uint8:
      raise errors.DataError(
        f'an image of shape {image.shape} and type {image.dtype}',
        expected='uint8 [height, width, 1 or 3]',
        fix='choose another set for --unlabelled.sources',
      )
    *size, channels = self._shape
    pixels = image.astype(np.float32)
    if channels < image.shape[-1]:
      pixels = (pixels @ _LUMA)[..., np.newaxis]
    if list(image.shape[:2]) != size:
      pixels = tf.image.resize(pixels, size, antialias=True).numpy()
    pixels = np.broadcast_to(pixels, self._shape)
    if self._invert:
      pixels = 255 - pixels
    return (
      np.rint(pixels * (self._high / 255)).clip(0, self._high).astype(np.uint8)
    )


def check_sources(config: config_lib.UnlabelledConfig) -> None:
  """Checks the names of the sources, before any data is loaded.

  Raises:
    UnknownNameError: If a source is unknown, with the nearest one.
    ConfigError: If a source is the test clients, which would make every
      accuracy worthless.
  """
  known = (
    'none',
    'clients',
    'held_out',
    'noise',
    'tfds:NAME',
    'generator:FILE.keras',
    'text:FILE',
  )
  for source in config.sources:
    kind, _, argument = source.partition(':')
    if kind == 'test':
      raise errors.ConfigError(
        'test data as distillation data',
        expected='data on which no model is evaluated',
        fix='choose clients, held_out or another data set with '
        '--unlabelled.sources',
      )
    # Names with an argument have it, the others have none.
    if bool(argument) != (kind in ('tfds', 'generator', 'text')) or not any(
      kind == name.partition(':')[0] for name in known
    ):
      raise errors.UnknownNameError(
        'source of distillation data', source, known
      )


def clients_set_aside(
  task: task_lib.Task, config: config_lib.UnlabelledConfig, *, seed: int
) -> tuple[str, ...]:
  """Returns the training clients that give their inputs to U, sorted.

  Chosen by a seeded hash of the client id, whatever the weight of the source
  `clients` is; none without it.
  """
  if 'clients' not in config.sources:
    return ()
  ids = task.train.client_ids
  count = pools.count_of(config.clients_fraction, len(ids))
  return pools.draw(ids, count, seed=seed, purpose='distillation')


def build_unlabelled(
  task: task_lib.Task,
  config: config_lib.UnlabelledConfig,
  *,
  client_ids: Sequence[str],
  seed: int,
) -> Optional[UnlabelledData]:
  """Builds U.

  The sources stand in U in the proportions of `config.weights`, rounded down to
  whole examples; one of weight 0 is not read. The scarcest of them, or
  `config.max_examples`, decides how many there are. Which examples of clients
  is drawn by the seed; of TFDS sets, which are shuffled when they are prepared,
  and of text files it is the first. A generator makes as many as are needed,
  from latent vectors that are drawn by the seed.

  Args:
    task: The task.
    config: The sources, and how much of them.
    client_ids: The training clients that are set aside for U.
    seed: The run's seed.

  Returns:
    U; `None` for the source `none`.

  Raises:
    ConfigError: If the task cannot use a source.
    DataNotFoundError: If a data set or file is not there.
    DataError: If a source has no example.
  """
  if config.sources == ('none',):
    return None
  shares = config.shares
  parts = {
    source: _load_source(
      source,
      task,
      config,
      client_ids=client_ids,
      num_examples=math.ceil(share * config.max_examples),
      seed=seed,
    )
    for source, share in shares.items()
  }
  total = min(
    config.max_examples,
    *(len(parts[source]) / share for source, share in shares.items()),
  )
  for source, share in shares.items():
    count = int(share * total + 1e-9)
    if not count:
      raise errors.ConfigError(
        f'no place for {source!r} among {total:.0f} unlabelled examples',
        expected='weights and sources that give each at least one',
        fix='change --unlabelled.weights, --unlabelled.max_examples or the '
        'sources',
      )
    parts[source] = parts[source][:count]
  return UnlabelledData(
    np.concatenate(list(parts.values())),
    seed=seed,
    origin={source: len(x) for source, x in parts.items()},
  )


def _load_source(
  source: str,
  task: task_lib.Task,
  config: config_lib.UnlabelledConfig,
  *,
  client_ids: Sequence[str],
  num_examples: int,
  seed: int,
) -> np.ndarray:
  """Returns raw inputs of one source, at most so many, in a drawn order."""
  kind, _, argument = source.partition(':')
  rng = randomness.derive_rng(seed, 'distillation', 'source', source)
  if kind in ('clients', 'held_out'):
    data = task.train.subset(client_ids) if kind == 'clients' else task.held_out
    if data is None:
      raise _not_for(source, task)
    x = _inputs_of_clients(
      data, task.domain_indices(config.domains), num_examples, seed=seed
    )
  elif task.foreign is None:
    raise _not_for(source, task)
  elif kind == 'noise':
    return task.foreign.noise(rng, num_examples)
  elif kind == 'tfds':
    x = task.foreign.convert(_read_tfds(argument, task, num_examples))
  elif task.foreign.feature != {'generator': 'image', 'text': 'text'}[kind]:
    raise _not_for(source, task)
  elif kind == 'generator':
    return task.foreign.convert(_generate(argument, rng, num_examples))
  else:
    x = task.foreign.convert(_read_text(argument, num_examples))
  if not len(x):
    raise errors.DataError(
      f'no example from {source!r}',
      expected='at least one unlabelled example of each source',
      fix='choose other --unlabelled.sources or --unlabelled.domains',
    )
  return x[rng.permutation(len(x))[:num_examples]]


def _inputs_of_clients(
  data: clients.ClientData,
  domains: Sequence[int],
  num_examples: int,
  *,
  seed: int,
) -> np.ndarray:
  """Returns the inputs of enough clients, more than the number to be drawn."""
  parts, missing = [], max(num_examples, _DRAWN_FROM)
  for client_id in pools.ranked(
    data.client_ids, seed=seed, purpose='distillation'
  ):
    if missing <= 0:
      break
    examples = data.load(client_id)
    parts.append(examples['x'][clients.domain_rows(examples, domains)])
    missing -= len(parts[-1])
  return np.concatenate(parts) if parts else np.empty(0)


def _read_tfds(name: str, task: task_lib.Task, num_examples: int) -> list:
  """Returns images or sentences of a prepared TFDS set, nothing else of it."""
  feature = task.foreign.feature
  builder = tfds_sets.open_set(name, fix='correct --unlabelled.sources')
  if builder.name in task.own_datasets:
    raise errors.ConfigError(
      f'tfds:{name} as distillation data of {task.name!r}',
      expected='another data set: this one has the examples of the task, those '
      'of its test among them',
      fix='choose clients with --unlabelled.sources',
    )
  if feature not in builder.info.features:
    raise errors.ConfigError(
      f'data set {name!r} without {feature}s',
      expected=f'a TFDS set with the feature {feature!r}',
      fix='correct --unlabelled.sources',
    )
  items = tfds_sets.read(builder, [feature], num_examples)[feature]
  if feature == 'text':
    items = [item.decode('utf-8', 'replace') for item in items]
  return items


def _generate(
  path: str, rng: np.random.Generator, num_examples: int
) -> np.ndarray:
  """Returns images of a frozen generator, uint8 `[examples, height, width, c]`.

  Args:
    path: A Keras model from latent vectors `[batch, size]`, which are drawn
      from N(0, I), to images `[batch, height, width, 1 or 3]` in [0, 1].
    rng: Draws the latent vectors.
    num_examples: Images to make.

  Raises:
    DataNotFoundError: If there is no such file, or it holds no Keras model.
    DataError: If the model does not map latent vectors to such images.
  """
  generator = _load_generator(path)
  latent = rng.standard_normal(
    (num_examples, generator.input_shape[-1]), np.float32
  )
  images = np.concatenate(
    [
      generator(latent[i : i + _GENERATED_AT_ONCE], training=False).numpy()
      for i in range(0, num_examples, _GENERATED_AT_ONCE)
    ]
  )
  # False also if a pixel is not a number.
  if not (images.min() >= 0 and images.max() <= 1):
    raise _not_a_generator(
      f'pixels from {images.min():.3g} to {images.max():.3g} from {path}',
      'end a generator whose pixels are in [-1, 1] with '
      'tf.keras.layers.Rescaling(0.5, 0.5)',
    )
  return np.rint(images * 255).astype(np.uint8)


def _load_generator(path: str) -> tf.keras.Model:
  """Returns the model of a file, with inputs and outputs of the right shape."""
  if not os.path.isfile(path) or not path.endswith('.keras'):
    raise errors.DataNotFoundError(
      f'no generator in {path}',
      expected='a file NAME.keras, which Keras has written',
      fix='correct --unlabelled.sources',
    )
  try:
    # Safe: a file cannot bring code of its own.
    generator = tf.keras.models.load_model(path, compile=False, safe_mode=True)
  except Exception as error:  # A damaged file can raise anything.
    reason = str(error).partition('\n')[0].partition('. ')[0]
    raise errors.DataError(
      f'a generator in {path} that Keras does not load ({reason})',
      expected="a file .keras with Keras's own layers, without Lambda",
      fix='save the generator again, with model.save(FILE.keras)',
    ) from error
  inputs, outputs = generator.input_shape, generator.output_shape
  # Models with several inputs or outputs have lists of shapes.
  is_generator = (
    isinstance(inputs, tuple)
    and isinstance(outputs, tuple)
    and len(inputs) == 2
    and len(outputs) == 4
    and outputs[-1] in (1, 3)
    and generator.inputs[0].dtype == tf.float32
  )
  if not is_generator or None in (*inputs[1:], *outputs[1:]):
    raise _not_a_generator(
      f'a model from {inputs} to {outputs} in {path}',
      'choose an unconditional generator of images',
    )
  return generator


def _not_a_generator(found: str, fix: str) -> errors.DataError:
  return errors.DataError(
    found,
    expected='a model from latent vectors, float32 [batch, size], to images '
    '[batch, height, width, 1 or 3] with pixels in [0, 1]',
    fix=fix,
  )


def _read_text(path: str, num_examples: int) -> list[str]:
  """Returns the first sentences of a file, one a line."""
  try:
    with open(path, encoding='utf-8') as file:
      sentences = (line.strip() for line in file)
      return list(itertools.islice(filter(None, sentences), num_examples))
  except Exception as error:  # A damaged file can raise anything.
    raise errors.DataNotFoundError(
      f'no readable text file {path} ({error})',
      expected='a file in UTF-8 with one sentence a line',
      fix='correct --unlabelled.sources',
    ) from error


def _not_for(source: str, task: task_lib.Task) -> errors.ConfigError:
  return errors.ConfigError(
    f'distillation data from {source!r} for task {task.name!r}',
    expected='a source that this task can use',
    fix='choose others with --unlabelled.sources',
  )
