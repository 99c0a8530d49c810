"""The folder of one run: what it belongs to and whether it is finished."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import experiment as experiment_lib
from tff_codist import files
from tff_codist.program import membership

_PACKAGES = (
  'tensorflow',
  'tensorflow-federated',
  'keras',
  'numpy',
  'jax',
  'tff-codist',
)


class RunFolder:
  """Paths and markers of a run.

  Attributes:
    path: The folder.
    checkpoints: Folder of the checkpoints.
    metrics: The CSV file of the metrics.
    events: Folder of the TensorBoard events.
    models: Folder of the final Keras models.
    clients: The file of what clients keep between rounds.
    announced: The file of a round's metrics that may not be in `metrics` yet,
      although a checkpoint has the round.
  """

  def __init__(self, path: os.PathLike):
    """Names a folder; nothing is read or written."""
    self.path = pathlib.Path(path)
    self.checkpoints = self.path / 'checkpoints'
    self.metrics = self.path / 'metrics.csv'
    self.events = self.path / 'events'
    self.models = self.path / 'models'
    self.clients = self.path / 'clients.sqlite'
    self.announced = self.path / 'announced.json'
    self._config = self.path / 'config.json'
    self._environment = self.path / 'environment.json'
    self._pools = self.path / 'pools.json'
    self._privacy = self.path / 'privacy.md'
    self._done = self.path / 'DONE'
    self._failed = self.path / 'FAILED.txt'

  @property
  def is_done(self) -> bool:
    """Whether the run has finished."""
    return self._done.exists()

  def read_config(self) -> config_lib.Config:
    """Returns the run's configuration.

    Raises:
      RunFolderError: If the folder holds no run, or cannot be read.
      ConfigError: If the run is of another version of the package.
    """
    try:
      text = self._config.read_text()
    except OSError as error:
      raise errors.RunFolderError(
        f'no config.json in {self.path} ({error.strerror})',
        expected='the folder of a run',
        fix='give the --run_dir of a run that bin/train.py made',
      ) from error
    return config_lib.from_json(text)

  def check(self, config: config_lib.Config) -> None:
    """Checks that a configuration may be run, or resumed, in this folder.

    Raises:
      RunFolderError: If the folder belongs to another configuration, holds
        other files, or cannot be used.
    """
    if not files.holds(self.path, self._config.name, what='a run'):
      return
    different = config_lib.differences(self.read_config(), config)
    if different:
      fields = config_lib.in_words(different)
      raise errors.RunFolderError(
        f'a run with another configuration in {self.path} ({fields})',
        expected='the same configuration, to resume it',
        fix='choose another folder, or leave those fields as they are there',
      )

  def start(
    self, experiment: experiment_lib.Experiment, *, command: str
  ) -> None:
    """Writes what the run is, unless it is there from before.

    Args:
      experiment: The experiment.
      command: The command line.

    Raises:
      RunFolderError: If the run in the folder has other clients, as when a
        list of clients was edited.
      StorageError: If the folder cannot be written.
    """
    if not self._pools.exists():
      # Loads clients: damaged ones are found before anything is written.
      pools = membership.describe(experiment)
      files.write(self._config, config_lib.to_json(experiment.config).encode())
      files.write(self._environment, _to_json(_environment(command)))
      files.write(self._pools, _to_json(pools))
    elif self._membership() != membership.fingerprint(experiment):
      raise errors.RunFolderError(
        f'a run with other clients in {self.path}',
        expected='the pools of its pools.json, to resume it',
        fix='choose another --run_dir or put the data and lists back',
      )
    self._failed.unlink(missing_ok=True)

  def _membership(self) -> object:
    try:
      return json.loads(self._pools.read_text())['fingerprint']
    except (ValueError, KeyError, TypeError) as error:
      raise errors.RunFolderError(
        f'a damaged {self._pools}',
        expected='the file as bin/train.py wrote it',
        fix='put the file back, or start the run in another folder',
      ) from error

  def write_privacy_statement(self, statement: str) -> None:
    """Writes what the run has cost its clients, as Markdown."""
    files.write(self._privacy, statement.encode())

  def finish(self) -> None:
    """Marks the run as finished, whose rounds have all been recorded."""
    files.remove([self.announced])
    files.write(self._done, f'{_now()}\n'.encode())

  def fail(self, report: str) -> None:
    """Marks the run as failed and keeps the report."""
    files.write(self._failed, f'{_now()}\n{report}\n'.encode())


def _to_json(value: object) -> bytes:
  return (json.dumps(value, indent=1) + '\n').encode()


def _now() -> str:
  return datetime.datetime.now(datetime.timezone.utc).isoformat()


def _environment(command: str) -> dict[str, object]:
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  return {
    'command': command,
    'started': _now(),
    'python': sys.version,
    'platform': platform.platform(),
    'cpus': os.cpu_count(),
    'packages': versions,
    'commit': _commit(),
  }


def _commit() -> str:
  """Returns the commit of a clone, '' for an installed package."""
  try:
    return subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''
