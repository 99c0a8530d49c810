"""Where a run's metrics go: a CSV file, TensorBoard, and the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_federated as tff
import tqdm

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


def build_recorder(
  folder: run_folder_lib.RunFolder, progress: ProgressBar
) -> tff.program.ReleaseManager:
  """Returns one recorder for the CSV file, TensorBoard and the terminal.

  When a round is recorded again, after a resume, the CSV file loses the rows
  from that round on.
  """
  return tff.program.GroupingReleaseManager(
    [
      tff.program.CSVFileReleaseManager(folder.metrics, key_fieldname='round'),
      tff.program.TensorBoardReleaseManager(folder.events),
      progress,
    ]
  )
