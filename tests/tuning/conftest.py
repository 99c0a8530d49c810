"""Studies whose trials are trained by a stand-in for bin/train.py."""

import sys

import pytest

from tff_codist import config as config_lib
from tff_codist import tuning
from tff_codist.program import processes

# Copies the run folder that is kept for its learning rate and ends as a
# training that did that; without one it fails, and without DONE it goes on
# until it is told to stop. What a run does after the copy, without a handler of
# SIGTERM, may be in its after.py.
_TRAIN = """
import pathlib, shutil, signal, sys, time
flags = dict(flag.split('=', 1) for flag in sys.argv[2:])
kept = pathlib.Path(sys.argv[1]) / flags['--merged.learning_rate']
assert flags['--program.evaluate_on'] == 'validation'
after = kept / 'after.py'
if not after.exists():
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print('trains with', kept.name, flush=True)
if not kept.exists():
  print('error: Found a model that is not finite.')
  print('Exception ignored at the end.')
  sys.exit(1)
if (kept / 'code').exists():
  print('error: Found no such thing.')
  sys.exit(int((kept / 'code').read_text()))
run_dir = pathlib.Path(flags['--run_dir'])
shutil.rmtree(run_dir, ignore_errors=True)
# All at once: a reader sees no half of it.
whole = shutil.copytree(kept, run_dir.with_suffix('.part'))
whole.rename(run_dir)
if after.exists():
  exec(after.read_text())
while not (run_dir / 'DONE').exists():
  time.sleep(0.05)
"""


@pytest.fixture
def study(tmp_path):
  """Returns a function that makes a study in `tmp_path / 'study'`."""

  def make(
    *search,
    trials=(),
    config=None,
    rounds=100,
    pools=('small', 'large'),
    **settings,
  ):
    """Makes a study.

    Args:
      *search: The parameters; by default a list of learning rates.
      trials: Learning rates that have been suggested.
      config: The configuration; without it the default one, but for `rounds`.
      rounds: Rounds of a trial.
      pools: Pools of the objective.
      **settings: Further settings.
    """
    made = tuning.Study(
      tmp_path / 'study',
      settings=tuning.Settings(
        search=search or ('merged.learning_rate=0.1,0.2,0.3,0.4,0.5',),
        pools=tuple(pools),
        **settings,
      ),
      config=config
      or config_lib.Config(
        program=config_lib.ProgramConfig(
          evaluate_on='validation', rounds=rounds
        )
      ),
      flags=(),
    )
    for number, value in enumerate(trials, start=1):
      made.record(tuning.Trial(number, {'merged.learning_rate': value}))
    return made

  return make


@pytest.fixture
def keep(write_run, tmp_path):
  """Returns a function that keeps a run for a learning rate.

  It takes the mean accuracy over small and large after rounds 10, 20, ...; the
  untrained model has one of 1, which counts nowhere.
  """

  def keep_run(learning_rate, accuracies, *, done=True, **kwargs):
    (tmp_path / 'kept').mkdir(exist_ok=True)
    return write_run(
      f'kept/{learning_rate}',
      rounds=range(0, 10 * len(accuracies) + 1, 10),
      accuracies={
        'small': [1, *(a - 0.05 for a in accuracies)],
        'large': [1, *(a + 0.05 for a in accuracies)],
      },
      done=done,
      **kwargs,
    )

  return keep_run


@pytest.fixture
def train_command(tmp_path, monkeypatch):
  """The stand-in's command; what it writes is seen soon."""
  monkeypatch.setattr(processes, '_POLL_SECONDS', 0.05)
  script = tmp_path / 'train.py'
  script.write_text(_TRAIN)
  return lambda *flags: (
    sys.executable,
    *(str(script), str(tmp_path / 'kept')),
    *flags,
  )
