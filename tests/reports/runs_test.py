import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tff_codist import errors
from tff_codist.reports import runs


def test_load_run_reads_what_was_written(write_run):
  folder = write_run(
    accuracies={'small': [0.1, 0.2], 'large': [0.3, 0.4]},
    rounds=(0, 5),
    algorithm='merged_codist',
    seed=7,
    task='cifar100',
    # Not in round 0, and a column without any value.
    metrics={'train/small/loss': {1: 2.5, 5: 2.0}, 'exchange/nothing': {}},
    num_classes=3,
  )
  run = runs.load_run(folder)
  assert (run.algorithm, run.seed, run.task) == ('merged_codist', 7, 'cifar100')
  assert run.pool_names == ('small', 'large')
  assert run.model('large') == 'cnn_large'
  assert (run.num_classes, run.last_round, run.finished) == (3, 5, True)
  assert run.failure is None
  assert set(run.metrics) == {
    'eval/small/accuracy',
    'eval/large/accuracy',
    'train/small/loss',
  }
  rounds, losses = run.metrics['train/small/loss']
  np.testing.assert_array_equal(rounds, [1, 5])
  np.testing.assert_array_equal(losses, [2.5, 2.0])


def test_load_run_reads_a_run_that_still_trains_and_one_that_failed(write_run):
  folder = write_run(done=False)
  assert not runs.load_run(folder).finished
  (folder / 'FAILED.txt').write_text(
    '2026-01-31T12:00:00+00:00\nTraceback:\nWorkerError: it died\n'
  )
  assert runs.load_run(folder).failure == 'WorkerError: it died'


def test_load_run_keeps_values_that_are_not_finite(write_run):
  folder = write_run(accuracies={'small': [0.5, 'nan', 'inf']})
  _, values = runs.load_run(folder).metrics['eval/small/accuracy']
  np.testing.assert_array_equal(values, [0.5, np.nan, np.inf])


def test_load_run_refuses_a_missing_folder(tmp_path):
  with pytest.raises(errors.RunFolderError, match=r'no folder .*nowhere'):
    runs.load_run(tmp_path / 'nowhere')


def test_load_run_refuses_a_folder_without_permission(tmp_path, monkeypatch):
  def deny(*_, **__):
    raise PermissionError(13, 'Permission denied')

  # Tests may run as root, to whom nothing is denied.
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'stat', deny)
    with pytest.raises(errors.RunFolderError, match='cannot be read'):
      runs.load_run(tmp_path)


def test_load_run_refuses_a_folder_that_is_no_run(tmp_path):
  with pytest.raises(errors.RunFolderError, match=r'has no config\.json'):
    runs.load_run(tmp_path)


@pytest.mark.parametrize('content', [None, '', 'round,train/small/loss\r\n'])
def test_load_run_refuses_metrics_without_evaluation(write_run, content):
  folder = write_run()
  (folder / 'metrics.csv').unlink()
  if content is not None:
    (folder / 'metrics.csv').write_text(content)
  with pytest.raises(errors.RunFolderError, match='no evaluation'):
    runs.load_run(folder)


def test_load_run_names_the_pool_without_evaluation(write_run):
  folder = write_run(accuracies={'small': [0.1, 0.2, 0.3], 'large': []})
  with pytest.raises(errors.RunFolderError, match='of pool large'):
    runs.load_run(folder)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    # The last digits of a cell are lost, which its number does not show.
    ('round,a\n0,0.1\n1,0.12', r'line 3: a torn line'),
    ('round,a,b\n0,0.1,0.2\n1,0.1\n', r'line 3: 2 cells under 3 columns'),
    ('round,a\n0,0.1\n1,x\n', r"line 3: 'x' as a, no number"),
    ('round,a\n0,0.1\n\n', r'line 3: 0 cells'),
    ('round,a\n1,0.1\n1,0.2\n', r"line 3: round '1' after round 1"),
    ('round,a\n0.5,0.1\n', r"line 2: round '0.5'"),
    ('round,a\n-1,0.1\n', r"line 2: round '-1'"),
    ('a,round\n0.1,0\n', r'line 1: no header'),
    ('round,a,a\n0,1,1\n', r'line 1: no header'),
    ('round,a\n0,"0.1\n', r'line 2: '),
    ('round,a\n0,\0\0\n', r'line 2: '),
  ],
)
def test_load_run_names_file_and_line_of_torn_metrics(
  write_run, content, message
):
  folder = write_run()
  (folder / 'metrics.csv').write_text(content)
  with pytest.raises(errors.RunFolderError, match=r'metrics\.csv, ' + message):
    runs.load_run(folder)


def test_load_run_names_the_line_of_bytes_that_are_no_text(write_run):
  folder = write_run()
  (folder / 'metrics.csv').write_bytes(b'round,a\n0,\xff\n')
  with pytest.raises(errors.RunFolderError, match='line 2: bytes'):
    runs.load_run(folder)


@pytest.mark.parametrize('name', ['config.json', 'pools.json'])
def test_load_run_names_file_and_line_of_torn_json(write_run, name):
  folder = write_run()
  (folder / name).write_text('{\n  "task": {\n')
  with pytest.raises(errors.RunFolderError, match=f'{name}, line 3: no JSON'):
    runs.load_run(folder)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('config.json', '[]', 'line 1: a JSON list'),
    ('config.json', '{"task": {}}', 'no value for task.name'),
    ('config.json', '{"task": {"name": 3}}', '3 for task.name'),
    ('pools.json', '{"num_classes": 2}', 'no value for num_clients'),
  ],
)
def test_load_run_names_the_field_that_is_wrong(
  write_run, name, content, message
):
  folder = write_run()
  (folder / name).write_text(content)
  with pytest.raises(errors.RunFolderError, match=message):
    runs.load_run(folder)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'pools': {}}, 'pools  in'),
    ({'disjoint': 1}, '1 for disjoint'),
    ({'num_clients': True}, 'True for num_clients'),
    ({'domains': ['answers']}, 'small.clients.*domains in .* without 1 counts'),
    ({'num_classes': 3}, r"clients\['a'\].labels in .* without 3 counts"),
  ],
)
def test_load_run_checks_the_pools(write_run, change, message):
  counts = {'a': {'examples': 2, 'labels': [1, 1], 'domains': []}}
  folder = write_run(clients={'small': counts})
  path = folder / 'pools.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
  with pytest.raises(errors.RunFolderError, match=message):
    runs.load_run(folder)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'noise_multiplier': [1.0, 2.0]}, '2 values for privacy.noise_multiplier'),
    ({'mechanism': 'gaussian'}, "'gaussian' for privacy.mechanism"),
    ({'delta': None}, 'no value for privacy.delta'),
  ],
)
def test_load_run_checks_the_privacy(write_run, change, message):
  privacy = {
    'mechanism': ['gaussian'],
    'noise_multiplier': [1.0],
    'clip': [0.1],
    'delta': 1e-5,
    **change,
  }
  folder = write_run(config={'privacy': privacy})
  with pytest.raises(errors.RunFolderError, match=message):
    runs.load_run(folder)


def test_load_run_refuses_a_pool_without_a_client(write_run):
  with pytest.raises(errors.RunFolderError, match=r'no client in pools.small'):
    runs.load_run(write_run(clients={'small': {}}))


def test_metrics_of_the_evaluation_are_listed(write_run):
  metrics = {
    'eval/small/loss': {0: 1.0},
    'eval/small/questions/accuracy': {0: 0.5},
    'train/small/loss': {1: 1.0},
  }
  run = runs.load_run(write_run(metrics=metrics))
  assert run.metric_names == {'accuracy', 'loss', 'questions/accuracy'}
  rounds, values = run.evaluations('small', 'questions/accuracy')
  assert (rounds.tolist(), values.tolist()) == ([0], [0.5])
  assert run.evaluations('small', 'answers/accuracy') is None
  expected = 'expected one of accuracy, loss, questions/accuracy'
  with pytest.raises(errors.ConfigError, match=expected):
    runs.check_metric([run], 'perplexity')


def test_reports_do_not_import_tensorflow():
  # In a process of its own: other tests of this one do import it.
  program = (
    'import sys\n'
    'from tff_codist import reports\n'
    'assert reports.plot_run and reports.membership_table\n'
    'heavy = {name.split(".")[0] for name in sys.modules}\n'
    'heavy &= {"tensorflow", "tensorflow_federated", "jax", "keras"}\n'
    'sys.exit(f"imported {sorted(heavy)}" if heavy else 0)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
