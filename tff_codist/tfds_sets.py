"""Reading TFDS sets that were prepared once; nothing is downloaded here."""

import os
from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf

from tff_codist import errors


def open_set(name: str, *, fix: str) -> Any:
  """Returns the builder of a data set, prepared or not.

  Args:
    name: Its name in TFDS. It is looked for in $TFDS_DATA_DIR, else in TFDS's
      default directory.
    fix: How the user corrects a wrong name.

  Raises:
    ConfigError: If TFDS has no such set.
  """
  import tensorflow_datasets as tfds  # It takes two seconds to import.

  try:
    builder = tfds.builder(
      name, data_dir=os.environ.get('TFDS_DATA_DIR') or None
    )
    # Some sets are known to be missing only when they are asked what they hold.
    builder.info.features  # noqa: B018
    return builder
  # The last is TFDS's answer to a version that it does not know.
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    reason = str(error).partition('\n')[0]
    raise errors.ConfigError(
      f'no data set {name!r} in TFDS ({reason})',
      expected='the name of a TFDS set',
      fix=fix,
    ) from error


def read(
  builder: Any, features: Sequence[str], num_examples: Optional[int] = None
) -> dict[str, list]:
  """Returns the first examples of the training split, in their stored order.

  Args:
    builder: What `open_set` returned.
    features: The features to read; others are not even parsed.
    num_examples: Examples at most; `None` reads all.

  Returns:
    {feature: its value for each example}, of NumPy types; texts are `bytes`.

  Raises:
    DataNotFoundError: If the set is not prepared.
    DataError: If its files are damaged.
  """
  import tensorflow_datasets as tfds

  if 'train' not in builder.info.splits:
    raise errors.DataNotFoundError(
      f'no prepared TFDS set in {builder.data_dir}',
      expected='the set with its training split, prepared once; nothing is '
      'downloaded here',
      fix='run: python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{builder.name}').download_and_prepare()\", or name the "
      'directory that has it with TFDS_DATA_DIR',
    )
  dataset = builder.as_dataset(
    split='train',
    decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True)),
  )
  if num_examples is not None:
    dataset = dataset.take(num_examples)
  try:
    items = list(tfds.as_numpy(dataset))
  except tf.errors.OpError as error:
    raise errors.DataError(
      f'a damaged TFDS set in {builder.data_dir} ({error.message})',
      expected='the files as TFDS prepared them',
      fix='delete that folder and prepare the set again',
    ) from error
  return {feature: [item[feature] for item in items] for feature in features}
