"""What a round of federated averaging sends, in bytes."""

from collections.abc import Sequence

from tff_codist import pools as pools_lib

_BYTES_PER_FLOAT = 4


def round_costs(pools: Sequence[pools_lib.Pool]) -> dict[str, int]:
  """Returns the bytes that one round moves between server and clients.

  Down: |θ| floats for each client of the cohort. Up: |θ| floats and the
  client's weight in the mean. Distillation is the server's own work and sends
  nothing. With `--client.aggregator compressed` the true uplink is smaller.

  Args:
    pools: The pools.

  Returns:
    `cost/<pool>/downlink_bytes` and `cost/<pool>/uplink_bytes`.
  """
  costs = {}
  for pool in pools:
    size = pool.model.num_parameters
    down, up = size * pool.cohort_size, (size + 1) * pool.cohort_size
    costs[f'cost/{pool.name}/downlink_bytes'] = _BYTES_PER_FLOAT * down
    costs[f'cost/{pool.name}/uplink_bytes'] = _BYTES_PER_FLOAT * up
  return costs
