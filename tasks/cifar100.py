"""Task 'cifar100': TFF's federated CIFAR-100, 500 clients with 100 images.

The clients are those of `tff.simulation.datasets.cifar100`: Pachinko allocation
over the coarse and the fine labels. Preprocessing is that of Reddi et al.
(arXiv 2003.00295, appendix C.2) and of TFF's baseline task: random 24x24 crop
and horizontal flip for training, central crop for evaluation, then each image
standardised.

TFF finds or downloads the SQLite file. Clients are read from it directly: TFF's
client data builds a `tf.data` graph for each client, which was measured at
28 ms and 0.1 MB of memory, never freed, for every load. This takes 2 ms and
keeps nothing.
"""

import collections
import contextlib
import functools
import http.client
import os
import pathlib
import socket
import sqlite3
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from typing import Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import task

NUM_CLASSES = 100
IMAGE_SIZE = 32
CROP_SIZE = 24
_INPUT_SHAPE = (CROP_SIZE, CROP_SIZE, 3)

_FILE_NAME = 'cifar100.sqlite'
_URL = 'https://storage.googleapis.com/tff-datasets-public/cifar100.sqlite.lzma'
_SIZES = '0.15 GB compressed, 0.3 GB unpacked'
_REACHABLE_SECONDS = 10.0
# A download in which nothing arrives for so long has failed.
_STALLED_SECONDS = 60.0

_FEATURES = {
  'image': tf.io.FixedLenFeature((IMAGE_SIZE, IMAGE_SIZE, 3), tf.int64),
  'label': tf.io.FixedLenFeature((), tf.int64),
}

_MODELS = {
  # 327,332 weights.
  'small': functools.partial(
    models.cnn, _INPUT_SHAPE, NUM_CLASSES, widths=(32, 64), dense=(128,)
  ),
  # 979,876 weights.
  'large': functools.partial(
    models.cnn, _INPUT_SHAPE, NUM_CLASSES, widths=(64, 128), dense=(192,)
  ),
  # 278,132 weights.
  'resnet20': functools.partial(
    models.resnet, _INPUT_SHAPE, NUM_CLASSES, widths=(16, 32, 64), depth=3
  ),
  # 11,227,812 weights.
  'resnet18': functools.partial(models.resnet18, _INPUT_SHAPE, NUM_CLASSES),
}


@task.tasks.register('cifar100')
def load_task(config: config_lib.TaskConfig, seed: int) -> task.Task:
  """Opens the data set; downloads it at the first use.

  Args:
    config: Where the data is, see `config.TaskConfig.data_dir`.
    seed: Not read; the split over clients is part of the data set.

  Returns:
    The task. Stored inputs are uint8 `[32, 32, 3]`, labels the 100 fine ones.

  Raises:
    DataNotFoundError: If the file is missing and cannot be downloaded.
    DataError: If the file is damaged.
  """
  del seed
  data_dir = pathlib.Path(
    config.data_dir or os.environ.get('TFF_CODIST_DATA_DIR') or '~/.tff'
  ).expanduser()
  path = data_dir / _FILE_NAME
  if not os.path.exists(path):
    _download(path)
  client_ids = _check_database(path)
  return task.Task(
    name='cifar100',
    num_classes=NUM_CLASSES,
    train=_client_data(path, 'train', client_ids['train']),
    test=_client_data(path, 'test', client_ids['test']),
    preprocess=preprocess,
    models=_MODELS,
  )


def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
  """Crops, flips and standardises images; a `task.Preprocess`.

  Args:
    x: Images `[batch, 32, 32, 3]`, uint8.
    seed: int32 `[2]`: every image gets its own random crop, and is flipped with
      probability 1/2; image i depends on the seed and i only. `None`: the
      central crop, no flip.

  Returns:
    float32 images `[batch, 24, 24, 3]`, each of mean 0 and variance 1.
  """
  x = tf.cast(x, tf.float32)
  if seed is None:
    edge = (IMAGE_SIZE - CROP_SIZE) // 2
    x = x[:, edge : edge + CROP_SIZE, edge : edge + CROP_SIZE]
  else:
    x = _crop_and_flip(x, seed)
  return tf.image.per_image_standardization(x)


@task.presets.register('cifar100')
def preset(quick: bool) -> config_lib.Config:
  """MERGED CODIST on CIFAR-100, the large model on a tenth of the clients.

  Command: bin/train.py --preset cifar100 --run_dir runs/cifar100

  The federated part is that of Reddi et al. (client SGD, FedAdam). A tenth of
  the clients is few enough that the large model, alone, ends below the small
  one, as in the paper.

  The entries of the federated pseudo-gradient are below epsilon here, so
  FedAdam does not undo a change of size. Therefore `rescale` keeps the
  federated step whole, and the distillation rate is far below the usual 1e-3:
  the server optimizer multiplies it by eta / (sqrt(v) + epsilon), about 6, in a
  direction that stays the same for many rounds. In the first rounds both models
  are near chance and would hold each other there, hence the warm-up. The large
  model listens to the small one more than the reverse.

  Args:
    quick: Two rounds of two clients, distillation from the first round, in
      place of 200 rounds.
  """
  return config_lib.Config(
    task=config_lib.TaskConfig(
      name='cifar100', distillation_clients_fraction=0.1
    ),
    pools=config_lib.PoolsConfig(
      names=('small', 'large'),
      models=('small', 'large'),
      clients_fraction=(1.0, 0.1),
      cohort_size=(2,) if quick else (10,),
    ),
    algorithm=config_lib.AlgorithmConfig(name='merged_codist'),
    client=config_lib.ClientConfig(learning_rate=0.1, epochs=1, batch_size=20),
    server=config_lib.ServerConfig(
      optimizer='fedadam', learning_rate=0.01, beta2=0.99, epsilon=1e-3
    ),
    distillation=config_lib.DistillationConfig(batch_size=128),
    periodic=config_lib.PeriodicConfig(
      period=1 if quick else 50, steps=5 if quick else 50, learning_rate=1e-4
    ),
    merged=config_lib.MergedConfig(
      distillation_weight=(0.1, 0.5),
      steps=1 if quick else 4,
      learning_rate=1e-5,
      warmup_rounds=0 if quick else 50,
      rescale=True,
    ),
    program=config_lib.ProgramConfig(
      rounds=2 if quick else 200,
      rounds_per_evaluation=2 if quick else 10,
      rounds_per_checkpoint=1 if quick else 10,
    ),
  )


def _crop_and_flip(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns a random crop of each image, mirrored with probability 1/2."""
  # A row for each image, so that it does not depend on the size of the batch.
  draws = tf.random.stateless_uniform([tf.shape(x)[0], 3], seed)
  offsets = tf.cast(draws[:, :2] * (IMAGE_SIZE - CROP_SIZE + 1), tf.int32)
  span = tf.range(CROP_SIZE)
  rows = offsets[:, :1] + span
  columns = offsets[:, 1:] + tf.where(draws[:, 2:] < 0.5, span[::-1], span)
  # In float32: TensorFlow gathers uint8 on CPU only.
  x = tf.gather(x, rows, axis=1, batch_dims=1)
  return tf.gather(x, columns, axis=2, batch_dims=1)


def _client_data(
  path: pathlib.Path, split: str, client_ids: list[str]
) -> clients.ClientData:
  """Returns one split of the data set as clients, read when asked for."""

  def load(client_id: str) -> clients.Examples:
    query = (
      'SELECT serialized_example_proto FROM examples '
      'WHERE client_id = ? AND split_name = ? ORDER BY rowid'
    )
    try:
      with _connect(path) as connection:
        rows = [row for (row,) in connection.execute(query, (client_id, split))]
      features = tf.io.parse_example(rows, _FEATURES)
    except (
      sqlite3.Error,
      tf.errors.InvalidArgumentError,
      UnicodeError,  # TensorFlow's message quotes the bytes.
    ) as error:
      raise _damaged(path, f'{split} client {client_id!r}: {error}') from error
    return collections.OrderedDict(
      x=features['image'].numpy().astype(np.uint8),
      y=features['label'].numpy().astype(np.int32),
    )

  return clients.ClientData(client_ids, clients.cached(load))


@contextlib.contextmanager
def _connect(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
  """Opens the database without the means, or the locks, to change it.

  A connection belongs to one thread; opening one takes 0.1 ms.
  """
  uri = f'{path.absolute().as_uri()}?mode=ro&immutable=1'
  with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
    yield connection


def _check_database(path: pathlib.Path) -> dict[str, list[str]]:
  """Checks a database without reading its images.

  Args:
    path: The SQLite file.

  Returns:
    The ids of the clients of the splits 'train' and 'test'.

  Raises:
    DataError: If it is no complete database of TFF's form.
  """
  query = (
    'SELECT split_name, client_id, {} '
    'FROM {} GROUP BY split_name, client_id ORDER BY split_name, client_id'
  )
  try:
    with _connect(path) as connection:
      (num_pages,) = connection.execute('PRAGMA page_count').fetchone()
      (page_bytes,) = connection.execute('PRAGMA page_size').fetchone()
      promised = connection.execute(
        query.format('SUM(num_examples)', 'client_metadata')
      ).fetchall()
      present = connection.execute(
        query.format('COUNT(*)', 'examples')
      ).fetchall()
  except sqlite3.Error as error:
    raise _damaged(path, str(error)) from error
  # SQLite itself does not notice when less than a page is missing.
  missing_bytes = num_pages * page_bytes - path.stat().st_size
  if missing_bytes > 0:
    raise _damaged(path, f'{missing_bytes} bytes are missing at its end')
  if promised != present:
    raise _damaged(path, 'clients without all of their examples')
  client_ids = collections.defaultdict(list)
  for split, client_id, _ in present:
    client_ids[split].append(client_id)
  if not (client_ids['train'] and client_ids['test']):
    raise _damaged(path, 'no training or no test clients')
  return client_ids


def _damaged(path: pathlib.Path, reason: str) -> errors.DataError:
  return errors.DataError(
    f'a damaged file {path} ({reason})',
    expected=f"TFF's federated CIFAR-100, an SQLite database ({_SIZES})",
    fix='delete the file; the next run downloads it again from '
    f'{_URL}, or copy a complete one there',
  )


def _download(path: pathlib.Path) -> None:
  """Lets TFF download the file; it appears under its name when complete.

  Args:
    path: Where the file shall be.

  Raises:
    DataNotFoundError: If it cannot be downloaded.
  """
  unreachable = _why_unreachable()
  if unreachable:
    raise _not_found(path, unreachable)
  timeout = socket.getdefaulttimeout()
  # TFF opens the address without a time limit.
  socket.setdefaulttimeout(_STALLED_SECONDS)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=path.parent, prefix=f'.{path.name}-'
    ) as folder:
      tff.simulation.datasets.cifar100.load_data(cache_dir=folder)
      complete = pathlib.Path(folder, path.name)
      # TFF does not notice when the connection ends too early.
      _check_database(complete)
      complete.replace(path)
  except Exception as error:
    # Whatever went wrong at the server, in between or on this disk.
    raise _not_found(path, str(error)) from error
  finally:
    socket.setdefaulttimeout(timeout)


def _not_found(path: pathlib.Path, reason: str) -> errors.DataNotFoundError:
  return errors.DataNotFoundError(
    f'no file {path}, and no way to download it ({reason})',
    expected=f"TFF's federated CIFAR-100 ({_SIZES}) in that place",
    fix=f'download {_URL} where there is a network, unpack it with '
    f'`xz --decompress {_FILE_NAME}.lzma` and copy {_FILE_NAME} to '
    f'{path.parent}; or name the directory that has it with '
    '--task.data_dir or TFF_CODIST_DATA_DIR',
  )


def _why_unreachable() -> Optional[str]:
  """Returns why the file's address gives no answer, or `None` if it does.

  Asks on a thread: a look-up of the name knows no time limit, and a host has
  many addresses, each of which may take its time.
  """
  reason = f'no answer within {_REACHABLE_SECONDS:.0f} seconds'

  def ask() -> None:
    nonlocal reason
    request = urllib.request.Request(_URL, method='HEAD')
    try:
      with urllib.request.urlopen(request, timeout=_REACHABLE_SECONDS):
        reason = None
    except (OSError, http.client.HTTPException) as error:
      reason = str(error)

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_REACHABLE_SECONDS)
  return reason
