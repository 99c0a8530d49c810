"""Wrong input: one clear sentence, exit code 2, nothing written."""

import pytest

import tasks  # noqa: F401
from tff_codist import errors
from tff_codist import experiment
from tff_codist import files
from tff_codist.program import command_line
from tff_codist.program import run_folder
from tff_codist.program import training


def _train(tmp_path, *flags):
  """Does what bin/train.py does up to the first round."""
  run_dir = tmp_path / 'run'
  arguments = command_line.parse(
    [*flags, f'--run_dir={run_dir}'], description=''
  )
  training.train(arguments.config, arguments.folder)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--preset', 'digit'], "use 'digits'"),
    (['--task.name', 'cifar10'], "use 'cifar100'"),
    (['--algorithm.name', 'merged'], "use 'merged_codist'"),
    (['--pools.models', 'small', 'larg'], "use 'large'"),
    (['--distillation.loss', 'kll'], "use 'kl'"),
    (['--server.optimizer', 'fed_adam'], "use 'fedadam'"),
    (['--client.aggregator', 'means'], "use 'mean'"),
    (['--runtime.name', 'stok'], "use 'stock'"),
    (['--server.learning_rat', '1'], "use '--server.learning_rate'"),
    (['--merged.distillation_weight', '1.5'], r'numbers in \[0, 1\]'),
    (['--distillation.temperature', '0'], 'above 0'),
    (['--client.learning_rate', '-1'], 'above 0'),
    (['--client.learning_rate', 'fast'], 'invalid float'),
    (
      ['--algorithm.name', 'periodic_codist', '--periodic.period', '0'],
      'above 0',
    ),
    (['--merged.steps', '0'], 'above 0'),
    (['--pools.cohort_size', '1000'], 'a cohort of 1000'),
    (['--pools.client_lists', '/nowhere/a', '/nowhere/b'], 'no readable file'),
    (['--algorithm.name', 'fed_avg', '--merged.steps', '1'], 'no effect with'),
    (['--periodic.period', '7'], "no effect with 'merged_codist'"),
    (['--server.momentum', '0.5'], "no effect with 'fedadam'"),
    (['--server.optimizer=fedavg', '--server.epsilon=1'], "with 'fedavg'"),
    (['--server.learning_rate_decay=0.5'], 'no --server.rounds_per_decay'),
    (['--server.rounds_per_decay'], 'expected one argument'),
    (['--server.rounds_per_decay=0'], 'an integer above 0, or none'),
    (['--server.rounds_per_decay=nope'], "invalid int value: 'nope'"),
    (['--seed=1', '--seed=2'], 'given 2 times'),
    (['--quick=1'], 'command line'),
    (['--preset'], 'command line'),
    (['--merged.distillation_weight', '0.1', '0.2', '0.3'], 'each pool of'),
    (['--program.rounds', '2.5'], 'invalid int'),
    (['--unlabelled.sources', 'none'], 'unlabelled examples'),
    (['--unlabelled.sources', 'test'], 'test data as distillation data'),
    (['--unlabelled.sources', 'client'], "use 'clients'"),
    (['--unlabelled.sources', 'held_out'], "'held_out' for task 'digits'"),
    (['--unlabelled.sources', 'tfds:nosuchset'], "no data set 'nosuchset'"),
    (['--unlabelled.weights', '1'], 'no effect with'),
    (['--unlabelled.clients_fraction', '0'], r'a number in \(0, 1\)'),
    (['--text.vocab_size', '9'], "no effect with 'digits'"),
    (['--task.data_dir', '/tmp'], "no effect with 'digits'"),
    (['--task.name', 'stackoverflow', '--text.vocab_size', '0'], 'above 0'),
    (
      ['--task.name', 'stackoverflow', '--text.sequence_length', '1'],
      'at least 2',
    ),
    (['--pools.domains', 'questions'], "for task 'digits', which has no dom"),
    (['--pools.capacity_table', ''], 'the name of a file'),
    (['--pools.capacity_table', 'x.csv'], 'together with'),
    (['--pools.min_capacity', '4'], 'with no --pools.capacity_table'),
    (['--distillation.teacher_weighting', 'clients'], 'fewer than three pools'),
    (['--program.evaluation_clients', '1000'], '1000 of 8 test clients'),
    (
      [
        '--unlabelled.max_examples',
        '1',
        '--unlabelled.sources',
        'clients',
        'noise',
      ],
      'no place for',
    ),
    (
      ['--pools.capacity_table', '/nowhere', '--pools.min_capacity', '1'],
      'no readable file',
    ),
    (
      ['--distillation.min_teacher_accuracy', '0.5'],
      'without a validation set',
    ),
    (['--task.validation_clients', '40'], 'clients are left'),
  ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
  tmp_path, flags, message
):
  with pytest.raises(errors.CodistError, match=message) as caught:
    _train(tmp_path, *flags)
  assert caught.value.exit_code == 2
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_client_in_no_dataset(tmp_path):
  for name in 'ab':
    (tmp_path / name).write_text('nobody\n')
  with pytest.raises(errors.ConfigError, match="'nobody'"):
    _train(tmp_path, '--pools.client_lists', f'{tmp_path}/a', f'{tmp_path}/b')
  assert not (tmp_path / 'run').exists()


def test_folder_with_other_files_is_refused(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'thesis.tex').touch()
  with pytest.raises(errors.RunFolderError, match='something else'):
    _train(tmp_path)


def test_run_dir_below_a_file_is_refused_before_data_is_loaded(tmp_path):
  (tmp_path / 'run').touch()
  with pytest.raises(errors.RunFolderError, match='cannot be used'):
    _train(tmp_path)
  with pytest.raises(errors.RunFolderError, match='cannot be used'):
    training.train(_parse(tmp_path / 'run' / 'below'), tmp_path / 'run' / 'x')


def test_folder_of_no_run_has_no_configuration(tmp_path):
  (tmp_path / 'config.json').mkdir()
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(errors.RunFolderError, match=r'no config\.json in'):
      run_folder.RunFolder(path).read_config()


def _parse(run_dir, *flags):
  return command_line.parse(
    [*flags, f'--run_dir={run_dir}'], description=''
  ).config


def test_folder_in_which_another_process_trains_is_refused(tmp_path):
  run_dir = tmp_path / 'run'
  with (
    files.lock(run_dir),
    pytest.raises(errors.RunFolderError, match='another process'),
  ):
    training.train(_parse(run_dir), run_dir)


def test_start_that_was_killed_early_can_be_repeated(tmp_path):
  (tmp_path / '.config.json.123').touch()
  run_folder.RunFolder(tmp_path).check(_parse(tmp_path))


def test_run_with_an_edited_client_list_is_refused(tmp_path):
  ids = experiment.build_experiment(_parse('r', '--quick')).train.client_ids
  lists = [tmp_path / 'a', tmp_path / 'b']
  for path in lists:
    path.write_text('\n'.join(ids[:12]))
  config = _parse('r', '--quick', '--pools.client_lists', *map(str, lists))
  folder = run_folder.RunFolder(tmp_path / 'run')
  folder.start(experiment.build_experiment(config), command='')
  lists[0].write_text('\n'.join(ids[:13]))
  with pytest.raises(errors.RunFolderError, match='other clients'):
    folder.start(experiment.build_experiment(config), command='')


def test_fed_avg_takes_any_number_of_pools():
  config = _parse(
    'r',
    '--algorithm.name=fed_avg',
    *('--pools.names', 'a', '--pools.models', 'small'),
    *('--pools.clients_fraction', '1', '--pools.cohort_size', '2'),
  )
  experiment.build_experiment(config)


def test_missing_run_dir():
  with pytest.raises(errors.ConfigError, match='run_dir'):
    command_line.parse([], description='')


def test_command_that_writes_nowhere_takes_no_folder():
  arguments = command_line.parse(['--seed=3'], description='', folder_flag=None)
  assert (arguments.config.seed, arguments.folder) == (3, None)
  with pytest.raises(errors.UnknownNameError, match="'--run_dir'"):
    command_line.parse(['--run_dir=r'], description='', folder_flag=None)


def test_flags_override_the_preset():
  config = command_line.parse(
    [
      '--preset=digits',
      '--quick',
      '--run_dir=r',
      '--pools.names',
      'a',
      'b',
      'c',
      '--pools.models',
      'small',
      'medium',
      'large',
      '--pools.clients_fraction',
      '1',
      '0.5',
      '0.25',
      '--pools.cohort_size=4',
      '--merged.distillation_weight=0.25',
      '--merged.match_norm',
      '--merged.norescale',
      '--server.initial_accumulator=0.5',
      '--server.flavor=reddi',
      '--seed=3',
    ],
    description='',
  ).config
  assert config.pools.names == ('a', 'b', 'c')
  assert config.pools.clients_fraction == (1.0, 0.5, 0.25)
  assert config.pools.cohort_size == (4,)
  assert config.merged.distillation_weight == (0.25,)
  assert config.merged.match_norm is True
  assert config.merged.rescale is False
  assert config.server.initial_accumulator == 0.5
  assert config.program.rounds == 4
  assert config.seed == 3
