"""Tasks of FedMD: public data of some classes, private data of others.

`mnist_letters` has MNIST as public data, and of each client letters A to F of
TFF's federated EMNIST, both cases in one class, as in the set EMNIST Letters.
`cifar_subclasses` has CIFAR-10 as public data, and of each client images of six
classes of CIFAR-100. Logits cover the 10 public and the 6 private classes, the
private ones behind. All clients are tested on one set, the private classes of
the data set's test split.

Private data is scarce: three images of each class by default. With
`public_private.split iid` clients have images of the same classes, drawn by the
seed. With `non_iid`, a client of `mnist_letters` is a writer with at least 18
letters; a client of `cifar_subclasses` has images of one subclass of each of
six superclasses, which are its private classes, and is tested on all of their
subclasses.

Pixels are divided by 255, minus the mean image of the public data.

The ten networks are those of the paper and of the authors' code, with GroupNorm
in place of batch normalisation, without dropout and L2 penalty. For CIFAR they
are those of the paper's Table 2; the code has the others there, too.

References:
  Li and Wang, FedMD: Heterogenous Federated Learning via Model Distillation,
  NeurIPS 2019 workshop, section 4 and Tables 1 and 2. arXiv 1910.03581.
"""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from tasks import cifar100
from tasks import emnist
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import pools
from tff_codist import randomness
from tff_codist import task
from tff_codist import tfds_sets

NUM_PUBLIC_CLASSES = 10
NUM_PRIVATE_CLASSES = 6
NUM_CLASSES = NUM_PUBLIC_CLASSES + NUM_PRIVATE_CLASSES
_MAX_PIXEL = 255.0
_GROUP_SIZE = 8
# Letters from which on a writer is a client.
_MIN_LETTERS = 18

# Channels of the convolutions of networks 0 to 9.
_MNIST_WIDTHS = (
  (128, 256),
  (128, 384),
  (128, 512),
  (256, 256),
  (256, 512),
  (64, 128, 256),
  (64, 128, 192),
  (128, 192, 256),
  (128, 128, 128),
  (128, 128, 192),
)
_CIFAR_WIDTHS = (
  (128, 256),
  (128, 128, 192),
  (64, 64, 64),
  (128, 64, 64),
  (64, 64, 128),
  (64, 128, 256),
  (64, 128, 192),
  (128, 192, 256),
  (128, 128, 128),
  (64, 64, 64, 64),
)

_DEFAULT_EXAMPLES_PER_CLASS = 3

# From EMNIST's labels of A to F and a to f to the private classes.
_LETTERS = {
  label + i: NUM_PUBLIC_CLASSES + i
  for label in (10, 36)
  for i in range(NUM_PRIVATE_CLASSES)
}
# apple, baby, chair, porcupine, sea, sunflower.
_SUBCLASSES = ((0,), (2,), (20,), (63,), (71,), (82,))
# The subclasses of aquatic mammals, fish, insects, large man-made outdoor
# things, medium-sized mammals, vehicles 1: what the authors' code has. The
# paper says the first six superclasses.
_SUPERCLASSES = (
  (4, 30, 55, 72, 95),
  (1, 32, 67, 73, 91),
  (6, 7, 14, 18, 24),
  (12, 17, 37, 68, 76),
  (34, 63, 64, 66, 75),
  (8, 13, 48, 58, 90),
)


def cnn(
  input_shape: Sequence[int], num_classes: int, *, widths: Sequence[int]
) -> tf.keras.Model:
  """Builds one of FedMD's networks.

  Convolutions, each with GroupNorm and ReLU, then a dense layer without bias.
  The first is 3x3, followed by an average pooling that keeps the size. Of two,
  the other is 3x3 with stride 2. Of more, the second is 2x2 with stride 2,
  followed by 2x2 average pooling, the third 3x3 with stride 2, and further ones
  the same with padding.

  Args:
    input_shape: `(height, width, channels)` of an image.
    num_classes: Length of the logits.
    widths: Channels of the convolutions, two to four multiples of 8.
  """
  layers = tf.keras.layers
  inputs = layers.Input(tuple(input_shape))

  def block(x, width, size, stride, padding):
    x = layers.Conv2D(width, size, strides=stride, padding=padding)(x)
    x = layers.GroupNormalization(groups=width // _GROUP_SIZE)(x)
    return layers.ReLU()(x)

  first, *others = widths
  x = block(inputs, first, 3, 1, 'same')
  x = layers.AveragePooling2D(2, strides=1, padding='same')(x)
  if len(others) > 1:
    x = block(x, others.pop(0), 2, 2, 'valid')
    x = layers.AveragePooling2D(2, strides=2)(x)
  for i, width in enumerate(others):
    x = block(x, width, 3, 2, 'same' if i else 'valid')
  x = layers.Flatten()(x)
  return tf.keras.Model(inputs, layers.Dense(num_classes, use_bias=False)(x))


@task.tasks.register('mnist_letters', 'task.data_dir', 'public_private')
def load_mnist_letters(config: config_lib.Config) -> task.Task:
  """Opens MNIST and the letters of EMNIST, and chooses the clients.

  Args:
    config: The groups `public_private` and `task`, and the seed. MNIST is read
      from a prepared TFDS set.

  Returns:
    The task. Stored inputs are uint8 `[28, 28, 1]`, 255 the background; labels
    are the digits, then A to F.

  Raises:
    DataNotFoundError: If a file is missing and cannot be downloaded.
    DataError: If a file is damaged, or there are too few letters.
    ConfigError: If writers are to have a number of examples of each class.
  """
  data = emnist.load_task(config)
  train, test = (_relabelled(d, _LETTERS) for d in (data.train, data.test))
  fields = config.public_private
  if fields.split == 'iid':
    kinds = tuple(range(NUM_PUBLIC_CLASSES, NUM_CLASSES))
    private = _deal(train, [kinds] * fields.clients, config)
  else:
    private = _writers(train, config)
  return _build_task(config, data, 'mnist', private, test, _MNIST_WIDTHS)


@task.tasks.register('cifar_subclasses', 'task.data_dir', 'public_private')
def load_cifar_subclasses(config: config_lib.Config) -> task.Task:
  """Opens CIFAR-10 and CIFAR-100, and deals images out to the clients.

  Args:
    config: The groups `public_private` and `task`, and the seed. CIFAR-10 is
      read from a prepared TFDS set.

  Returns:
    The task. Stored inputs are uint8 `[32, 32, 3]`; labels are the classes of
    CIFAR-10, then the private ones.

  Raises:
    DataNotFoundError: If a file is missing and cannot be downloaded.
    DataError: If a file is damaged, or there are too few images.
  """
  data = cifar100.load_task(config)
  fields = config.public_private
  classes = _SUBCLASSES if fields.split == 'iid' else _SUPERCLASSES
  rng = randomness.derive_rng(config.seed, 'subclasses')
  # One subclass of each class for each client.
  kinds = [
    tuple(int(rng.choice(subclasses)) for subclasses in classes)
    for _ in range(fields.clients)
  ]
  class_of = {
    label: NUM_PUBLIC_CLASSES + i
    for i, subclasses in enumerate(classes)
    for label in subclasses
  }
  private = {
    client_id: _relabel(examples, class_of)
    for client_id, examples in _deal(data.train, kinds, config).items()
  }
  test = _relabelled(data.test, class_of)
  return _build_task(config, data, 'cifar10', private, test, _CIFAR_WIDTHS)


def _build_task(
  config: config_lib.Config,
  data: task.Task,
  public_name: str,
  private: Mapping[str, clients.Examples],
  test: clients.ClientData,
  widths: Sequence[Sequence[int]],
) -> task.Task:
  """Returns the task.

  Args:
    config: The group `public_private`.
    data: The task of which the private data is a part.
    public_name: Name of the public TFDS set.
    private: {client id: its examples}.
    test: The test clients, whose examples are put together.
    widths: Channels of each network.
  """
  fields = config.public_private
  public = _read_public(public_name, data.foreign, fields.public_examples)
  if fields.pooled:
    private = {'pooled': _concatenate(private.values())}

  def load_test(unused_client_id):
    return _concatenate(map(test.load, test.client_ids))

  input_shape = public['x'].shape[1:]
  return task.Task(
    name=config.task.name,
    num_classes=NUM_CLASSES,
    train=clients.ClientData(private, private.__getitem__),
    test=clients.ClientData(['test'], functools.cache(load_test)),
    preprocess=_build_preprocess(public['x']),
    models={
      f'net_{i}': functools.partial(cnn, input_shape, NUM_CLASSES, widths=own)
      for i, own in enumerate(widths)
    },
    foreign=data.foreign,
    own_datasets=data.own_datasets,
    public=public,
  )


def _build_preprocess(public: np.ndarray) -> task.Preprocess:
  """Returns the function from uint8 images to model inputs.

  Args:
    public: The public images `[examples, ...]`, whose mean is subtracted.
  """
  mean = (public.mean(axis=0) / _MAX_PIXEL).astype(np.float32)

  def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
    del seed  # There is no augmentation.
    return tf.cast(x, tf.float32) / _MAX_PIXEL - mean

  return preprocess


def _read_public(
  name: str, foreign: task.ForeignInputs, num_examples: Optional[int]
) -> clients.Examples:
  builder = tfds_sets.open_set(name, fix='install TFDS again')
  found = tfds_sets.read(builder, ('image', 'label'), num_examples)
  return clients.Examples(
    x=foreign.convert(found['image']), y=np.array(found['label'], np.int32)
  )


def _relabel(
  examples: clients.Examples, class_of: Mapping[int, int]
) -> clients.Examples:
  """Returns the examples whose label has a class, with that as label."""
  rows = np.isin(examples['y'], list(class_of))
  labels = [class_of[label] for label in examples['y'][rows].tolist()]
  return clients.Examples(x=examples['x'][rows], y=np.array(labels, np.int32))


def _relabelled(
  data: clients.ClientData, class_of: Mapping[int, int]
) -> clients.ClientData:
  return clients.ClientData(
    data.client_ids, lambda client_id: _relabel(data.load(client_id), class_of)
  )


def _concatenate(parts) -> clients.Examples:
  parts = list(parts)
  return clients.Examples(
    (name, np.concatenate([part[name] for part in parts]))
    for name in ('x', 'y')
  )


def _writers(
  data: clients.ClientData, config: config_lib.Config
) -> dict[str, clients.Examples]:
  """Returns the first writers with enough letters, in an order by the seed."""
  fields = config.public_private
  if fields.examples_per_class is not None:
    raise errors.ConfigError(
      f'--public_private.examples_per_class {fields.examples_per_class} with '
      f'--public_private.split {fields.split}',
      expected='clients that have what they wrote',
      fix='leave --public_private.examples_per_class out',
    )
  wanted, found = fields.clients, {}
  for client_id in pools.ranked(
    data.client_ids, seed=config.seed, purpose='writers'
  ):
    examples = data.load(client_id)
    if len(examples['y']) >= _MIN_LETTERS:
      found[client_id] = examples
    if len(found) == wanted:
      return found
  raise errors.DataError(
    f'{len(found)} writers of {_MIN_LETTERS} letters A to F',
    expected=f'as many as clients, {wanted}',
    fix='lower --public_private.clients',
  )


def _deal(
  data: clients.ClientData,
  kinds: Sequence[Sequence[int]],
  config: config_lib.Config,
) -> dict[str, clients.Examples]:
  """Deals examples out to new clients, each example to one of them.

  They come from as many clients of the data set, in an order by the seed, as
  have enough together.

  Args:
    data: The clients of the data set.
    kinds: For each new client, the labels of which it gets examples.
    config: The seed, and how many examples of each label a client gets.

  Returns:
    {client id: its examples}.
  """
  per_kind = (
    config.public_private.examples_per_class or _DEFAULT_EXAMPLES_PER_CLASS
  )
  missing = collections.Counter(
    label for own in kinds for label in own for _ in range(per_kind)
  )
  left = {label: [] for label in missing}
  for client_id in pools.ranked(
    data.client_ids, seed=config.seed, purpose='private'
  ):
    if not any(missing.values()):
      break
    examples = data.load(client_id)
    for x, label in zip(examples['x'], examples['y'].tolist()):
      if missing[label]:
        left[label].append(x)
        missing[label] -= 1
  if any(missing.values()):
    raise errors.DataError(
      f'{sum(missing.values())} private examples too few',
      expected=f'{per_kind} of each class for each of {len(kinds)} clients',
      fix='lower --public_private.clients or --public_private.'
      'examples_per_class',
    )
  return {
    f'client_{i:04}': clients.Examples(
      x=np.stack([left[label].pop() for label in own for _ in range(per_kind)]),
      y=np.repeat(np.array(own, np.int32), per_kind),
    )
    for i, own in enumerate(kinds)
  }
