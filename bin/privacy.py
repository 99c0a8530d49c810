#!/usr/bin/env python3
"""Shows what a training would cost its clients in privacy, before it starts.

Prints epsilon of each pool alone and of the clients of each combination of
pools: one in several pools loses privacy to all of them. With --target_epsilon,
finds the noise multipliers with which no client loses more, or, together with
--noise_multiplier, the rounds. A flag with a value for each pool takes one
value for all. Loads no TensorFlow.

  bin/privacy.py --pools small large --population 500 100 --cohort 10 \\
    --rounds 1000 --noise_multiplier 1 --delta 1e-4
  bin/privacy.py --pools small large --population 500 100 --cohort 10 \\
    --rounds 1000 --target_epsilon 8 --delta 1e-4 --plot epsilon.png
"""

import argparse
import dataclasses
import math
import pathlib
import sys
import textwrap

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
from matplotlib import figure

from tff_codist import errors
from tff_codist.privacy import accounting
from tff_codist.program import command
from tff_codist.reports import style
from tff_codist.reports import text

# How noise is divided among pools: exponents for `accounting.in_proportion`.
_DIVISIONS = {'z the same': 0.0, 'z like sqrt(q)': 0.5, 'z like q': 1.0}
_OUTSIDE = (
  'Not counted: metrics that clients report without noise, tuning on their '
  'data, and unlabelled data that are theirs.'
)
# Of the noise multipliers that are found, rounded up.
_DIGITS = 4
# Of a curve, which is steep only at first.
_POINTS = 16


def main(argv):
  arguments = _parse(argv)
  releases, groups = _plan(arguments)
  accountant = {'delta': arguments.delta, 'accountant': arguments.accountant}
  target, plans = arguments.target_epsilon, {'': releases}
  if arguments.noise_multiplier is None:
    plans = _divide(releases, groups, target_epsilon=target, **accountant)
    releases = next(iter(plans.values()))
  losses = {
    name: accounting.privacy_loss(plan, groups, **accountant)
    for name, plan in plans.items()
  }
  loss = next(iter(losses.values()))
  sentences = [*loss.warnings, *loss.assumptions, _OUTSIDE]
  if len(plans) > 1:
    lines = _plans_table(plans, losses)
    most = max(loss.by_pool, key=loss.by_pool.get)
    sentences.insert(
      0,
      'q is the sampling rate, clients in a round over clients in the pool. '
      f'With {next(iter(plans))}, {most} costs most: epsilon '
      f'{loss.by_pool[most]:.4g} alone.',
    )
  else:
    lines = _pools_table(releases, loss)
    if len(releases) > 1:
      lines += ['', *_groups_table(loss)]
    if arguments.noise_multiplier is not None and target is not None:
      rounds = accounting.affordable_rounds(
        releases, groups, target_epsilon=target, **accountant
      )
      sentences.insert(
        0,
        f'No client exceeds epsilon {target:g} in the first {rounds} of '
        f'{arguments.rounds} rounds.',
      )
  print(
    f'{loss.clients:,} clients, delta {arguments.delta:g}, accountant '
    f'{arguments.accountant}',
    end='\n\n',
  )
  print('\n'.join(lines), end='\n\n')
  print('\n'.join(textwrap.fill(each, text.WIDTH) for each in sentences))
  if arguments.plot:
    print(_plot(releases, groups, arguments))


def _parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )

  def per_pool(flag, value_type, **kwargs):
    parser.add_argument(flag, type=value_type, nargs='+', **kwargs)

  per_pool(
    '--population',
    int,
    required=True,
    metavar='N',
    help='clients in each pool',
  )
  per_pool(
    '--cohort',
    int,
    required=True,
    metavar='M',
    help='clients that a round expects',
  )
  per_pool('--pools', str, metavar='NAME', help='names (default: pool_1, ...)')
  per_pool(
    '--noise_multiplier',
    float,
    metavar='Z',
    help='standard deviation of the noise on the sum over the clip',
  )
  per_pool(
    '--mechanism',
    str,
    default=['gaussian'],
    metavar='NAME',
    help=f'{", ".join(accounting.MECHANISMS)} (default: gaussian)',
  )
  parser.add_argument(
    '--rounds', type=int, required=True, metavar='T', help='rounds of training'
  )
  parser.add_argument(
    '--delta',
    type=float,
    required=True,
    help='failure probability, below one over the clients',
  )
  parser.add_argument(
    '--target_epsilon',
    type=float,
    metavar='EPSILON',
    help='the most that a client may lose',
  )
  parser.add_argument(
    '--disjoint',
    action='store_true',
    help='no client is in two pools (default: each pool is in the larger ones)',
  )
  parser.add_argument(
    '--sampling',
    default='poisson',
    metavar='NAME',
    help=f'{", ".join(accounting.SAMPLINGS)} (default: poisson)',
  )
  parser.add_argument(
    '--accountant',
    default='pld',
    metavar='NAME',
    help=f'{", ".join(accounting.ACCOUNTANTS)} (default: pld, the tighter)',
  )
  parser.add_argument(
    '--plot', metavar='FILE.png', help='draw epsilon over the rounds'
  )
  return parser.parse_args(argv)


def _plan(arguments):
  """Returns the planned releases and the groups of clients."""
  count = len(arguments.population)
  names = arguments.pools or [f'pool_{i + 1}' for i in range(count)]
  # Without --noise_multiplier it is replaced, by one that the mechanism allows.
  noise = arguments.noise_multiplier or [1e-3]
  for holds, found, expected, fix in (
    (
      len(set(names)) == len(names) == count,
      f'--pools {" ".join(names)} with {count} populations',
      'a name for each, all different',
      'correct --pools or --population',
    ),
    (
      arguments.rounds > 0,
      f'--rounds {arguments.rounds}',
      'an integer above 0',
      'correct --rounds',
    ),
    (
      arguments.noise_multiplier or arguments.target_epsilon is not None,
      'neither --noise_multiplier nor --target_epsilon',
      'one of them, or both',
      'give the noise, or the epsilon to find it for',
    ),
    (
      arguments.plot is None or arguments.plot.endswith('.png'),
      f'--plot {arguments.plot}',
      'the name of a .png file',
      'correct --plot',
    ),
  ):
    if not holds:
      raise errors.ConfigError(found, expected=expected, fix=fix)
  releases = [
    accounting.Releases(
      pool=name,
      clients=clients,
      cohort=cohort,
      rounds=arguments.rounds,
      noise_multiplier=z,
      mechanism=mechanism,
      sampling=arguments.sampling,
    )
    for name, clients, cohort, z, mechanism in zip(
      names,
      arguments.population,
      _for_each_pool('cohort', arguments.cohort, count),
      _for_each_pool('noise_multiplier', noise, count),
      _for_each_pool('mechanism', arguments.mechanism, count),
    )
  ]
  populations = dict(zip(names, arguments.population))
  if arguments.disjoint:
    return releases, accounting.disjoint_groups(populations)
  return releases, accounting.nested_groups(populations)


def _for_each_pool(flag, values, count):
  if len(values) == 1:
    return values * count
  if len(values) != count:
    raise errors.ConfigError(
      f'--{flag} with {len(values)} values for {count} pools',
      expected='one value, or one for each pool',
      fix=f'correct --{flag}',
    )
  return values


def _divide(releases, groups, **terms):
  """Returns {how noise is divided: releases that keep to the target}.

  Leaves out the divisions with which a mechanism cannot have enough noise.

  Raises:
    ConfigError: If these are all.
  """
  proportions, plans, failure = [], {}, None
  for name, exponent in _DIVISIONS.items():
    proportion = accounting.in_proportion(releases, exponent)
    if proportion in proportions:
      continue
    proportions.append(proportion)
    try:
      plan = accounting.calibrate(proportion, groups, **terms)
    except errors.ConfigError as error:
      failure = failure or error
      continue
    plans[name] = [
      dataclasses.replace(one, noise_multiplier=_round_up(one)) for one in plan
    ]
  if not plans:
    raise failure
  return plans


def _round_up(releases):
  """Returns a noise multiplier with few digits, rounded up if it may be."""
  z = releases.noise_multiplier
  unit = 10.0 ** (math.floor(math.log10(z)) + 1 - _DIGITS)
  rounded = float(f'{math.ceil(z / unit) * unit:.{_DIGITS}g}')
  return rounded if rounded < releases.noise_limit else z


def _pools_table(releases, loss):
  """Returns lines: what each pool releases, and epsilon of that alone."""
  rows = {
    '': lambda one: one.pool,
    'mechanism': lambda one: one.mechanism,
    'clients': lambda one: f'{one.clients:,}',
    'cohort': lambda one: f'{one.cohort:,}',
    'sampling rate q': lambda one: f'{one.sampling_rate:.4g}',
    'rounds': lambda one: f'{one.rounds:,}',
    'noise multiplier z': lambda one: f'{one.noise_multiplier:.6g}',
  }
  if any(one.mechanism == 'adaptive_gaussian' for one in releases):
    # The count of clipped clients takes part of z.
    rows['z of the sum alone'] = lambda one: f'{one.sum_noise_multiplier:.4g}'
  rows['epsilon of the pool alone'] = lambda one: (
    f'{loss.by_pool[one.pool]:.4g}'
  )
  return text.columns(
    list(rows), [[cell(one) for cell in rows.values()] for one in releases]
  )


def _groups_table(loss):
  """Returns lines: the clients of each group and their epsilon."""
  cells = [('clients', 'epsilon', '')] + [
    (
      f'{group.clients:,}',
      f'{group.epsilon:.4g}',
      'worst' if group == loss.worst else '',
    )
    for group in loss.by_group
  ]
  return text.columns(
    ['clients in', *(_name(group.pools) for group in loss.by_group)],
    list(zip(*cells)),
  )


def _plans_table(plans, losses):
  """Returns lines: noise of each pool and epsilon of each group, by plan."""
  first = next(iter(losses.values()))
  columns = []
  for i, pool in enumerate(first.by_pool):
    noise = [f'{plan[i].noise_multiplier:.6g}' for plan in plans.values()]
    columns.append(('' if i else 'z of', pool, *noise))
  for i, group in enumerate(first.by_group):
    epsilons = [f'{loss.by_group[i].epsilon:.4g}' for loss in losses.values()]
    columns.append(('' if i else 'epsilon in', _name(group.pools), *epsilons))
  return text.columns(['', 'noise', *plans], columns)


def _name(pools):
  return pools[0] + ' only' if len(pools) == 1 else ' and '.join(pools)


def _plot(releases, groups, arguments):
  """Draws epsilon of each pool and of the worst client; returns the file."""
  shares = np.linspace(0, 1, _POINTS) ** 2
  rounds = np.unique(np.rint(shares * arguments.rounds).astype(int))
  losses = [
    accounting.privacy_loss(
      accounting.truncate(releases, int(count)),
      groups,
      delta=arguments.delta,
      accountant=arguments.accountant,
    )
    for count in rounds
  ]
  lines = {
    f'{pool} alone': [loss.by_pool[pool] for loss in losses]
    for pool in losses[-1].by_pool
  }
  worst = losses[-1].worst
  if len(worst.pools) > 1:
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
    axes.set_ylabel(f'epsilon at delta {arguments.delta:g}')
    noise = ', '.join(f'{r.noise_multiplier:.6g} in {r.pool}' for r in releases)
    axes.set_title(f'Privacy that a client loses, noise multiplier {noise}')
    axes.legend()
    path = pathlib.Path(arguments.plot)
    return style.save(picture, path.parent, path.name)


if __name__ == '__main__':
  command.run(main, needs_tff=False)
