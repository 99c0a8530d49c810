"""Studies run from start to end, with a stand-in for the training."""

import pytest

from tff_codist import errors
from tff_codist import tuning


def _outcomes(study):
  return {
    trial.values['merged.learning_rate']: (trial.status, trial.rounds)
    for trial in study.trials
  }


def test_value_is_the_mean_of_the_last_evaluations_and_failures_go_on(
  study, keep, train_command
):
  keep('0.1', [0.2, 0.3, 0.5])
  keep('0.3', [0.2, 0.8])
  made = study(trials=('0.1', '0.2', '0.3'), last=2)
  tuning.run_trials(made, num_trials=3, jobs=3, train_command=train_command)
  assert _outcomes(made) == {
    '0.1': ('completed', 30),
    '0.2': ('infeasible', None),
    '0.3': ('completed', 20),
  }
  one, failed, best = made.trials
  assert one.value == pytest.approx(0.4)
  assert failed.value is None
  assert failed.reason == 'error: Found a model that is not finite.'
  assert best.value == pytest.approx(0.5)
  assert made.winner == best
  assert [t.number for t in made.ranked()] == [3, 1, 2]
  # What is in the folder is the same.
  assert tuning.Study.load(made.path).trials == made.trials


def test_study_goes_on_where_it_was(study, keep, train_command):
  """What has ended is not repeated, what was begun keeps its values."""
  for i in range(1, 6):
    keep(f'0.{i}', [0.1 * i])
  made = study(designer='grid')
  tuning.run_trials(made, num_trials=2, train_command=train_command)
  third = tuning.Trial(3, {'merged.learning_rate': '0.5'})
  made.record(third)  # It had been suggested when the study was killed.
  resumed = study(designer='grid').resume()
  assert resumed.trials == made.trials
  tuning.run_trials(resumed, num_trials=4, jobs=2, train_command=train_command)
  assert [trial.status for trial in resumed.trials] == ['completed'] * 4
  assert resumed.trials[:2] == made.trials[:2]
  assert resumed.trials[2].values == third.values
  assert resumed.trials[2].value == pytest.approx(0.5)
  for number in range(1, 5):
    assert resumed.log(number).read_text().count('trains with') == 1
  # The grid of five has no sixth trial.
  tuning.run_trials(resumed, num_trials=9, train_command=train_command)
  assert len(resumed.trials) == 5


def test_bad_trial_is_stopped_at_an_evaluation(study, keep, train_command):
  """Running means at 10 and 20: 0.3, 0.4 and 0.5, 0.6; medians 0.4, 0.5."""
  keep('0.1', [0.3, 0.5])
  keep('0.2', [0.5, 0.7])
  # Not worse at 10, worse at 20; what it still does until it ends is nothing.
  keep('0.3', [0.42, 0.2, 0.9], done=False)
  made = study(trials=('0.1', '0.2', '0.3'), min_trials=2, last=1)
  tuning.run_trials(made, num_trials=3, train_command=train_command)
  assert _outcomes(made)['0.3'] == ('stopped', 20)
  assert made.trials[2].value == pytest.approx(0.2)
  # Only a trial that was trained to its end can win.
  assert made.winner.values == {'merged.learning_rate': '0.2'}


def test_lower_loss_is_better(study, keep, train_command):
  def losses(*values):
    columns = {10 * i: value for i, value in enumerate(values)}
    return {f'eval/{pool}/loss': columns for pool in ('small', 'large')}

  keep('0.1', [0.9, 0.9], metrics=losses(9, 2, 1))
  keep('0.2', [0.1, 0.1], metrics=losses(9, 5, 4), done=False)
  made = study(trials=('0.1', '0.2'), metric='loss', min_trials=1, last=1)
  tuning.run_trials(made, num_trials=2, train_command=train_command)
  assert _outcomes(made) == {'0.1': ('completed', 20), '0.2': ('stopped', 10)}
  assert [trial.value for trial in made.ranked()] == [1, 5]


def test_refused_configuration_stops_the_study(study, keep, train_command):
  keep('0.1', [0.1])
  (keep('0.2', [0.1]) / 'code').write_text('2')
  made = study(trials=('0.2', '0.1'))
  with pytest.raises(errors.ConfigError, match='Found no such thing') as caught:
    tuning.run_trials(made, num_trials=2, train_command=train_command)
  assert '\n' not in str(caught.value)
  assert [trial.status for trial in made.trials] == ['running', 'running']


def test_killed_training_is_no_result(study, keep, train_command):
  (keep('0.1', [0.1]) / 'code').write_text('137')
  made = study(trials=('0.1',))
  with pytest.raises(errors.CodistError, match='exit code 137') as caught:
    tuning.run_trials(made, num_trials=1, train_command=train_command)
  assert caught.value.exit_code == 1
  assert made.trials[0].status == 'running'


def test_metric_that_the_evaluations_do_not_have(study, keep, train_command):
  keep('0.1', [0.1], done=False)
  made = study(trials=('0.1',), metric='acuracy')
  with pytest.raises(errors.ConfigError, match="no metric 'acuracy'"):
    tuning.run_trials(made, num_trials=1, train_command=train_command)


@pytest.mark.parametrize('number', [{'num_trials': 0}, {'jobs': 0}])
def test_numbers_below_1(study, number):
  with pytest.raises(errors.ConfigError, match='above 0'):
    tuning.run_trials(study(), **{'num_trials': 1, **number})
