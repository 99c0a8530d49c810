#!/usr/bin/env python3
"""Shows what a training costs its clients in privacy, also before it starts.

What is trained can be said in three ways:

  numbers, of which a flag for each pool takes one value for all:
    bin/privacy.py --pools small large --population 500 100 --cohort 10 \\
      --rounds 1000 --delta 1e-4 --noise_multiplier 1
  a configuration, by the flags of bin/train.py, whose data is loaded:
    bin/privacy.py --preset emnist --privacy.mechanism gaussian \\
      --client.weighting uniform --unlabelled.sources noise
  a run, by its folder: what it has cost so far, and will have at the end:
    bin/privacy.py --run_dir runs/private

Prints epsilon of each pool alone and of the clients of each combination of
pools: one in several pools loses privacy to all of them. With --target_epsilon,
finds the noise multipliers with which no client loses more, or, where the noise
is given, the rounds. Only a configuration needs TensorFlow.
"""

import argparse
import dataclasses
import itertools
import math
import pathlib
import sys
import textwrap
from typing import NamedTuple, Optional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
from matplotlib import figure

import tff_codist
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import reports
from tff_codist.privacy import accounting
from tff_codist.privacy import ledger
from tff_codist.program import command
from tff_codist.reports import style
from tff_codist.reports import text

# How noise is divided among pools: exponents for `accounting.in_proportion`.
_DIVISIONS = {'z the same': 0.0, 'z like sqrt(q)': 0.5, 'z like q': 1.0}
_OUTSIDE = (
  'Not counted: metrics that clients report without noise, tuning on their '
  'data, and unlabelled data that are theirs.'
)
# Where it is to be found: one that every mechanism allows.
_ANY_NOISE = 1e-3
# Of the noise multipliers that are found, rounded up.
_DIGITS = 4
# Of a curve, which is steep only at first.
_POINTS = 16


class _Plan(NamedTuple):
  """What is to be accounted for, in whichever way it was said.

  Attributes:
    releases: Those of each pool with a mechanism, in all rounds.
    groups: Which clients are in which pools.
    delta: The failure probability.
    accountant: pld or rdp.
    finds_noise: Whether the noise multipliers are to be found.
    rounds_so_far: Rounds that a run has done; `None` if there is no run.
    notes: What else there is to know, sentences.
  """

  releases: tuple[accounting.Releases, ...]
  groups: tuple[accounting.Group, ...]
  delta: float
  accountant: str
  finds_noise: bool = False
  rounds_so_far: Optional[int] = None
  notes: tuple[str, ...] = ()

  @property
  def key(self):
    """What every function of `accounting` takes beside releases and groups."""
    return {'delta': self.delta, 'accountant': self.accountant}

  def loss(self, releases):
    """Returns what these releases cost."""
    return accounting.privacy_loss(releases, self.groups, **self.key)


def main(argv):
  plan, arguments = _read(argv)
  target = arguments.target_epsilon
  divisions = {'': plan.releases}
  if plan.finds_noise:
    divisions = _divide(plan, target)
  releases = next(iter(divisions.values()))
  loss = plan.loss(releases)
  sentences = [*plan.notes, *loss.warnings, *loss.assumptions, _OUTSIDE]
  if len(divisions) > 1:
    lines = _divisions_table(divisions, plan)
    most = max(loss.by_pool, key=loss.by_pool.get)
    sentences.insert(
      0,
      'q is the sampling rate, clients in a round over clients in the pool. '
      f'With {next(iter(divisions))}, {most} costs most: epsilon '
      f'{loss.by_pool[most]:.4g} alone.',
    )
  else:
    lines = _tables(releases, plan)
  if plan.finds_noise:
    lines += ['', *_train_flags(divisions)]
  elif target is not None:
    sentences.insert(0, _affordable(releases, plan, target))
  print(
    f'{loss.clients:,} clients, delta {plan.delta:g}, accountant '
    f'{plan.accountant}',
    end='\n\n',
  )
  print('\n'.join(lines), end='\n\n')
  print('\n'.join(textwrap.fill(each, text.WIDTH) for each in sentences))
  if arguments.plot:
    print(_plot(releases, plan, arguments))


def _read(argv):
  """Returns the plan, and the arguments that go with any source of it."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  of_numbers = _add_flags(parser)
  arguments, others = parser.parse_known_args(argv)
  given = {word.partition('=')[0] for word in argv}
  sources = [flag for flag in _SOURCES if flag in given]
  if len(sources) != 1:
    raise errors.ConfigError(
      ' together with '.join(sources) or f'none of {", ".join(_SOURCES)}',
      expected=f'one of {", ".join(_SOURCES)}, to say what is trained',
      fix='choose one of the three ways that --help explains',
    )
  source = sources[0]
  foreign = []
  if source != '--population':
    foreign += [flag for flag in of_numbers if flag in given]
  if source != '--preset':
    foreign += others
  if foreign:
    raise errors.ConfigError(
      f'{foreign[0]!r} together with {source}',
      expected=f'only the flags that --help lists for {source}',
      fix='correct it, or leave it out',
    )
  if arguments.plot is not None and not arguments.plot.endswith('.png'):
    raise errors.ConfigError(
      f'--plot {arguments.plot}',
      expected='the name of a .png file',
      fix='correct --plot',
    )
  return _SOURCES[source](arguments, others), arguments


def _add_flags(parser):
  """Adds all flags but those of bin/train.py; returns those of numbers."""
  shared = parser.add_argument_group('for all three ways')
  shared.add_argument(
    '--target_epsilon',
    type=float,
    metavar='EPSILON',
    help='the most that a client may lose',
  )
  shared.add_argument(
    '--plot', metavar='FILE.png', help='draw epsilon over the rounds'
  )
  parser.add_argument_group('a configuration').add_argument(
    '--preset',
    metavar='NAME',
    help='to start from; with it, all flags of bin/train.py but --run_dir',
  )
  parser.add_argument_group('a run').add_argument(
    '--run_dir', metavar='DIR', help='the folder of a run of bin/train.py'
  )

  numbers = parser.add_argument_group('numbers', 'the first four are needed')
  flags = []

  def add(flag, **kwargs):
    numbers.add_argument(flag, **kwargs)
    flags.append(flag)

  def per_pool(flag, value_type, metavar, **kwargs):
    add(flag, type=value_type, nargs='+', metavar=metavar, **kwargs)

  per_pool('--population', int, 'N', help='clients in each pool')
  per_pool('--cohort', int, 'M', help='clients that a round expects')
  add('--rounds', type=int, metavar='T', help='rounds of training')
  add(
    '--delta',
    type=float,
    help='failure probability, below one over the clients',
  )
  per_pool('--pools', str, 'NAME', help='names (default: pool_1, ...)')
  per_pool(
    '--noise_multiplier',
    float,
    'Z',
    help='standard deviation of the noise on the sum over the clip',
  )
  per_pool(
    '--mechanism',
    str,
    'NAME',
    default=['gaussian'],
    help=f'{", ".join(accounting.MECHANISMS)} (default: gaussian)',
  )
  per_pool(
    '--clipped_count_stddev',
    float,
    'S',
    help='standard deviation of the noise on the count of clients below the '
    'clip of adaptive_gaussian (default: cohort / 20)',
  )
  per_pool(
    '--metrics_noise_multiplier',
    float,
    'Z',
    help="noise multiplier of the clients' training metrics (default: none "
    'are released)',
  )
  add(
    '--disjoint',
    action='store_true',
    help='no client is in two pools (default: each pool is in the larger ones)',
  )
  add(
    '--sampling',
    default='poisson',
    metavar='NAME',
    help=f'{", ".join(config_lib.SAMPLINGS)} (default: poisson)',
  )
  add(
    '--accountant',
    default='pld',
    metavar='NAME',
    help=f'{", ".join(config_lib.ACCOUNTANTS)} (default: pld, the tighter)',
  )
  return flags


def _from_numbers(arguments, others):
  del others
  count = len(arguments.population)
  names = arguments.pools or [f'pool_{i + 1}' for i in range(count)]
  has_noise = arguments.noise_multiplier is not None
  required = ('cohort', 'rounds', 'delta')
  missing = [f'--{n}' for n in required if getattr(arguments, n) is None]
  for holds, found, expected, fix in (
    (
      not missing,
      f'--population without {" and ".join(missing)}',
      '--population, --cohort, --rounds and --delta',
      'give all four',
    ),
    (
      len(set(names)) == len(names) == count,
      f'--pools {" ".join(names)} with {count} populations',
      'a name for each, all different',
      'correct --pools or --population',
    ),
    (
      missing or arguments.rounds > 0,
      f'--rounds {arguments.rounds}',
      'an integer above 0',
      'correct --rounds',
    ),
    (
      has_noise or arguments.target_epsilon is not None,
      'neither --noise_multiplier nor --target_epsilon',
      'one of them, or both',
      'give the noise, or the epsilon to find it for',
    ),
    (
      arguments.clipped_count_stddev is None
      or 'adaptive_gaussian' in arguments.mechanism,
      f'--clipped_count_stddev with --mechanism '
      f'{" ".join(arguments.mechanism)}',
      'it with adaptive_gaussian only, as it has no effect',
      'leave it out',
    ),
  ):
    if not holds:
      raise errors.ConfigError(found, expected=expected, fix=fix)

  def values_of(flag, default=None):
    values = getattr(arguments, flag) or [default]
    if len(values) not in (1, count):
      raise errors.ConfigError(
        f'--{flag} with {len(values)} values for {count} pools',
        expected='one value, or one for each pool',
        fix=f'correct --{flag}',
      )
    return values * count if len(values) == 1 else values

  releases = [
    accounting.Releases(
      pool=name,
      clients=clients,
      cohort=cohort,
      rounds=arguments.rounds,
      noise_multiplier=z,
      mechanism=mechanism,
      sampling=arguments.sampling,
      clipped_count_stddev=(
        sigma_b if mechanism == 'adaptive_gaussian' else None
      ),
      metrics_noise_multiplier=metrics_z,
    )
    for name, clients, cohort, z, mechanism, sigma_b, metrics_z in zip(
      names,
      arguments.population,
      values_of('cohort'),
      values_of('noise_multiplier', _ANY_NOISE),
      values_of('mechanism'),
      values_of('clipped_count_stddev'),
      values_of('metrics_noise_multiplier'),
    )
  ]
  populations = dict(zip(names, arguments.population))
  return _Plan(
    releases=tuple(releases),
    groups=(
      accounting.disjoint_groups(populations)
      if arguments.disjoint
      else accounting.nested_groups(populations)
    ),
    delta=arguments.delta,
    accountant=arguments.accountant,
    finds_noise=not has_noise,
  )


def _from_configuration(arguments, others):
  tff_codist.check_installation()

  import baselines  # noqa: F401  Registers its algorithms.
  import tasks  # noqa: F401  Registers the tasks and their presets.
  from tff_codist import experiment
  from tff_codist.program import command_line

  config = command_line.parse(
    ['--preset', arguments.preset, *others],
    description=__doc__,
    folder_flag=None,
  ).config
  _check_mechanism(config)
  target = arguments.target_epsilon
  if '--privacy.noise_multiplier' in {w.partition('=')[0] for w in others}:
    target = None
  if target is not None:
    config = config_lib.change(
      config, privacy={'noise_multiplier': (_ANY_NOISE,)}
    )
  pools = experiment.build_experiment(config).pools
  return _plan_of(pools, config, finds_noise_for=target)


def _from_run(arguments, others):
  del others
  run = reports.load_run(arguments.run_dir)
  config = config_lib.from_json((run.path / 'config.json').read_text())
  _check_mechanism(config)
  return _plan_of(_pools_of(run), config, rounds_so_far=run.last_round)


class _Pool(NamedTuple):
  """What the ledger reads of a pool; numbers stand for the clients' ids."""

  name: str
  client_ids: list[int]
  cohort_size: int
  sampling: str


def _pools_of(run):
  """Returns the pools of a run folder."""
  pools = {
    name: _Pool(
      name=name,
      client_ids=[],
      cohort_size=run.pools['pools'][name]['cohort_size'],
      sampling=run.config['pools']['sampling'],
    )
    for name in run.pool_names
  }
  ids = itertools.count()
  try:
    for group in run.pools['groups']:
      client_ids = list(itertools.islice(ids, group['clients']))
      for name in group['pools']:
        pools[name].client_ids.extend(client_ids)
  except (KeyError, TypeError) as error:
    raise errors.RunFolderError(
      f'no groups of clients in {run.path / "pools.json"}',
      expected='the file as this version of bin/train.py writes it',
      fix='use the version of the package that wrote this run',
    ) from error
  return list(pools.values())


def _check_mechanism(config):
  if not config.privacy.is_on:
    raise errors.ConfigError(
      '--privacy.mechanism none',
      expected='a mechanism: without one, no client is protected',
      fix=f'choose one of {", ".join(accounting.MECHANISMS)} in training',
    )


def _plan_of(pools, config, *, finds_noise_for=None, rounds_so_far=None):
  """Returns the plan of a configuration with its pools.

  Args:
    pools: The pools.
    config: The configuration.
    finds_noise_for: The epsilon for which the noise is to be found; `None` if
      the configuration says the noise.
    rounds_so_far: As of `_Plan`.
  """
  privacy, rounds, notes = config.privacy, config.program.rounds, []
  releases = ledger.planned_releases(pools, config)
  protected = {one.pool for one in releases}
  bare = ' and '.join(p.name for p in pools if p.name not in protected)
  if bare:
    notes.append(f'Nothing protects the clients in {bare}: mechanism none.')
  if privacy.reproducible_noise:
    notes.append(
      'There is no guarantee: with --privacy.reproducible_noise, who knows the '
      'seed of the run can take the noise off.'
    )
  budget = privacy.max_epsilon
  if finds_noise_for is not None:
    for is_wrong, found, expected, fix in (
      (
        bare,
        f'--target_epsilon with nothing that protects the clients in {bare}',
        'a mechanism for every pool',
        'set --privacy.mechanism to one for each pool, or to one for all',
      ),
      (
        budget is not None and budget < finds_noise_for,
        f'--target_epsilon {finds_noise_for:g} with --privacy.max_epsilon '
        f'{budget}, which ends training earlier',
        'a target within the budget',
        'leave out --privacy.max_epsilon, or lower --target_epsilon',
      ),
    ):
      if is_wrong:
        raise errors.ConfigError(found, expected=expected, fix=fix)
  elif budget is not None:
    final_round = ledger.Ledger(pools, config).final_round
    if final_round < rounds:
      releases = accounting.truncate(releases, final_round)
      notes.append(
        f'Training ends after {final_round} of {rounds} rounds, before a '
        f'client exceeds --privacy.max_epsilon {budget:g}.'
      )
  return _Plan(
    releases=releases,
    groups=accounting.groups_of({pool.name: pool.client_ids for pool in pools}),
    delta=privacy.delta,
    accountant=privacy.accountant,
    finds_noise=finds_noise_for is not None,
    rounds_so_far=rounds_so_far,
    notes=tuple(notes),
  )


# By the flag that each needs.
_SOURCES = {
  '--population': _from_numbers,
  '--preset': _from_configuration,
  '--run_dir': _from_run,
}


def _divide(plan, target):
  """Returns {how noise is divided: releases that keep to the target}.

  Leaves out the divisions with which a mechanism cannot have enough noise.

  Raises:
    ConfigError: If these are all.
  """
  proportions, divisions, failure = [], {}, None
  for name, exponent in _DIVISIONS.items():
    proportion = accounting.in_proportion(plan.releases, exponent)
    if proportion in proportions:
      continue
    proportions.append(proportion)
    try:
      releases = accounting.calibrate(
        proportion, plan.groups, target_epsilon=target, **plan.key
      )
    except errors.ConfigError as error:
      failure = failure or error
      continue
    divisions[name] = tuple(
      dataclasses.replace(one, noise_multiplier=_round_up(one))
      for one in releases
    )
  if not divisions:
    raise failure
  return divisions


def _round_up(releases):
  """Returns a noise multiplier with few digits, rounded up if it may be."""
  z = releases.noise_multiplier
  unit = 10.0 ** (math.floor(math.log10(z)) + 1 - _DIGITS)
  rounded = float(f'{math.ceil(z / unit) * unit:.{_DIGITS}g}')
  return rounded if rounded < releases.noise_limit else z


def _affordable(releases, plan, target):
  """Returns a sentence: how many rounds are within a target."""
  rounds = accounting.affordable_rounds(
    releases, plan.groups, target_epsilon=target, **plan.key
  )
  return (
    f'No client exceeds epsilon {target:g} in the first {rounds} of '
    f'{_rounds(releases)} rounds.'
  )


def _rounds(releases):
  return max(one.rounds for one in releases)


def _tables(releases, plan):
  """Returns lines: the releases and their epsilon, of a run at two moments."""
  moments = {'': releases}
  if plan.rounds_so_far is not None and plan.rounds_so_far < _rounds(releases):
    moments = {
      ' so far': accounting.truncate(releases, plan.rounds_so_far),
      ' at the end': releases,
    }
  losses = {moment: plan.loss(some) for moment, some in moments.items()}
  lines = _pools_table(moments, losses)
  if len(plan.loss(releases).by_pool) > 1:
    lines += ['', *_groups_table(losses)]
  return lines


def _pools_table(moments, losses):
  """Returns lines: what each pool releases, and epsilon of that alone."""
  releases = list(moments.values())[-1]
  adaptive = [one.mechanism == 'adaptive_gaussian' for one in releases]
  table = {
    '': [one.pool for one in releases],
    'mechanism': [one.mechanism for one in releases],
    'clients': [f'{one.clients:,}' for one in releases],
    'cohort': [f'{one.cohort:,}' for one in releases],
    'sampling rate q': [f'{one.sampling_rate:.4g}' for one in releases],
  }
  for moment, some in moments.items():
    table[f'rounds{moment}'] = [f'{one.rounds:,}' for one in some]
  table['noise multiplier z'] = [
    f'{one.noise_multiplier:.6g}' for one in releases
  ]
  if any(adaptive):
    # The count of clipped clients takes part of z.
    table['z of the sum alone'] = [
      f'{one.sum_noise_multiplier:.4g}' for one in releases
    ]
    table['noise on the count, sigma_b'] = [
      f'{one.noise_limit / 2:.4g}' if has_count else '-'
      for one, has_count in zip(releases, adaptive)
    ]
  # For all pools or for none.
  if releases[0].metrics_noise_multiplier:
    table['z of the metrics'] = [
      f'{one.metrics_noise_multiplier:.6g}' for one in releases
    ]
  for moment, loss in losses.items():
    table[f'epsilon of the pool alone{moment}'] = [
      f'{loss.by_pool[one.pool]:.4g}' for one in releases
    ]
  return text.columns(list(table), list(zip(*table.values())))


def _groups_table(losses):
  """Returns lines: the clients of each group and their epsilon."""
  last = list(losses.values())[-1]
  columns = {'clients': [f'{group.clients:,}' for group in last.by_group]}
  for moment, loss in losses.items():
    columns[f'epsilon{moment}'] = [f'{g.epsilon:.4g}' for g in loss.by_group]
  columns[''] = [
    'worst' if group == last.worst else '' for group in last.by_group
  ]
  return text.columns(
    ['clients in', *(_name(group.pools) for group in last.by_group)],
    [(title, *cells) for title, cells in columns.items()],
  )


def _divisions_table(divisions, plan):
  """Returns lines: noise of each pool and epsilon of each group."""
  losses = [plan.loss(releases) for releases in divisions.values()]
  columns = []
  for i, one in enumerate(plan.releases):
    noise = [f'{some[i].noise_multiplier:.6g}' for some in divisions.values()]
    columns.append(('' if i else 'z of', one.pool, *noise))
  for i, group in enumerate(plan.groups):
    epsilons = [f'{loss.by_group[i].epsilon:.4g}' for loss in losses]
    columns.append(('' if i else 'epsilon in', _name(group.pools), *epsilons))
  return text.columns(['', 'noise', *divisions], columns)


def _train_flags(divisions):
  """Returns lines: the flag of each division, for bin/train.py."""
  flags = {
    name: '--privacy.noise_multiplier '
    + ' '.join(str(one.noise_multiplier) for one in releases)
    for name, releases in divisions.items()
  }
  if len(flags) == 1:
    return [f'In bin/train.py: {flag}' for flag in flags.values()]
  width = max(map(len, flags))
  return [
    'In bin/train.py:',
    *(f'  {name:<{width}}  {flag}' for name, flag in flags.items()),
  ]


def _name(pools):
  return pools[0] + ' only' if len(pools) == 1 else ' and '.join(pools)


def _plot(releases, plan, arguments):
  """Draws epsilon of each pool and of the worst client; returns the file."""
  shares = np.linspace(0, 1, _POINTS) ** 2
  rounds = np.unique(np.rint(shares * _rounds(releases)).astype(int))
  losses = [
    plan.loss(accounting.truncate(releases, int(count))) for count in rounds
  ]
  lines = {
    f'{pool} alone': [loss.by_pool[pool] for loss in losses]
    for pool, most in losses[-1].by_pool.items()
    if math.isfinite(most)
  }
  worst = losses[-1].worst
  if len(worst.pools) > 1 and math.isfinite(worst.epsilon):
    lines[f'worst client, in {_name(worst.pools)}'] = [
      loss.worst.epsilon for loss in losses
    ]
  with matplotlib.rc_context(style.RC):
    picture = figure.Figure(figsize=(8.0, 4.4), layout='constrained')
    axes = picture.subplots()
    for index, (label, values) in enumerate(lines.items()):
      axes.plot(
        rounds,
        values,
        color=style.colour(index, len(lines)),
        label=label,
        **style.line(index),
      )
    if arguments.target_epsilon is not None:
      axes.axhline(
        arguments.target_epsilon, color=style.GREY, label='target', zorder=1
      )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(style.NUMBER)
    axes.set_xlabel('round')
    axes.set_ylabel(f'epsilon at delta {plan.delta:g}')
    noise = ', '.join(f'{r.noise_multiplier:.6g} in {r.pool}' for r in releases)
    axes.set_title(f'Privacy that a client loses, noise multiplier {noise}')
    axes.legend()
    path = pathlib.Path(arguments.plot)
    return style.save(picture, path.parent, path.name)


if __name__ == '__main__':
  command.run(main, needs_tff=False)
