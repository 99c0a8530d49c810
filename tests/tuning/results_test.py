"""What a study prints, writes and draws."""

import csv
import io

import pytest

from tff_codist import config as config_lib
from tff_codist import tuning


@pytest.fixture
def ended(study):
  """Returns a study of four trials, one of each kind."""
  made = study(
    'merged.learning_rate=log:1e-5:1e-1',
    'merged.steps=int:1:3',
    'distillation.loss=kl,l2',
    'merged.distillation_weight[large]=linear:0:1',
  )
  outcomes = [
    {'status': 'completed', 'value': 0.5, 'rounds': 40},
    {'status': 'stopped', 'value': 0.61, 'rounds': 10},
    {'status': 'infeasible', 'reason': 'not finite'},
    {'status': 'completed', 'value': 0.6, 'rounds': 40},
    {},
  ]
  for number, outcome in enumerate(outcomes, start=1):
    values = {
      'merged.learning_rate': f'1e-0{number}',
      'merged.steps': f'{1 + number % 3}',
      'distillation.loss': 'kl',
      'merged.distillation_weight[large]': f'0.{number}',
    }
    made.record(tuning.Trial(number, values, **outcome))
  return made


def test_table_has_the_best_first(ended):
  text = tuning.trials_table(ended)
  assert max(map(len, text.splitlines())) <= 80
  rows = [line.split() for line in text.splitlines()]
  assert ['2', 'stopped', '61.00', '10', '1e-02', '3'] in rows
  start = rows.index(next(row for row in rows if row[:1] == ['trial']))
  assert [row[0] for row in rows[start + 1 : start + 6]] == list('24135')
  assert '1 running, 2 completed, 1 stopped, 1 infeasible' in text
  assert 'Trial 3 is infeasible: not finite' in text


def test_long_names_and_reasons_are_wrapped(study):
  pools = [f'a_pool_with_a_long_name_{i}' for i in range(4)]
  made = study(trials=('0.1',), pools=pools)
  reason = 'error: Found ' + 40 * 'word ' + 'end.'
  made.record(
    tuning.Trial(
      1, {'merged.learning_rate': '0.1'}, status='infeasible', reason=reason
    )
  )
  text = tuning.trials_table(made)
  assert max(map(len, text.splitlines())) <= 80
  assert all(pool in text for pool in pools)
  assert text.endswith('word end.\n')


def test_csv_has_every_trial(ended):
  rows = list(csv.DictReader(io.StringIO(tuning.trials_csv(ended))))
  assert [row['trial'] for row in rows] == list('12345')
  assert rows[1]['value'] == '0.61' and rows[2]['value'] == ''
  assert rows[2]['reason'] == 'not finite'
  assert rows[3]['merged.distillation_weight[large]'] == '0.4'


def test_winner_is_trained_on_and_tested(ended):
  command = tuning.winner_command(ended)
  assert command == (
    'python bin/train.py --merged.learning_rate=1e-04 --merged.steps=2 '
    '--distillation.loss=kl --merged.distillation_weight 0.5 0.4 '
    f'--run_dir={ended.path}/best'
  )
  assert 'evaluate_on' not in command


def test_picture(ended):
  path = tuning.plot_trials(ended)
  assert path == ended.path / 'trials.png'
  assert path.read_bytes().startswith(b'\x89PNG')


def test_study_without_a_result(study):
  made = study(config=config_lib.Config(), trials=('0.1',))
  assert tuning.winner_command(made) == ''
  assert '1 running' in tuning.trials_table(made)
  assert tuning.plot_trials(made).exists()
