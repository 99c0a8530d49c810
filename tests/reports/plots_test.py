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


@pytest.fixture
def pictures(monkeypatch):
  """Returns the list of the figures that are saved."""
  saved = []
  save = style.save
  monkeypatch.setattr(
    style,
    'save',
    lambda picture, *rest: saved.append(picture) or save(picture, *rest),
  )
  return saved


def test_no_curve_leaves_its_panel(load, tmp_path, pictures):
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


def _legend(picture):
  return [text.get_text() for text in picture.legends[0].get_texts()]


def test_privacy_has_a_line_for_each_pool_and_the_worst_client(
  load_private, tmp_path, pictures
):
  run = load_private(privacy={'max_epsilon': 6.0})
  paths = plots.plot_run(run, tmp_path / 'all')
  assert tmp_path / 'all' / 'privacy.png' in paths
  _check_picture(tmp_path / 'all' / 'privacy.png')
  pictures.clear()
  plots.privacy(run, tmp_path)
  ((panel,),) = [picture.axes for picture in pictures]
  small, large, worst, budget = panel.lines
  for line, epsilon in ((small, 2), (large, 4), (worst, 5)):
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == [epsilon / 2, epsilon]
  assert set(budget.get_ydata()) == {6.0}
  assert _legend(pictures[0]) == [
    'small alone',
    'large alone',
    'worst client',
    'budget',
  ]


def test_privacy_of_an_unprotected_pool_is_drawn_without_it(
  load_private, tmp_path, pictures
):
  infinite = float('inf')
  run = load_private(
    privacy={'mechanism': ['gaussian', 'none']},
    epsilons=(2.0, infinite, infinite),
  )
  _check_picture(plots.privacy(run, tmp_path)[0])
  assert _legend(pictures[0]) == [
    'small alone',
    'large alone: infinite',
    'worst client: infinite',
  ]


def test_runs_without_privacy_have_no_picture_of_it(load, tmp_path):
  both = [load('a'), load('b', algorithm='merged_codist')]
  assert plots.privacy(both[0], tmp_path) == []
  assert plots.privacy_against_utility(both, tmp_path) == []


@pytest.fixture
def curve(load, load_private):
  """Two seeds of each of two algorithms, without noise and with z = 1 and 2."""
  several = []
  for algorithm in ('fed_avg', 'merged_codist'):
    for seed in (1, 2):
      several.append(
        load(f'{algorithm}_{seed}', algorithm=algorithm, seed=seed)
      )
      for z in (1.0, 2.0):
        small = 0.5 + 0.02 * seed - 0.1 * z
        several.append(
          load_private(
            f'{algorithm}_{seed}_{z}',
            algorithm=algorithm,
            seed=seed,
            noise=(z,),
            epsilons=(2 / z, 4 / z, 5 / z),
            accuracies={'small': [0, small, small], 'large': [0, 0.3, 0.3]},
          )
        )
  return several


def test_privacy_against_utility_has_a_panel_for_each_pool(
  curve, tmp_path, pictures
):
  paths = plots.plot_comparison(curve, tmp_path)
  assert paths[-1] == tmp_path / 'privacy_utility.png'
  for path in paths:
    _check_picture(path)
  small, large = pictures[-1].axes
  assert small.get_xscale() == large.get_xscale() == 'log'
  fed_avg, merged = small.containers
  for curve_of_means in (fed_avg[0], merged[0]):
    # The more noise, the smaller epsilon: z = 2 and 1, means of two seeds.
    assert curve_of_means.get_xdata().tolist() == [2.5, 5.0]
    assert curve_of_means.get_ydata() == pytest.approx([0.33, 0.43])
  # The sample standard deviation of 42 and 44 % is sqrt(2).
  (bars,) = fed_avg[2]
  for segment, mean in zip(bars.get_segments(), (0.33, 0.43)):
    assert segment[:, 1] == pytest.approx(
      [mean - 0.01 * 2**0.5, mean + 0.01 * 2**0.5]
    )
  assert len(large.containers) == 2
  # Without privacy 51, 52, 53 and 54 % in rounds 10 to 40.
  for panel in (small, large):
    without = [line for line in panel.lines if line.get_linestyle() == '--']
    assert len(without) == 2
    for line in without:
      assert line.get_ydata() == pytest.approx([0.525, 0.525])
  assert _legend(pictures[-1]) == [
    'fed_avg',
    'merged_codist',
    'without privacy',
    'chance (50%)',
  ]


def test_privacy_against_utility_keeps_mechanisms_apart(
  load, load_private, tmp_path, pictures
):
  infinite = float('inf')
  several = [
    load('a'),
    load_private('b', privacy={'mechanism': ['tree']}),
    load_private('c', noise=(2.0,)),
    # Neither can be on the axis.
    load_private('d', noise=(3.0,), epsilons=(2.0, 4.0, infinite)),
    load_private('e', noise=(4.0,), metrics={}),
  ]
  _check_picture(plots.privacy_against_utility(several, tmp_path)[0])
  assert _legend(pictures[0]) == [
    'fed_avg',
    'fed_avg tree',
    'fed_avg gaussian',
    'without privacy',
    'chance (50%)',
  ]
  drawn = [
    points[0].get_xdata().tolist() for points in pictures[0].axes[0].containers
  ]
  assert drawn == [[], [5.0], [5.0]]
  assert plots.privacy_against_utility(several[3:], tmp_path) == []


def test_long_names_leave_room_for_the_axes(load, load_private, tmp_path):
  unlike = {
    'mechanism': ['tree', 'none'],
    'target_quantile': 0.25,
    'max_epsilon': 6.0,
    'reproducible_noise': True,
  }
  several = [load('a'), load_private('b'), load_private('c', privacy=unlike)]
  for path in plots.plot_comparison(several, tmp_path):
    _check_picture(path)


def test_noise_makes_the_colour_of_an_algorithm_paler():
  full, paler, other = (
    style.colour(0, 2),
    style.colour(0, 2, 0.5),
    style.colour(1, 2),
  )
  assert full == '#0072b2'
  assert other == '#d55e00'
  channels = [
    (int(full[i : i + 2], 16), int(paler[i : i + 2], 16)) for i in (1, 3, 5)
  ]
  assert all(dark < pale < 255 for dark, pale in channels)
