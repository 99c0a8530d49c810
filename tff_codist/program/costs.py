"""What a round sends between server and clients, in bytes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tff_codist import algorithm
from tff_codist import pools as pools_lib

_NOTHING = MappingProxyType({})


def round_costs(
  pools: Sequence[pools_lib.Pool],
  traffic: Mapping[str, algorithm.Traffic],
  *,
  before: Mapping[str, algorithm.Traffic] = _NOTHING,
  after: Mapping[str, algorithm.Traffic] = _NOTHING,
) -> dict[str, int]:
  """Returns the bytes that one round moves between server and clients.

  What a client receives and sends in every round, times the cohort, and what
  clients have received and sent once in this round. Work of the server alone,
  as distillation, sends nothing. With `--client.aggregator compressed` the true
  uplink is smaller.

  Args:
    pools: The pools.
    traffic: {pool: floats of one client in every round}.
    before: {pool: floats sent once, by all its clients until the round}, see
      `Algorithm.once`; pools that it does not have sent none.
    after: The same with the round.

  Returns:
    `cost/<pool>/downlink_bytes` and `cost/<pool>/uplink_bytes`.
  """
  none = algorithm.Traffic(0, 0)
  costs = {}
  for pool in pools:
    if pool.name in traffic:
      for way, each, past, now in zip(
        ('downlink', 'uplink'),
        traffic[pool.name],
        before.get(pool.name, none),
        after.get(pool.name, none),
      ):
        floats = pool.cohort_size * each + int(now) - int(past)
        costs[f'cost/{pool.name}/{way}_bytes'] = (
          algorithm.BYTES_PER_FLOAT * floats
        )
  return costs
