"""What rounds send, by hand and in a run."""

import csv
import json
import pathlib
import subprocess
import sys

from tff_codist import algorithm
from tff_codist.program import costs
from tff_codist.testing import toys

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_bytes_of_a_round_by_hand():
  """Cohorts of 5 and 3; pool a has sent 60 and 2 floats once in this round."""
  pools = toys.make_setting().pools
  traffic = {
    'a': algorithm.Traffic(down=10, up=11),
    'b': algorithm.Traffic(down=20, up=21),
  }
  every_round = costs.round_costs(pools, traffic)
  assert every_round == {
    'cost/a/downlink_bytes': 4 * 5 * 10,
    'cost/a/uplink_bytes': 4 * 5 * 11,
    'cost/b/downlink_bytes': 4 * 3 * 20,
    'cost/b/uplink_bytes': 4 * 3 * 21,
  }
  once = {'a': algorithm.Traffic(100, 7)}
  after = {'a': algorithm.Traffic(160, 9)}
  sent = costs.round_costs(pools, traffic, before=once, after=after)
  assert sent == {
    **every_round,
    'cost/a/downlink_bytes': 4 * (5 * 10 + 60),
    'cost/a/uplink_bytes': 4 * (5 * 11 + 2),
  }
  assert costs.round_costs(pools, traffic, before=after, after=after) == (
    every_round
  )


def test_pool_without_traffic_has_no_costs():
  pools = toys.make_setting().pools
  sent = costs.round_costs(pools, {'b': algorithm.Traffic(1, 1)})
  assert list(sent) == ['cost/b/downlink_bytes', 'cost/b/uplink_bytes']


def test_run_counts_what_is_sent_once_in_its_round(tmp_path):
  """FAug on digits of 64 pixels, each a byte, and ten labels; G by hand."""
  run_dir = tmp_path / 'run'
  done = subprocess.run(
    [
      sys.executable,
      str(_ROOT / 'bin' / 'train.py'),
      '--preset=fd_f_aug',
      '--quick',
      f'--run_dir={run_dir}',
    ],
    capture_output=True,
    text=True,
    timeout=180,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  with open(run_dir / 'metrics.csv', newline='') as file:
    first, second = list(csv.DictReader(file))[1:3]
  pools = json.loads((run_dir / 'pools.json').read_text())['pools']
  generator = ((100 + 10) * 256 + 256 + 256 * 512 + 512 + 512 * 1024 + 1024) + (
    1024 * 64 + 64
  )
  # All clients are in the small pool, where those of the large one count too.
  for pool, way, floats in (
    ('small', 'downlink', pools['small']['num_clients'] * generator),
    ('small', 'uplink', float(first['exchange/seed_samples']) * 64 / 4),
    ('large', 'downlink', 0),
    ('large', 'uplink', 0),
  ):
    column = f'cost/{pool}/{way}_bytes'
    assert float(first[column]) - float(second[column]) == 4 * floats
    assert float(second[column]) == 4 * 100 * pools[pool]['cohort_size']
