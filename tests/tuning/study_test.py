"""The folder of a study: what is another study, and what is none."""

import json
import shutil

import pytest

from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import tuning


def test_another_study_in_the_folder_is_refused_field_by_field(study):
  made = study(trials=('0.1',))
  made.record(tuning.Trial(2, {}, status='completed', value=0.5, rounds=1))
  again = study()
  again.resume()
  assert again.trials == made.trials
  config = config_lib.change(
    made.config, server={'learning_rate': 0.5}, program={'rounds': 7}
  )
  other = study('merged.steps=1,2', config=config, last=4)
  with pytest.raises(errors.RunFolderError) as caught:
    other.resume()
  for difference in (
    "search: ('merged.learning_rate=0.1,0.2,0.3,0.4,0.5',) there, "
    "('merged.steps=1,2',) now",
    'last: 3 there, 4 now',
    'server.learning_rate: 0.01 there, 0.5 now',
    'program.rounds: 100 there, 7 now',
  ):
    assert difference in caught.value.found
  assert 'designer' not in caught.value.found
  assert caught.value.exit_code == 2


def test_values_may_be_others_as_long_as_there_are_none(study):
  made = study(trials=('0.1',), metric='acuracy')
  other = study(metric='loss', pools=('small',), last=1)
  other.resume()
  assert other.trials == made.trials
  assert other.settings.metric == 'loss'
  with pytest.raises(errors.RunFolderError, match='designer: ') as caught:
    study(designer='random', metric='loss').resume()
  assert 'metric' not in caught.value.found
  made.record(tuning.Trial(1, {}, status='infeasible', reason='nan'))
  with pytest.raises(
    errors.RunFolderError, match=r'metric: .*; pools: .*; last: '
  ):
    other.resume()


def test_folder_with_something_else_is_refused(study, tmp_path):
  made = study()
  made.resume()
  made.path.mkdir()
  # A kill while the first file was written leaves its temporary form.
  (made.path / '.study.json.123').touch()
  made.resume()
  assert not made.trials
  (made.path / 'thesis.tex').touch()
  with pytest.raises(errors.RunFolderError, match='something else'):
    made.resume()
  (tmp_path / 'file').touch()
  below = tuning.Study(
    tmp_path / 'file' / 'study',
    settings=made.settings,
    config=made.config,
    flags=(),
  )
  with pytest.raises(errors.RunFolderError, match='cannot be used'):
    below.resume()


def test_folder_without_a_study_or_with_a_damaged_one(study, tmp_path):
  with pytest.raises(errors.RunFolderError, match='no study in'):
    tuning.Study.load(tmp_path)
  made = study(trials=('0.1',))
  file = made.path / 'study.json'
  content = file.read_text()
  for damaged in (content[:-20], '[]', content.replace('"number"', '"n"')):
    file.write_text(damaged)
    with pytest.raises(errors.RunFolderError, match='a damaged'):
      tuning.Study.load(made.path)
  tree = json.loads(content)
  del tree['config']['program']['evaluate_on']
  file.write_text(json.dumps(tree))
  with pytest.raises(errors.ConfigError, match='without program'):
    tuning.Study.load(made.path)


@pytest.mark.parametrize('field', ['last', 'min_trials'])
def test_numbers_below_1(study, field):
  with pytest.raises(errors.ConfigError, match=f'--{field} 0'):
    study(**{field: 0})


def test_objective_is_the_mean_over_the_chosen_pools(study, write_run):
  made = study(pools=('large', 'medium'))
  made.run_dir(1).parent.mkdir(parents=True)
  write_run(
    'study/trials/001',
    rounds=(0, 4, 8),
    accuracies={
      'small': [0, 0, 0],
      'medium': [0.9, 0.2, 0.4],
      'large': [0.9, 0.4, 0.8],
    },
    done=False,
  )
  rounds, values = made.series(1)
  assert list(rounds) == [4, 8]
  assert list(values) == pytest.approx([0.3, 0.6])
  assert made.series(2) is None


def test_trial_may_end_while_its_metrics_are_read(
  study, write_run, monkeypatch
):
  """It was still training when it could not be read, so that is no damage."""
  made = study(pools=('large',))
  made.run_dir(1).parent.mkdir(parents=True)
  accuracies = {'large': [0.9, 0.4]}

  def end(run_dir):
    write_run('study/trials/001', rounds=(0, 4), accuracies=accuracies)
    raise errors.RunFolderError(f'no folder {run_dir}', expected='', fix='')

  with monkeypatch.context() as patch:
    patch.setattr('tff_codist.tuning.study.runs_lib.load_run', end)
    assert made.series(1) is None
  assert made.is_done(1)
  assert list(made.series(1)[1]) == [0.4]


def test_series_of_an_ended_trial_is_read_once_up_to_its_result(
  study, write_run
):
  made = study(trials=('0.1',))
  made.run_dir(1).parent.mkdir(parents=True)

  def train(*rounds):
    accuracies = [r / 10 for r in rounds]
    shutil.rmtree(made.run_dir(1), ignore_errors=True)
    write_run(
      'study/trials/001',
      rounds=rounds,
      accuracies={'small': accuracies, 'large': accuracies},
      done=False,
    )

  train(0, 4)
  assert list(made.series(1)[0]) == [4]
  train(0, 4, 6, 8)
  assert list(made.series(1)[0]) == [4, 6, 8]
  made.record(tuning.Trial(1, {}, status='stopped', value=0.6, rounds=6))
  for _ in range(2):
    rounds, values = made.series(1)
    assert (list(rounds), list(values)) == ([4, 6], [0.4, 0.6])
    train(0, 2)
