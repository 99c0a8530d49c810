"""The training loop: rounds, evaluation, records, checkpoints, resume."""

import asyncio
import contextlib
import os
import pathlib
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from tff_codist import client_store
from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import evaluation as evaluation_lib
from tff_codist import experiment as experiment_lib
from tff_codist import files
from tff_codist import models
from tff_codist import runtime
from tff_codist import teachers
from tff_codist.privacy import ledger as ledger_lib
from tff_codist.program import checkpoints
from tff_codist.program import costs
from tff_codist.program import recorders
from tff_codist.program import run_folder as run_folder_lib
from tff_codist.program import stopping


def train(config: config_lib.Config, run_dir: os.PathLike) -> None:
  """Trains in a run folder, from its last checkpoint if it has one.

  The folder's files are described in the README. At SIGINT, SIGTERM and SIGHUP
  the current round is given up, the one before it is written as a checkpoint,
  and `StopRequested` is raised; the same call later goes on from there,
  bit-equal to a run that was never stopped. Call it in the main thread, which
  gets the signals, and not inside a running event loop.

  After a power cut or `kill -9`, `metrics.csv` has every round up to the
  checkpoint from which the run goes on. In a run with privacy that is the last
  round that was released: no round is released twice and counted once.

  Args:
    config: The configuration.
    run_dir: The run folder; new, empty, or of a run with the same
      configuration.

  Raises:
    ConfigError: If the configuration cannot be run; nothing is written.
    DataError: If data is missing or corrupt; nothing is written.
    RunFolderError: If the folder is not this run's, and nothing is written; or
      if its metrics are damaged.
    CheckpointError: If there are checkpoints and none is intact, or, in a run
      with privacy, the newest is not.
    StorageError: If the folder cannot be written, as on a full disk.
    WorkerError: If the runtime's worker does not start, or dies twice.
    NonFiniteModelError: If a model is not finite any more.
    StopRequested: After a signal, see `stopping.StopOnSignal`.
  """
  folder = run_folder_lib.RunFolder(run_dir)
  folder.check(config)
  if folder.is_done:
    return
  store = client_store.ClientStore(folder.clients)
  with stopping.StopOnSignal() as stop, contextlib.closing(store):
    try:
      _train(config, folder, store, stop)
    except stopping.StopRequested as stopped:
      checkpoint_manager = _checkpoint_manager(folder, config)
      versions = asyncio.run(checkpoint_manager.get_versions())
      stopped.has_checkpoint = versions is not None
      raise


def evaluate(run_dir: os.PathLike) -> tuple[int, dict[str, float]]:
  """Evaluates the models of a run's newest intact checkpoint.

  Args:
    run_dir: The run folder.

  Returns:
    The checkpoint's round, and the metrics of `Evaluator.evaluate` and
    `Teachers.measure`.

  Raises:
    RunFolderError: If the folder holds no run, or no checkpoint yet.
    CheckpointError: If no checkpoint is intact.
  """
  folder = run_folder_lib.RunFolder(run_dir)
  config = folder.read_config()
  store = client_store.ClientStore(folder.clients)
  experiment = experiment_lib.build_experiment(config, client_store=store)
  context = runtime.install(config.runtime.name, **config.runtime.options)
  with context, contextlib.closing(store):
    state, round_num = asyncio.run(
      _checkpoint_manager(folder, config).load_latest(
        experiment.algorithm.initialize(config.seed)
      )
    )
    if state is None:
      raise errors.RunFolderError(
        f'no checkpoint in {folder.path}',
        expected='a run with at least one checkpoint',
        fix='start the run again with the command in environment.json',
      )
    pool_models = experiment.algorithm.models(state)
    return round_num, _Evaluation(experiment).measure(pool_models)


def _train(
  config: config_lib.Config,
  folder: run_folder_lib.RunFolder,
  store: client_store.ClientStore,
  stop: stopping.StopOnSignal,
) -> None:
  with stop.interruptible():
    experiment = experiment_lib.build_experiment(config, client_store=store)
    ledger = ledger_lib.open_ledger(experiment.pools, config)
  context = runtime.install(config.runtime.name, **config.runtime.options)
  with context, files.lock(folder.path):
    # Another process may have trained here since the first check.
    folder.check(config)
    if folder.is_done:
      return
    folder.start(experiment, command=shlex.join(sys.argv))
    try:
      _run_rounds(experiment, ledger, folder, stop)
    except stopping.StopRequested:
      raise
    except Exception:
      folder.fail(traceback.format_exc())
      raise
    folder.finish()


def _run_rounds(
  experiment: experiment_lib.Experiment,
  ledger: Optional[ledger_lib.Ledger],
  folder: run_folder_lib.RunFolder,
  stop: stopping.StopOnSignal,
) -> None:
  config, algorithm = experiment.config, experiment.algorithm
  program = config.program
  with stop.interruptible():
    state = algorithm.initialize(config.seed)
  checkpoint_manager = _checkpoint_manager(folder, config)
  store = experiment.setting.client_store
  saved, last_round = (
    _load_newest(checkpoint_manager, state)
    if ledger
    else asyncio.run(checkpoint_manager.load_latest(state))
  )
  state = state if saved is None else saved
  asyncio.run(checkpoint_manager.remove_after(last_round))

  evaluation = _Evaluation(experiment)
  recorder = recorders.Recorder(
    folder, config.pools.names, rounds=program.rounds, initial=last_round
  )
  final_round = ledger.final_round if ledger else program.rounds
  loader = clients.CohortLoader(
    experiment.train,
    experiment.pools,
    seed=config.seed,
    last_round=final_round,
    domains=experiment.task.domains,
  )

  def save() -> None:
    versions = asyncio.run(checkpoint_manager.get_versions()) or ()
    if last_round not in versions:
      # A checkpoint never refers to what is not there.
      recorder.sync()
      store.keep(last_round, algorithm.client_states(state))
      asyncio.run(checkpoint_manager.save(state, last_round))
      store.keep_only(asyncio.run(checkpoint_manager.get_versions()))

  try:
    recorder.catch_up(last_round)
    if last_round == 0:
      with stop.interruptible():
        metrics = evaluation.measure(algorithm.models(state))
      recorder.record(metrics, 0)
    for round_num in range(last_round + 1, final_round + 1):
      is_last = round_num == final_round
      with stop.interruptible():
        started = time.monotonic()
        cohorts = loader.load(round_num)
        new_state, metrics = algorithm.next(state, cohorts, round_num)
        sent = costs.round_costs(
          experiment.pools,
          algorithm.traffic,
          before=algorithm.once(state),
          after=algorithm.once(new_state),
        )
        metrics = {**metrics, **sent}
        metrics['time/round_seconds'] = time.monotonic() - started
        if is_last or round_num % program.rounds_per_evaluation == 0:
          metrics |= evaluation.measure(algorithm.models(new_state))
          if ledger:
            metrics |= ledger.metrics(algorithm.releases(new_state))
      _check_finite(algorithm.models(new_state), round_num)
      state, last_round = new_state, round_num
      if ledger:
        # Nobody sees a release that is not in the ledger.
        recorder.announce(metrics, round_num)
        save()
      recorder.record(metrics, round_num)
      if is_last or round_num % program.rounds_per_checkpoint == 0:
        save()
  except stopping.StopRequested:
    save()
    raise
  finally:
    loader.close()
    recorder.close()
  if ledger:
    folder.write_privacy_statement(ledger.statement(algorithm.releases(state)))
  pool_models = algorithm.models(state)
  for pool in experiment.pools:
    own = pool_models[pool.name]
    for i, weights in enumerate(own):
      name = f'{pool.name}_{i}' if len(own) > 1 else pool.name
      _save_model(pool, weights, folder.models / f'{name}.keras')


def _checkpoint_manager(
  folder: run_folder_lib.RunFolder, config: config_lib.Config
) -> checkpoints.CheckpointManager:
  return checkpoints.CheckpointManager(
    folder.checkpoints, keep=config.program.checkpoints_kept
  )


def _load_newest(
  checkpoint_manager: checkpoints.CheckpointManager, structure: Any
) -> tuple[Any, int]:
  """Returns the newest state and its round, as `load_latest`, or none at all.

  Raises:
    CheckpointError: If it is not intact. The rounds from an older one on would
      be trained with other noise: released twice, and counted once.
  """
  versions = asyncio.run(checkpoint_manager.get_versions())
  if versions is None:
    return None, 0
  newest = versions[-1]
  try:
    return asyncio.run(checkpoint_manager.load(newest, structure)), newest
  except errors.CheckpointError as error:
    raise errors.CheckpointError(
      f'a run with privacy whose newest checkpoint is not intact: '
      f'{error.found}',
      expected='that checkpoint; from an older one, rounds would be released '
      'twice and counted once',
      fix='put it back, or start the run in another folder',
    ) from error


class _Evaluation:
  """All that is measured of the models between rounds."""

  def __init__(self, experiment: experiment_lib.Experiment):
    setting = experiment.setting
    self._evaluator = evaluation_lib.Evaluator(setting, experiment.test)
    self._teachers = teachers.Teachers(setting)

  def measure(
    self, pool_models: Mapping[str, Sequence[models.Weights]]
  ) -> dict[str, float]:
    started = time.monotonic()
    metrics = self._evaluator.evaluate(pool_models)
    metrics |= self._teachers.measure(pool_models)
    metrics['time/evaluation_seconds'] = time.monotonic() - started
    return metrics


def _check_finite(pool_models, round_num: int) -> None:
  for name, own in pool_models.items():
    if not all(np.isfinite(w).all() for weights in own for w in weights):
      raise errors.NonFiniteModelError(
        f'model {name!r} with values that are not finite after round '
        f'{round_num}',
        expected='finite weights',
        fix='lower the learning rates of client, server or distillation',
      )


def _save_model(pool, weights, path: pathlib.Path) -> None:
  """Saves a final model of a pool as Keras's own file."""
  with tempfile.TemporaryDirectory() as folder:
    temporary = pathlib.Path(folder) / 'model.keras'
    pool.model.to_keras(weights).save(temporary, save_format='keras')
    files.write(path, temporary.read_bytes())
