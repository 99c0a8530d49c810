"""What a round sends between server and clients, in bytes."""

from collections.abc import Mapping, Sequence

from tff_codist import algorithm
from tff_codist import pools as pools_lib

_BYTES_PER_FLOAT = 4


def round_costs(
  pools: Sequence[pools_lib.Pool], traffic: Mapping[str, algorithm.Traffic]
) -> dict[str, int]:
  """Returns the bytes that one round moves between server and clients.

  What a client receives and sends, times the cohort. Work of the server alone,
  as distillation, sends nothing. With `--client.aggregator compressed` the true
  uplink is smaller.

  Args:
    pools: The pools.
    traffic: {pool: floats of one client}.

  Returns:
    `cost/<pool>/downlink_bytes` and `cost/<pool>/uplink_bytes`.
  """
  costs = {}
  for pool in pools:
    if pool.name in traffic:
      down, up = traffic[pool.name]
      bytes_per_float = _BYTES_PER_FLOAT * pool.cohort_size
      costs[f'cost/{pool.name}/downlink_bytes'] = bytes_per_float * down
      costs[f'cost/{pool.name}/uplink_bytes'] = bytes_per_float * up
  return costs
