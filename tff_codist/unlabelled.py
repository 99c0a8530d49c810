"""The server's unlabelled distillation data U: its sources and its stream.

U is a fixed set of raw inputs. It comes from one or several sources, mixed in
given proportions: clients that are set aside, other data sets, noise. Labels
end in this file: every source returns inputs only, and nothing behind
`UnlabelledData` ever holds a label.
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

# Examples of clients are drawn from those of as many clients as have so many
# together, so that a few do not all come from one client.
_DRAWN_FROM = 20000
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
  known = ('none', 'clients', 'held_out', 'noise', 'tfds:NAME', 'text:FILE')
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
    if bool(argument) != (kind in ('tfds', 'text')) or not any(
      kind == name.partition(':')[0] for name in known
    ):
      raise errors.UnknownNameError(
        'source of distillation data', source, known
      )


def clients_set_aside(
  task: task_lib.Task, config: config_lib.UnlabelledConfig, *, seed: int
) -> tuple[str, ...]:
  """Returns the training clients that give their inputs to U, sorted.

  Chosen by a seeded hash of the client id; none without the source `clients`.
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
  whole examples; the scarcest of them, or `config.max_examples`, decides how
  many there are. Which examples of clients is drawn by the seed; of TFDS sets,
  which are shuffled when they are prepared, and of text files it is the first.

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
  weights = np.broadcast_to(config.weights, len(config.sources))
  shares = weights / weights.sum()
  parts = {
    source: _load_source(
      source,
      task,
      config,
      client_ids=client_ids,
      num_examples=math.ceil(share * config.max_examples),
      seed=seed,
    )
    for source, share in zip(config.sources, shares)
  }
  total = min(
    config.max_examples,
    *(len(x) / share for x, share in zip(parts.values(), shares)),
  )
  for (source, x), share in zip(parts.items(), shares):
    count = int(share * total + 1e-9)
    if not count:
      raise errors.ConfigError(
        f'no place for {source!r} among {total:.0f} unlabelled examples',
        expected='weights and sources that give each at least one',
        fix='change --unlabelled.weights, --unlabelled.max_examples or the '
        'sources',
      )
    parts[source] = x[:count]
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
  else:
    if task.foreign.feature != 'text':
      raise _not_for(source, task)
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
  import tensorflow_datasets as tfds  # It takes two seconds to import.

  feature = task.foreign.feature
  try:
    builder = tfds.builder(
      name, data_dir=os.environ.get('TFDS_DATA_DIR') or None
    )
    is_fit = feature in builder.info.features
  # The last is TFDS's answer to a version that it does not know.
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    reason = str(error).partition('\n')[0]
    raise errors.ConfigError(
      f'no data set {name!r} in TFDS ({reason})',
      expected='the name of a TFDS set',
      fix='correct --unlabelled.sources',
    ) from error
  if builder.name in task.own_datasets:
    raise errors.ConfigError(
      f'tfds:{name} as distillation data of {task.name!r}',
      expected='another data set: this one has the examples of the task, those '
      'of its test among them',
      fix='choose clients with --unlabelled.sources',
    )
  if not is_fit:
    raise errors.ConfigError(
      f'data set {name!r} without {feature}s',
      expected=f'a TFDS set with the feature {feature!r}',
      fix='correct --unlabelled.sources',
    )
  if 'train' not in builder.info.splits:
    raise errors.DataNotFoundError(
      f'no prepared TFDS set in {builder.data_dir}',
      expected='the set with its training split, prepared once; nothing is '
      'downloaded here',
      fix='run: python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{name}').download_and_prepare()\", or name the directory "
      'that has it with TFDS_DATA_DIR',
    )
  # A partial decoding: the labels are not even parsed.
  dataset = builder.as_dataset(
    split='train', decoders=tfds.decode.PartialDecoding({feature: True})
  )
  try:
    items = [
      item[feature] for item in tfds.as_numpy(dataset.take(num_examples))
    ]
  except tf.errors.OpError as error:
    raise errors.DataError(
      f'a damaged TFDS set in {builder.data_dir} ({error.message})',
      expected='the files as TFDS prepared them',
      fix='delete that folder and prepare the set again',
    ) from error
  if feature == 'text':
    items = [item.decode('utf-8', 'replace') for item in items]
  return items


def _read_text(path: str, num_examples: int) -> list[str]:
  """Returns the first sentences of a file, one a line."""
  try:
    with open(path, encoding='utf-8') as file:
      sentences = (line.strip() for line in file)
      return list(itertools.islice(filter(None, sentences), num_examples))
  except (OSError, UnicodeDecodeError) as error:
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
