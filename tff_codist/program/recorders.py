"""Where a run's metrics go: a CSV file, TensorBoard, and the terminal."""

import asyncio
import contextlib
import csv
import io
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tqdm
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.summary.writer import event_file_writer
from tqdm.contrib import logging as tqdm_logging

from tff_codist import errors
from tff_codist import files
from tff_codist.program import run_folder as run_folder_lib

# TensorBoard writes through TensorFlow, whose errors are no OSErrors.
_WRITE_ERRORS = (OSError, tf.errors.OpError)


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
    # Log lines appear above the bar.
    self._redirection = contextlib.ExitStack()
    self._redirection.enter_context(
      tqdm_logging.logging_redirect_tqdm([logging.getLogger('tff_codist')])
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
        f'accuracy  {accuracies}',
        file=sys.stderr,
      )

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._redirection.close()
    self._bar.close()


class CsvFile(tff.program.ReleaseManager):
  """Appends a row of metrics to a CSV file for each round.

  TFF's own CSV manager reads and writes the whole file again in every round;
  this one does so only when a column is new, and when a run is resumed.
  """

  def __init__(self, path: os.PathLike):
    """Checks the file, if it exists.

    Args:
      path: The file. Its first column is `round`.

    Raises:
      RunFolderError: If it is not as this class writes it.
    """
    self._path = pathlib.Path(path)
    self._columns: Optional[list[str]] = None
    self._read()

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Writes the row of round `key`; the first call drops it and later ones."""
    row = {'round': int(key)}
    row.update((name, np.asarray(v).item()) for name, v in value.items())
    if self._columns is None or not set(row) <= set(self._columns):
      self._rewrite(row)
    else:
      with open(self._path, 'a', newline='') as file:
        writer = csv.DictWriter(file, self._columns, lineterminator='\n')
        writer.writerow(row)

  def sync(self) -> None:
    """Makes the rows survive a power cut."""
    if self._path.exists():
      with open(self._path, 'rb') as file:
        os.fsync(file.fileno())

  def _rewrite(self, row: Mapping[str, Any]) -> None:
    """Writes the header, the rows before `row`, and `row`."""
    columns, rows = self._read()
    earlier = [r for r in rows if int(r['round']) < row['round']]
    self._columns = columns + [name for name in row if name not in columns]
    text = io.StringIO()
    writer = csv.DictWriter(text, self._columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows([*earlier, row])
    files.write(self._path, text.getvalue().encode())

  def _read(self) -> tuple[list[str], list[dict[str, str]]]:
    """Returns columns and rows, without a last line that a kill has cut off."""
    if not self._path.exists():
      return [], []
    try:
      lines = self._path.read_text().splitlines(keepends=True)
      table = list(
        csv.reader((x for x in lines if x.endswith('\n')), strict=True)
      )
    except (UnicodeDecodeError, csv.Error) as error:
      raise self._damaged(str(error)) from error
    columns, *rows = table or [['round']]
    if columns[:1] != ['round']:
      raise self._damaged('line 1 without the columns')
    for line, row in enumerate(rows, start=2):
      if len(row) != len(columns) or not row[0].isdecimal():
        raise self._damaged(f'line {line}')
    return columns, [dict(zip(columns, row)) for row in rows]

  def _damaged(self, where: str) -> errors.RunFolderError:
    return errors.RunFolderError(
      f'a damaged {self._path} ({where})',
      expected='the file as bin/train.py wrote it, to resume the run',
      fix='put the file back, or start the run in another folder',
    )


class EventFile(tff.program.ReleaseManager):
  """Writes the metrics of each round for TensorBoard.

  TFF's own manager writes through `tf.summary`, which keeps some memory for
  every value.
  """

  def __init__(self, folder: os.PathLike):
    """Starts a new file of events.

    Args:
      folder: Folder of the run's event files, made if missing.
    """
    self._writer = event_file_writer.EventFileWriter(os.fspath(folder))
    self._is_new = True

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Writes the metrics of round `key`."""
    step = int(key)
    if self._is_new:
      # TensorBoard then passes over what an earlier file has from here on.
      self._add(step, session_log=event_pb2.SessionLog(status='START'))
      self._is_new = False
    values = [
      summary_pb2.Summary.Value(tag=name, simple_value=float(v))
      for name, v in value.items()
    ]
    self._add(step, summary=summary_pb2.Summary(value=values))
    self._writer.flush()

  def close(self) -> None:
    """Ends the writer's thread."""
    # Every release was flushed, or has raised already.
    with contextlib.suppress(*_WRITE_ERRORS):
      self._writer.close()

  def _add(self, step: int, **content) -> None:
    self._writer.add_event(
      event_pb2.Event(wall_time=time.time(), step=step, **content)
    )


class Recorder:
  """Records a round's metrics in the run folder and on the terminal."""

  def __init__(
    self,
    folder: run_folder_lib.RunFolder,
    pool_names: Sequence[str],
    *,
    rounds: int,
    initial: int = 0,
  ):
    """Opens the files of a run, and the bar on the terminal.

    Args:
      folder: The run folder.
      pool_names: The pools that the terminal shows.
      rounds: Rounds of the run.
      initial: Rounds that are done already.

    Raises:
      RunFolderError: If the folder's `metrics.csv` is damaged.
      StorageError: If the folder cannot be written.
    """
    self._folder = folder
    with self._storage_errors():
      self._rows = CsvFile(folder.metrics)
      self._events = EventFile(folder.events)
    self._progress = ProgressBar(pool_names, rounds=rounds, initial=initial)
    self._manager = tff.program.GroupingReleaseManager(
      [self._rows, self._events, self._progress]
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
    with self._storage_errors():
      asyncio.run(self._manager.release(metrics, round_num))

  def sync(self) -> None:
    """Makes what has been recorded survive a power cut.

    Raises:
      StorageError: If it cannot be written.
    """
    with self._storage_errors():
      self._rows.sync()

  def announce(self, metrics: Mapping[str, Any], round_num: int) -> None:
    """Keeps a round's metrics apart until they are recorded.

    For a checkpoint that is written before its round is recorded: after a kill
    in between, `catch_up` records the round.

    Args:
      metrics: Scalars under flat names.
      round_num: The round, from 1.

    Raises:
      StorageError: If they cannot be written.
    """
    # Of the round announced before, nothing else is left.
    self.sync()
    values = {name: np.asarray(v).item() for name, v in metrics.items()}
    content = {'round': round_num, 'metrics': values}
    files.write(self._folder.announced, json.dumps(content).encode())

  def catch_up(self, round_num: int) -> None:
    """Records the announced round, perhaps again, if it is this one.

    Args:
      round_num: The round of the checkpoint from which the run goes on.

    Raises:
      StorageError: If a file cannot be written.
    """
    if self._folder.announced.exists():
      content = json.loads(self._folder.announced.read_text())
      if content['round'] == round_num:
        self.record(content['metrics'], round_num)

  def close(self) -> None:
    """Ends the terminal's and TensorBoard's part."""
    self._progress.close()
    self._events.close()

  @contextlib.contextmanager
  def _storage_errors(self) -> Iterator[None]:
    try:
      yield
    except errors.StorageError:
      raise
    except _WRITE_ERRORS as error:
      raise errors.StorageError(
        f'metrics that cannot be written to {self._folder.path} ({error})',
        expected='a writable folder with free space',
        fix='free space, then start the command again to resume',
      ) from error
