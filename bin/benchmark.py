#!/usr/bin/env python3
"""Measures rounds: TFF as documented, this package, TensorFlow alone.

Workloads `cnn` and `dense` are rounds of federated averaging on random images,
stored as uint8 and normalised in the graph, `lstm` on random sentences of 20
words: one local epoch of SGD, batches of 20, weighted mean, Adam at the server.
The competitors:

  tff             tff.learning.algorithms.build_weighted_fed_avg with tf.data
                  clients on TFF's worker (runtime stock), as its tutorials do
  tff_in_process  the same computation on this package's runtime in_process
  stock           this package's fed_avg, clients as tensors, on stock
  in_process      the same on in_process, this package's fastest
  bare            a training loop without federation, the bound
  bare_threads    as many of them as there are cores, which share the clients,
                  each with a model of its own

Each is a process of its own, with its own memory and threads. They run one
round each by turns, so that a noisy machine is noisy for all of them; whoever
does not have the turn waits at a pipe. The first round, with all that is built
before it but imports, is reported apart. The warm-up rounds after it are not
counted: in them in_process tries numbers of threads, five rounds on two cores.

Workload `round` shows where the time of a MERGED CODIST round on digits goes on
either runtime, and sets it against that of its parts: the clients' updates, and
the distillation steps in plain TensorFlow.

Workload `growth` shows what a client and what a round cost on in_process:
cohorts of 10, 50 and 200 clients, and 200 rounds of the smallest.

Workload `clients` shows what time and memory the number of clients costs: it
samples cohorts of 50 from Stack Overflow files of 1,000 and of 100,000 made-up
users.

  bin/benchmark.py
  bin/benchmark.py --workload dense round --rounds 20 --json dense.json
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import averaging
from benchmarks import codist_round
from benchmarks import growth
from benchmarks import processes
from benchmarks import users

from tff_codist import errors
from tff_codist import files
from tff_codist.program import command

_DEFAULT_WORKLOADS = ('cnn', 'dense', 'round')
_DEFAULT_ROUNDS = 8
_MIB = 2**20


def machine() -> dict[str, Any]:
  """Returns what the numbers depend on."""
  cpuinfo = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  return {
    'cpu': next(
      (
        line.partition(':')[2].strip()
        for line in cpuinfo
        if 'model name' in line
      ),
      platform.machine(),
    ),
    'cores': len(os.sched_getaffinity(0)),
    'load_average': os.getloadavg()[0],
    'python': platform.python_version(),
    'tensorflow': importlib.metadata.version('tensorflow'),
    'tensorflow_federated': importlib.metadata.version('tensorflow-federated'),
  }


def _print_averaging(name: str, result: dict[str, Any]) -> None:
  print(
    f'\n{name}: {result["num_weights"]:,} weights, {result["num_clients"]}'
    f' clients of {result["examples_per_client"]} examples;'
    f' bare_threads are {result["bare_threads"]}'
  )
  print(
    f'{"":14}{"examples/s best":>16}{"median":>9}{"ratio to tff":>14}'
    f'{"to bare":>9}{"first round s":>15}{"peak MiB":>10}{"worker":>8}'
  )
  for competitor, numbers in result['competitors'].items():
    peaks = numbers['peak_rss_bytes']
    worker = f'{peaks["worker"] / _MIB:,.0f}' if 'worker' in peaks else '-'
    print(
      f'{competitor:14}'
      f'{numbers["examples_per_second_best"]:>16,.0f}'
      f'{numbers["examples_per_second_median"]:>9,.0f}'
      f'{numbers["ratio_to_tff"]:>14.2f}'
      f'{numbers["ratio_to_bare"]:>9.2f}'
      f'{numbers["first_round_seconds"]:>15.2f}'
      f'{peaks["process"] / _MIB:>10,.0f}'
      f'{worker:>8}'
    )


def _print_round(name: str, result: dict[str, Any]) -> None:
  print(f'\n{name}: MERGED CODIST on digits, milliseconds')
  print(f'{"":25}' + ''.join(f'{runtime:>20}' for runtime in result))
  print(f'{"":25}' + f'{"best round":>12}{"median":>8}' * len(result))
  for number in next(iter(result.values()))['numbers']:
    unit = 1e3 if number.endswith('_seconds') else 1
    print(
      f'{number:25}'
      + ''.join(
        f'{unit * one["numbers"][number]["best_round"]:>12.2f}'
        f'{unit * one["numbers"][number]["median"]:>8.2f}'
        for one in result.values()
      )
    )
  print(
    'ratio_to_parts: the round over time/clients_seconds and'
    ' bare_distillation_seconds'
  )
  for runtime, one in result.items():
    print(f'first round on {runtime}: {one["first_round_seconds"]:.2f} s')


def _print_growth(name: str, result: dict[str, Any]) -> None:
  print(
    f'\n{name}: rounds of the dense network on in_process, clients of'
    f' {result["examples_per_client"]} examples'
  )
  print(f'{"clients":>9}{"ms per client":>16}{"peak MiB":>11}')
  for cohort in result['cohorts']:
    print(
      f'{cohort["num_clients"]:>9}'
      f'{1e3 * cohort["seconds_per_client"]:>16.2f}'
      f'{cohort["peak_rss_bytes"] / _MIB:>11.1f}'
    )
  print(
    'a further client of a cohort costs, in bytes:'
    f' {result["bytes_per_client"]:,.0f}'
  )
  rounds = result['rounds']
  print(
    f'memory after {rounds["early"]} rounds of the smallest cohort:'
    f' {rounds["early_rss_bytes"] / _MIB:.1f} MiB, after {rounds["late"]}:'
    f' {rounds["late_rss_bytes"] / _MIB:.1f} MiB;'
    f' a round costs {rounds["bytes_per_round"]:,.0f} bytes'
  )


def _print_clients(name: str, result: dict[str, Any]) -> None:
  print(
    f'\n{name}: {result["num_cohorts"]} cohorts of {result["cohort_size"]}'
    f' users of {result["sentences_per_user"]} sentences'
  )
  print(
    f'{"users":>9}{"open s":>10}{"first cohort s":>16}{"last cohort s":>15}'
    f'{"peak MiB: imports":>19}{"opened":>9}{"at the end":>12}'
  )
  for file in result['files']:
    print(
      f'{file["num_clients"]:>9,}'
      f'{file["open_seconds"]:>10.3f}'
      f'{file["first_cohort_seconds"]:>16.3f}'
      f'{file["last_cohort_seconds"]:>15.2f}'
      f'{file["imported_peak_rss_bytes"] / _MIB:>19.1f}'
      f'{file["opened_peak_rss_bytes"] / _MIB:>9.1f}'
      f'{file["loaded_peak_rss_bytes"] / _MIB:>12.1f}'
    )
  per_client = result['bytes_per_client']
  print(
    'a further user costs, in bytes:'
    f' {per_client["opened_peak_rss_bytes"]:.0f} when opened,'
    f' {per_client["loaded_peak_rss_bytes"]:.0f} at the end'
  )


class Workload(NamedTuple):
  """What a name on the command line stands for.

  Attributes:
    measure: From `Rounds` and `quick` to what goes into the JSON file.
    show: Prints the name and that.
  """

  measure: Callable[..., dict[str, Any]]
  show: Callable[[str, dict[str, Any]], None]


WORKLOADS = {
  **{
    name: Workload(functools.partial(averaging.measure, name), _print_averaging)
    for name in averaging.WORKLOADS
  },
  'round': Workload(codist_round.measure, _print_round),
  'growth': Workload(growth.measure, _print_growth),
  'clients': Workload(users.measure, _print_clients),
}


def _rounds(arguments: argparse.Namespace) -> processes.Rounds:
  if arguments.quick:
    return processes.Rounds(warmup=1, counted=2)
  # One to compile, then in_process tries 1, 2, 4, ... threads, each twice.
  tried = (os.cpu_count() or 1).bit_length()
  return processes.Rounds(warmup=1 + 2 * tried, counted=arguments.rounds)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--workload',
    nargs='+',
    default=_DEFAULT_WORKLOADS,
    metavar='NAME',
    help=f'any of {", ".join(WORKLOADS)} (default:'
    f' {" ".join(_DEFAULT_WORKLOADS)})',
  )
  parser.add_argument(
    '--rounds',
    type=int,
    help='rounds of each competitor that are counted (default:'
    f' {_DEFAULT_ROUNDS})',
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='two rounds of few clients: shows that it works, measures nothing',
  )
  parser.add_argument('--json', metavar='PATH', help='file for the numbers')
  arguments = parser.parse_args(argv)
  for name in arguments.workload:
    if name not in WORKLOADS:
      raise errors.UnknownNameError('workload', name, WORKLOADS)
  if arguments.rounds is None:
    arguments.rounds = _DEFAULT_ROUNDS
  elif arguments.quick:
    raise errors.ConfigError(
      '--rounds with --quick',
      expected='one of them: --quick has two rounds',
      fix='leave one out',
    )
  errors.check_above_0(rounds=arguments.rounds)
  return arguments


def main(argv):
  arguments = _parse(argv)
  rounds = _rounds(arguments)
  report = {
    'machine': machine(),
    'warmup_rounds': rounds.warmup,
    'workloads': {},
  }
  print('\n'.join(f'{k}: {v}' for k, v in report['machine'].items()))
  print(f'warm-up: {rounds.warmup} rounds that are not counted')
  for name in dict.fromkeys(arguments.workload):
    workload = WORKLOADS[name]
    result = workload.measure(rounds, quick=arguments.quick)
    workload.show(name, result)
    report['workloads'][name] = result
    if arguments.json:
      files.write(arguments.json, json.dumps(report, indent=2).encode())


if __name__ == '__main__':
  command.run(main)
