"""Where a run's metrics go: a CSV file, TensorBoard, and the terminal."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
import tqdm

from tff_codist import errors
from tff_codist.program import run_folder as run_folder_lib


class ProgressBar(tff.program.ReleaseManager):
  """Shows rounds, loss, accuracy and time left on the terminal."""

  def __init__(
    self, pool_names: Sequence[str], *, rounds: int, initial: int = 0
  ):
    """Starts the bar; without a terminal only evaluations are printed.

    Args:
      pool_names: The pools to report.
      rounds: Rounds of the run.
      initial: Rounds that are done already.
    """
    self._pool_names = pool_names
    self._rounds = rounds
    self._bar = tqdm.tqdm(
      total=rounds,
      initial=initial,
      unit='round',
      disable=None,
      dynamic_ncols=True,
      file=sys.stderr,
    )

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Shows the metrics of round `key`."""
    if key:
      self._bar.update(key - self._bar.n if not self._bar.disable else 0)
    losses = {
      name: f'{value[f"train/{name}/loss"]:.3f}'
      for name in self._pool_names
      if f'train/{name}/loss' in value
    }
    self._bar.set_postfix(losses, refresh=False)
    if f'eval/{self._pool_names[0]}/accuracy' in value:
      accuracies = '  '.join(
        f'{name} {100 * value[f"eval/{name}/accuracy"]:5.2f} %'
        for name in self._pool_names
      )
      self._bar.write(
        f'round {key:>{len(str(self._rounds))}}/{self._rounds}  '
        f'test accuracy  {accuracies}',
        file=sys.stderr,
      )

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._bar.close()


class Recorder:
  """Records a round's metrics in the run folder and on the terminal."""

  def __init__(self, folder: run_folder_lib.RunFolder, progress: ProgressBar):
    """Opens the files of a run.

    Args:
      folder: The run folder.
      progress: The terminal's part.
    """
    self._folder = folder
    self._manager = tff.program.GroupingReleaseManager(
      [
        tff.program.CSVFileReleaseManager(
          folder.metrics, key_fieldname='round'
        ),
        tff.program.TensorBoardReleaseManager(folder.events),
        progress,
      ]
    )

  def record(self, metrics: Mapping[str, Any], round_num: int) -> None:
    """Records one round.

    When a round is recorded again, after a resume, the CSV file loses the rows
    from that round on.

    Args:
      metrics: Scalars under flat names.
      round_num: The round; 0 is the initial evaluation.

    Raises:
      StorageError: If a file cannot be written.
    """
    try:
      asyncio.run(self._manager.release(metrics, round_num))
    except (OSError, tf.errors.OpError) as error:
      raise errors.StorageError(
        f'metrics of round {round_num} that cannot be written to '
        f'{self._folder.path} ({error})',
        expected='a writable folder with free space',
        fix='free space, then start the command again to resume',
      ) from error
