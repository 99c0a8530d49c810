import struct
import warnings

import pytest
from matplotlib import image

from tff_codist import errors
from tff_codist.reports import plots
from tff_codist.reports import runs
from tff_codist.reports import style


@pytest.fixture(autouse=True)
def no_warnings():
  """Fails on matplotlib's warnings: a lost glyph, a layout that broke."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    yield


@pytest.fixture
def load(write_run):
  """Returns a function that writes a run with all metrics and loads it."""

  def write_and_load(
    name='run', *, pools=('small', 'large'), last=40, **kwargs
  ):
    rounds = range(0, last + 1, 10)
    every = {r: 0.5 / (1 + r) for r in range(1, last + 1)}
    metrics = {
      'exchange/agreement_top1': {r: 0.01 * r for r in rounds},
      'exchange/agreement_kl': {r: 2.0 / (1 + r) for r in rounds},
    }
    for pool in pools:
      metrics[f'exchange/{pool}/federated_norm'] = every
      metrics[f'exchange/{pool}/distillation_norm'] = every
      metrics[f'exchange/{pool}/cosine'] = every
      metrics[f'cost/{pool}/uplink_bytes'] = dict.fromkeys(every, 10**6)
      metrics[f'cost/{pool}/downlink_bytes'] = dict.fromkeys(every, 10**6)
    accuracies = {pool: [0.5 + 0.001 * r for r in rounds] for pool in pools}
    folder = write_run(
      name,
      **{
        'accuracies': accuracies,
        'rounds': rounds,
        'metrics': metrics,
        **kwargs,
      },
    )
    return runs.load_run(folder)

  return write_and_load


def _check_picture(path):
  """Checks that a file is a whole PNG, has ink, and is not large."""
  data = path.read_bytes()
  assert data[:8] == b'\x89PNG\r\n\x1a\n'
  assert data.endswith(b'IEND' + struct.pack('>I', 0xAE426082))
  assert 5_000 < len(data) < 150_000
  pixels = image.imread(path)
  assert min(pixels.shape[:2]) > 400
  assert pixels.std() > 0.05


@pytest.mark.parametrize('pools', [('small',), tuple('abcde')])
def test_plot_run_draws_every_picture_into_the_run_folder(load, pools):
  run = load(pools=pools)
  paths = plots.plot_run(run)
  assert [path.name for path in paths] == [
    'accuracy.png',
    'agreement.png',
    'bytes_against_accuracy.png',
    'norms.png',
    'pools.png',
    'sizes.png',
  ]
  assert sorted((run.path / 'plots').iterdir()) == sorted(paths)
  for path in paths:
    _check_picture(path)


def test_plot_run_leaves_out_what_was_not_measured(load, tmp_path):
  run = load(
    metrics={}, accuracies={'small': [0.5]}, rounds=[0], pools=('small',)
  )
  paths = plots.plot_run(run, tmp_path / 'elsewhere')
  names = [path.name for path in paths]
  assert names == ['accuracy.png', 'pools.png', 'sizes.png']
  assert not (run.path / 'plots').exists()


def test_plot_run_survives_zeros_and_values_that_are_not_finite(load):
  zeros = dict.fromkeys(range(1, 301), 0.0)
  run = load(
    pools=('small',),
    accuracies={'small': [0.5, 'nan', 'nan']},
    rounds=(0, 10, 20),
    metrics={
      'exchange/agreement_top1': {0: 1.0, 10: 'nan'},
      'exchange/agreement_kl': {0: 0.0, 10: 'inf'},
      'exchange/small/federated_norm': zeros,
      'exchange/small/cosine': dict.fromkeys(zeros, 'nan'),
      'cost/small/uplink_bytes': zeros,
    },
    clients={'small': {'a': [0, 0]}},
  )
  names = [path.name for path in plots.plot_run(run)]
  assert names == [
    'accuracy.png',
    'agreement.png',
    'norms.png',
    'pools.png',
    'sizes.png',
  ]


def test_norms_survive_a_model_that_diverges(load, tmp_path):
  norms = {1: 1.0, 2: 0.0, 3: 'inf', 4: 'nan'}
  run = load(pools=('small',), metrics={'exchange/small/federated_norm': norms})
  _check_picture(plots.norms(run, tmp_path)[0])


def test_plot_comparison_of_seeds_and_runs_of_different_length(load, tmp_path):
  paths = plots.plot_comparison(
    [
      load('a', seed=1),
      load('b', seed=2, last=20),
      load('c', algorithm='merged_codist', pools=('small', 'large', 'huge')),
      load('d', algorithm='fed_df', metrics={}),
    ],
    tmp_path / 'out',
  )
  assert [path.name for path in paths] == [
    'accuracy.png',
    'agreement.png',
    'bytes_against_accuracy.png',
  ]
  for path in paths:
    _check_picture(path)


def test_plot_comparison_has_a_look_for_many_algorithms(load, tmp_path):
  many = [load(f'{i}', algorithm=f'a{i}', pools=('small',)) for i in range(12)]
  _check_picture(plots.evaluations(many, tmp_path)[0])


def test_an_algorithm_has_the_same_colour_in_all_pictures(load, tmp_path):
  # fed_avg has not measured agreement; merged_codist stays the second colour.
  both = [
    load('a', metrics={}),
    load('b', algorithm='merged_codist'),
  ]
  path = plots.agreement(both, tmp_path)[0]
  pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
  first, second = (
    (pixels == colour).all(axis=-1).any()
    for colour in ([0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00])
  )
  assert second and not first


def test_plot_comparison_refuses_different_tasks(load, tmp_path):
  with pytest.raises(errors.RunFolderError, match='different tasks'):
    plots.plot_comparison(
      [load('a'), load('b', task='cifar100')], tmp_path / 'out'
    )
  assert not (tmp_path / 'out').exists()


def test_norms_of_many_rounds_are_drawn_in_blocks(load, tmp_path):
  _check_picture(plots.norms(load(last=330), tmp_path)[0])


@pytest.mark.parametrize(
  ('metric', 'values'),
  [
    ('accuracy_p10', [0.1, 0.2, 0.3]),
    ('loss', [9.2, 'nan', 5.1]),
    ('perplexity', ['inf', 1e4, 90.5]),
    ('questions/accuracy', [0.0, 0.0, 0.0]),
  ],
)
def test_a_metric_that_one_pool_lacks_is_drawn(load, tmp_path, metric, values):
  run = load(
    accuracies={'small': [0.5] * 3, 'large': [0.5] * 3},
    rounds=(0, 10, 20),
    metrics={
      f'eval/large/{metric}': dict(zip((0, 10, 20), values)),
      'cost/large/uplink_bytes': {1: 10**6, 11: 10**6},
    },
  )
  paths = [
    *plots.evaluations([run], tmp_path, metric=metric),
    *plots.communication([run], tmp_path, metric=metric),
  ]
  stem = metric.replace('/', '_')
  names = [path.name for path in paths]
  assert names == [f'{stem}.png', f'bytes_against_{stem}.png']
  for path in paths:
    _check_picture(path)


def test_a_metric_that_a_run_lacks_is_refused(load, tmp_path):
  runs_of_two = [
    load('a', metrics={'eval/small/loss': {0: 1.0}}),
    load('b', algorithm='merged_codist', metrics={}),
  ]
  expected = r"no metric 'loss' in .*b/metrics.csv; expected one of accuracy\."
  with pytest.raises(errors.ConfigError, match=expected):
    plots.plot_comparison(runs_of_two, tmp_path, metric='loss')
  assert not list(tmp_path.glob('*.png'))


def test_domains_have_a_panel_each(load, tmp_path):
  metrics = {
    f'eval/{pool}/{domain}/accuracy': {0: 0.1, 10: 0.2, 20: 0.3}
    for pool in ('small', 'large')
    for domain in ('answers', 'questions')
  }
  several = [
    load('a', metrics=metrics, domains=('answers', 'questions')),
    load('b', metrics=metrics, domains=('answers', 'questions'), seed=2),
    load('c', metrics={}, algorithm='merged_codist'),
  ]
  one = plots.plot_run(several[0], tmp_path / 'one')
  assert tmp_path / 'one' / 'domains.png' in one
  both = plots.plot_comparison(several, tmp_path / 'both')
  assert tmp_path / 'both' / 'domains.png' in both
  for path in (*one, *both):
    _check_picture(path)


def test_no_curve_leaves_its_panel(load, tmp_path, monkeypatch):
  pictures = []
  save = style.save
  monkeypatch.setattr(
    style,
    'save',
    lambda picture, *rest: pictures.append(picture) or save(picture, *rest),
  )
  metrics = {
    f'eval/{pool}/{domain}/accuracy': {0: 0.01, 10: best}
    for pool in ('small', 'large')
    for domain, best in (('answers', 0.1), ('questions', 0.4))
  }
  run = load(metrics=metrics, domains=('answers', 'questions'))
  plots.domains([run], tmp_path)
  ((low, high),) = [picture.axes for picture in pictures]
  for panel in (low, high):
    top = max(max(line.get_ydata()) for line in panel.lines)
    assert top <= panel.get_ylim()[1]
  assert low.get_ylim() == high.get_ylim()


def test_pictures_are_the_same_bytes_when_drawn_again(load, tmp_path):
  run = load()
  first = plots.norms(run, tmp_path / '1')[0].read_bytes()
  again = plots.norms(run, tmp_path / '2')[0].read_bytes()
  assert first == again


def test_a_picture_that_cannot_be_written_is_a_storage_error(load, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.StorageError, match='cannot be written'):
    plots.evaluations([load()], tmp_path / 'file')
