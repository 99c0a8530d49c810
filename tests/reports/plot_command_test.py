import pathlib
import signal
import subprocess
import sys

import pytest

_COMMAND = pathlib.Path(__file__).parents[2] / 'bin' / 'plot.py'


@pytest.fixture
def plot(tmp_path):
  """Returns a function that runs bin/plot.py in an empty directory."""
  (tmp_path / 'here').mkdir()

  def run(*arguments):
    return subprocess.run(
      [sys.executable, str(_COMMAND), *map(str, arguments)],
      cwd=tmp_path / 'here',
      capture_output=True,
      text=True,
    )

  return run


def test_plot_one_run_prints_its_pictures_and_summary(plot, write_run):
  folder = write_run()
  done = plot('--run_dir', folder)
  assert (done.returncode, done.stderr) == (0, '')
  lines = done.stdout.splitlines()
  assert lines[:3] == [
    str(folder / 'plots' / 'accuracy.png'),
    str(folder / 'plots' / 'pools.png'),
    str(folder / 'plots' / 'sizes.png'),
  ]
  assert all(pathlib.Path(line).exists() for line in lines[:3])
  assert 'accuracy, mean of last 2       65.00%' in lines


def test_reader_that_has_seen_enough_is_no_failure(write_run):
  process = subprocess.Popen(
    [sys.executable, str(_COMMAND), f'--run_dir={write_run()}'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  assert process.stderr.read() == ''
  assert process.wait() == 128 + signal.SIGPIPE
  process.stderr.close()


def test_plot_several_runs_compares_them(plot, write_run, tmp_path):
  folders = write_run('a'), write_run('b', algorithm='merged_codist')
  done = plot('--run_dir', folders[0], '--run_dir', folders[1], '--last', '1')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.splitlines()[:3] == [
    'comparison/accuracy.png',
    'comparison/comparison.csv',
    '',
  ]
  assert (tmp_path / 'here' / 'comparison' / 'accuracy.png').exists()
  assert 'at the last evaluation' in done.stdout
  # The runs' own folders stay as they were.
  assert not (folders[0] / 'plots').exists()


def test_plot_shows_privacy_against_utility(plot, load, load_private, tmp_path):
  folders = [load('a').path, load_private('b').path]
  done = plot('--run_dir', folders[1])
  assert (done.returncode, done.stderr) == (0, '')
  assert str(folders[1] / 'plots' / 'privacy.png') in done.stdout.splitlines()
  assert 'epsilon 5 at delta 1e-05' in done.stdout
  done = plot('--run_dir', folders[0], '--run_dir', folders[1], '--last', '1')
  assert (done.returncode, done.stderr) == (0, '')
  picture = 'comparison/privacy_utility.png'
  assert picture in done.stdout.splitlines()
  assert (tmp_path / 'here' / picture).exists()
  # First the comparison, then privacy; each with its caption.
  assert done.stdout.index('\nAccuracy on') < done.stdout.index('\n\nPrivacy')
  assert 'fed_avg       1  1        2        4        5' in done.stdout


def test_plot_shows_another_metric(plot, write_run):
  folder = write_run(metrics={'eval/small/loss': {0: 2.0, 10: 1.5, 20: 1.0}})
  done = plot('--run_dir', folder, '--metric', 'loss')
  assert (done.returncode, done.stderr) == (0, '')
  lines = done.stdout.splitlines()
  assert lines[0] == str(folder / 'plots' / 'loss.png')
  assert 'loss, mean of last 2         1.25' in lines
  done = plot('--run_dir', folder, '--metric', 'accurcy')
  assert done.returncode == 2
  assert 'one of accuracy, loss' in done.stderr


def test_plot_says_in_one_line_what_is_wrong(plot, write_run, tmp_path):
  torn = write_run('torn')
  (torn / 'metrics.csv').write_text('round,eval/small/accuracy\n0,0.')
  run, other = write_run('a'), write_run('b', task='cifar100')
  for arguments, message in (
    (['--run_dir', tmp_path / 'nowhere'], 'no folder'),
    (['--run_dir', torn], 'metrics.csv, line 2: a torn line'),
    (['--run_dir', run, '--run_dir', other], 'runs of different tasks'),
  ):
    done = plot(*arguments)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.startswith('error: Found ')
    assert message in done.stderr
    assert done.stderr.count('\n') == 1


def test_plot_that_cannot_write_ends_with_exit_code_3(
  plot, write_run, tmp_path
):
  (tmp_path / 'file').touch()
  done = plot('--run_dir', write_run(), '--out', tmp_path / 'file')
  assert done.returncode == 3
  assert done.stderr.startswith('error: Found ')
  assert done.stderr.count('\n') == 1
