"""Randomness as a function of (seed, purpose, round, pool, client).

Nothing else may influence a random choice: then a resumed run needs no saved
generator state, and every runtime sees the same numbers.
"""

import hashlib
import json
from typing import Union

import numpy as np

Key = Union[str, int]


def derive_sequence(seed: int, *purpose: Key) -> np.random.SeedSequence:
  """Returns the entropy of one random choice.

  Args:
    seed: The run's seed, any integer.
    *purpose: What the choice is for, e.g. `'cohort', round_num, pool_name`.
      Different keys give independent streams; 1 and '1' are different keys.
  """
  digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
  return np.random.SeedSequence(int.from_bytes(digest, 'big'))


def derive_rng(seed: int, *purpose: Key) -> np.random.Generator:
  """Returns a NumPy generator for one purpose, see `derive_sequence`."""
  return np.random.default_rng(derive_sequence(seed, *purpose))


def derive_seed(seed: int, *purpose: Key) -> np.ndarray:
  """Returns an int32 `[2]` seed for `tf.random.stateless_*`."""
  state = derive_sequence(seed, *purpose).generate_state(2, np.uint32)
  return state.view(np.int32)
