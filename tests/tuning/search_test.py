"""Studies run from start to end, with a stand-in for the training."""

import pytest

from tff_codist import errors
from tff_codist import files
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
  resumed = study(designer='grid')
  resumed.resume()
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


def _bad_trial(study, keep, accuracies, *, after, done):
  """Returns a study of two trials, of which the second is below the median."""
  keep('0.1', [0.8, 0.8])
  (keep('0.2', accuracies, done=done) / 'after.py').write_text(after)
  return study(trials=('0.1', '0.2'), rounds=20, min_trials=1, last=1)


def test_trial_is_left_alone_after_its_last_evaluation(
  study, keep, train_command
):
  """It is no more ready for a signal, and all the work has been done."""
  made = _bad_trial(
    study,
    keep,
    [0.1, 0.2],
    after='time.sleep(0.5)\n(run_dir / "DONE").touch()\n',
    done=False,
  )
  tuning.run_trials(made, num_trials=2, train_command=train_command)
  assert _outcomes(made)['0.2'] == ('completed', 20)
  assert made.trials[1].value == pytest.approx(0.2)


@pytest.mark.parametrize(
  'after',
  [
    'time.sleep(0.5); (run_dir / "plots").mkdir()',
    'sys.exit(1)',
    'os.kill(os.getpid(), signal.SIGTERM)',
  ],
)
def test_trial_that_is_done_is_completed(study, keep, train_command, after):
  """However its process ends, and if its privacy budget ended it early."""
  made = _bad_trial(
    study, keep, [0.1], after=f'import os\n{after}\n', done=True
  )
  tuning.run_trials(made, num_trials=2, train_command=train_command)
  assert _outcomes(made)['0.2'] == ('completed', 10)
  # The study stopped none of them.
  assert (made.run_dir(2) / 'plots').exists() == ('plots' in after)


def test_trial_may_be_stopped_before_it_handles_signals(
  study, keep, train_command
):
  made = _bad_trial(study, keep, [0.1], after='time.sleep(60)', done=False)
  tuning.run_trials(made, num_trials=2, train_command=train_command)
  assert _outcomes(made)['0.2'] == ('stopped', 10)
  assert made.trials[1].value == pytest.approx(0.1)


def test_folder_is_that_of_one_process(study, keep, train_command):
  keep('0.1', [0.1])
  made, other = study(trials=('0.1',)), study()
  with (
    files.lock(made.path),
    pytest.raises(errors.RunFolderError, match='another process'),
  ):
    tuning.run_trials(made, num_trials=1, train_command=train_command)
  assert not made.log(1).exists()
  tuning.run_trials(made, num_trials=1, train_command=train_command)
  # The other was read before that trial was suggested and trained.
  assert not other.trials
  tuning.run_trials(other, num_trials=1, train_command=train_command)
  assert other.trials == made.trials
  assert made.log(1).read_text().count('trains with') == 1


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


def test_full_disk_stops_the_study(study, keep, train_command):
  """As everything that is no fault of the trial's values."""
  code = errors.StorageError('a', expected='b', fix='c').exit_code
  (keep('0.1', [0.1]) / 'code').write_text(f'{code}')
  made = study(trials=('0.1',))
  with pytest.raises(errors.EnvironmentSetupError) as caught:
    tuning.run_trials(made, num_trials=1, train_command=train_command)
  assert caught.value.exit_code == 3
  assert str(caught.value) == (
    'Found trial 1 that ended with exit code 3 (error: Found no such thing.); '
    'expected a training that ends, fails because of its values, or is stopped '
    f'by the study. To fix: mend what {made.log(1)} says; the same command '
    'then goes on with this trial.'
  )
  assert made.trials[0].status == 'running'


@pytest.mark.parametrize('code', [0, 137, 143])
def test_training_that_ends_early_is_no_result(
  study, keep, train_command, code
):
  (keep('0.1', [0.1]) / 'code').write_text(f'{code}')
  made = study(trials=('0.1',))
  with pytest.raises(errors.CodistError, match=f'exit code {code} ') as caught:
    tuning.run_trials(made, num_trials=1, train_command=train_command)
  assert caught.value.exit_code == 1
  assert made.trials[0].status == 'running'


def test_metric_that_the_evaluations_do_not_have(study, keep, train_command):
  kept = keep('0.1', [0.1], done=False)
  made = study(trials=('0.1',), metric='acuracy')
  with pytest.raises(errors.ConfigError, match="no metric 'acuracy'"):
    tuning.run_trials(made, num_trials=1, train_command=train_command)

  # No trial has ended, so that the metric can be corrected.
  (kept / 'DONE').touch()
  made = study(last=1)
  tuning.run_trials(made, num_trials=1, train_command=train_command)
  assert _outcomes(made) == {'0.1': ('completed', 10)}


@pytest.mark.parametrize('number', [{'num_trials': 0}, {'jobs': 0}])
def test_numbers_below_1(study, number):
  with pytest.raises(errors.ConfigError, match='above 0'):
    tuning.run_trials(study(), **{'num_trials': 1, **number})
