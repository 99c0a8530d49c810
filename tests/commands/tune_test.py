"""bin/tune.py: what it refuses, and a study on digits from start to end."""

import csv
import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

import baselines  # noqa: F401  Registers its algorithms.
import tasks  # noqa: F401  Registers the tasks.
from tff_codist import errors
from tff_codist.tuning import plan

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_COMMAND = str(_ROOT / 'bin' / 'tune.py')
_DIGITS = (
  *('--preset=digits', '--quick', '--pools.cohort_size', '4', '2'),
  *('--task.validation_clients=5', '--program.rounds=2'),
)
_RATES = 'merged.learning_rate=log:1e-5:1e-1'


def _plan(tmp_path, *flags, search=(_RATES,), **settings):
  return plan.plan(
    [*_DIGITS, *flags], out=tmp_path / 'study', search=search, **settings
  )


@pytest.mark.parametrize(
  ('flags', 'settings', 'message'),
  [
    (['--server.learning_rat=1'], {}, "use '--server.learning_rate'"),
    (['--merged.learning_rate=1'], {}, 'given 2 times'),
    (['--run_dir=r'], {}, 'unknown flag'),
    (['--program.evaluate_on', 'test'], {}, 'leave it out'),
    (['--algorithm.name=fed_avg'], {}, "no effect with 'fed_avg'"),
    ([], {'search': ['merged.step=1,2']}, "use 'merged.steps'"),
    ([], {'search': ['merged.steps=int:0:3']}, 'above 0'),
    ([], {'search': ['merged.steps=1,2.5']}, 'invalid int'),
    ([], {'search': ['periodic.steps=1,2']}, "with 'merged_codist'"),
    ([], {'search': ['server.optimizer=fedadam,fedadm']}, "use 'fedadam'"),
    ([], {'search': ['merged.steps=int:3:2']}, 'LOW below HIGH'),
    ([], {'pools': ['larg']}, "use 'large'"),
    ([], {'designer': 'gird'}, "use 'grid'"),
    ([], {'designer': 'grid'}, 'lists of values'),
    ([], {'last': 0}, '--last 0'),
    (['--pools.client_lists', '/nowhere/a', '/nowhere/b'], {}, 'no readable'),
  ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
  tmp_path, flags, settings, message
):
  with pytest.raises(errors.CodistError, match=message) as caught:
    _plan(tmp_path, *flags, **settings)
  assert caught.value.exit_code == 2
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_validation_clients_are_needed(tmp_path):
  with pytest.raises(errors.ConfigError, match='--task'):
    plan.plan(
      ['--preset=digits', '--quick'], out=tmp_path / 's', search=[_RATES]
    )
  assert not list(tmp_path.iterdir())


def test_study_on_digits(tmp_path, capsys):
  """Two trials, the second by a command that goes on; then only the report."""
  out = tmp_path / 'study'
  main = runpy.run_path(_COMMAND)['main']

  def tune(num_trials):
    study = ['--search', _RATES, f'--trials={num_trials}', f'--out={out}']
    main([*_DIGITS, *study])
    return capsys.readouterr()

  tune(1)
  metrics = out / 'trials' / '001' / 'metrics.csv'
  before = metrics.stat().st_mtime_ns
  printed = tune(2)
  assert metrics.stat().st_mtime_ns == before
  assert 'trial 1:' not in printed.err and 'trial 2:' in printed.err
  with open(out / 'trials.csv', newline='') as file:
    trials = list(csv.DictReader(file))
  assert [trial['status'] for trial in trials] == ['completed'] * 2
  rates = [float(trial['merged.learning_rate']) for trial in trials]
  for trial, rate in zip(trials, rates):
    run_dir = out / 'trials' / f'{int(trial["trial"]):03d}'
    config = json.loads((run_dir / 'config.json').read_text())
    assert config['merged']['learning_rate'] == rate
    assert config['program']['evaluate_on'] == 'validation'
    with open(run_dir / 'metrics.csv', newline='') as file:
      last = list(csv.DictReader(file))[-1]
    accuracies = [float(last[f'eval/{p}/accuracy']) for p in ('small', 'large')]
    assert float(trial['value']) == pytest.approx(sum(accuracies) / 2)
  best = printed.out.strip().splitlines()[-1]
  assert best.startswith('python bin/train.py --preset=digits --quick')
  assert 'evaluate_on' not in best

  (tmp_path / 'tensorflow.py').write_text('raise AssertionError("imported")\n')
  shown = subprocess.run(
    [sys.executable, _COMMAND, f'--out={out}'],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
    env={**os.environ, 'PYTHONPATH': str(tmp_path)},
  )
  assert (shown.returncode, shown.stderr) == (0, '')
  assert shown.stdout == printed.out

  with pytest.raises(errors.RunFolderError, match='last: 3 there, 1 now'):
    _plan(tmp_path, last=1)
  with pytest.raises(errors.ConfigError, match='--trials 0'):
    tune(0)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--trials=32'], 'or repeat the whole command'),
    (['--nomedian_stopping'], 'no --search'),
    (['--preset=digits'], 'no --search'),
    (['again'], 'no --search'),
    (['--trails=3'], "use '--trials'"),
    (['--search', _RATES, '--job=2'], "use '--jobs'"),
    (['--search', _RATES, '--server.learning_rat=1'], "'--server.learning_rat"),
    (['--search', _RATES, '--merged.nomatch_nor'], "'--merged.nomatch_norm'"),
    (['--search', _RATES, '--nomedian_stopping', '--min_trials=3'], 'one of'),
    # Before data is looked for, of which there is none.
    (['--search', _RATES, '--trials=0', '--preset=cifar100'], '--trials 0'),
    (['--search', _RATES, '--jobs=0', '--preset=cifar100'], '--jobs 0'),
  ],
)
def test_wrong_options_are_one_sentence_and_write_nothing(
  tmp_path, monkeypatch, flags, message
):
  monkeypatch.setenv('TFF_CODIST_DATA_DIR', str(tmp_path / 'none'))
  main = runpy.run_path(_COMMAND)['main']
  with pytest.raises(errors.ConfigError, match=message) as caught:
    main([f'--out={tmp_path / "study"}', *flags])
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_report_of_no_study(tmp_path):
  main = runpy.run_path(_COMMAND)['main']
  with pytest.raises(errors.RunFolderError, match='no study in'):
    main([f'--out={tmp_path}'])
  assert not list(tmp_path.iterdir())
