"""What must hold for every algorithm, as functions that assert it.

An algorithm is tested by one row: a function from a setting to the algorithm.
The properties know only the interface of `algorithm.Algorithm`.
"""

import asyncio
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tff_codist import algorithm
from tff_codist import clients
from tff_codist import evaluation
from tff_codist import runtime
from tff_codist import teachers
from tff_codist.program import checkpoints
from tff_codist.testing import toys

BuildFn = Callable[[algorithm.Setting], algorithm.Algorithm]


def run_rounds(
  built: algorithm.Algorithm,
  setting: algorithm.Setting,
  rounds: range,
  *,
  state: object = None,
  seed: int = 1,
) -> object:
  """Runs some rounds from a state, or from the start, and returns the state."""
  state = built.initialize(seed) if state is None else state
  for round_num in rounds:
    cohorts = toys.load_cohorts(setting, round_num, seed=seed)
    state, _ = built.next(state, cohorts, round_num)
  return state


def check_state_type_is_fixed_point(build: BuildFn) -> None:
  """A round returns a state of the type it was given."""
  setting = toys.make_setting()
  built = build(setting)
  before = built.initialize(1)
  after, _ = built.next(before, toys.load_cohorts(setting, 1), 1)
  tf.nest.assert_same_structure(before, after, check_types=True)
  for a, b in zip(tf.nest.flatten(before), tf.nest.flatten(after)):
    assert np.shape(a) == np.shape(b)
    assert np.asarray(a).dtype == np.asarray(b).dtype


def check_seed_decides(build: BuildFn) -> None:
  """The same seed gives the same bits, another seed does not."""
  setting = toys.make_setting()
  built = build(setting)
  first, second, other = (
    run_rounds(built, setting, range(1, 4), seed=seed) for seed in (1, 1, 2)
  )
  toys.assert_same(first, second)
  for name, weights in built.models(first).items():
    assert not np.array_equal(weights[0][0], built.models(other)[name][0][0])


def check_round_changes_no_argument(build: BuildFn) -> None:
  """The state before a round is still what it was."""
  setting = toys.make_setting()
  built = build(setting)
  state = run_rounds(built, setting, range(1, 3))
  copy = tf.nest.map_structure(np.array, state)
  run_rounds(built, setting, range(3, 5), state=state)
  toys.assert_same(state, copy)


def check_resume_is_bit_equal(build: BuildFn, folder: pathlib.Path) -> None:
  """Five rounds are two, a checkpoint, a new process object, and three."""
  setting = toys.make_setting()
  whole = run_rounds(build(setting), setting, range(1, 6))
  manager = checkpoints.CheckpointManager(folder, keep=1)
  half = run_rounds(build(setting), setting, range(1, 3))
  asyncio.run(manager.save(half, 2))
  fresh = build(setting)
  loaded = asyncio.run(manager.load(2, fresh.initialize(1)))
  toys.assert_same(half, loaded)
  toys.assert_same(whole, run_rounds(fresh, setting, range(3, 6), state=loaded))


def check_order_of_clients_does_not_matter(build: BuildFn) -> None:
  """A cohort is a set; sums over it may round differently."""
  setting = toys.make_setting()
  built = build(setting)
  state = built.initialize(1)
  cohorts = toys.load_cohorts(setting, 1)
  backwards = {
    name: cohort.select(reversed(range(len(cohort))))
    for name, cohort in cohorts.items()
  }
  one, _ = built.next(state, cohorts, 1)
  other, _ = built.next(state, backwards, 1)
  for of in (lambda state: state, built.models):
    for a, b in zip(tf.nest.flatten(of(one)), tf.nest.flatten(of(other))):
      # Digests of client states are equal only if all bits are.
      if np.issubdtype(np.asarray(a).dtype, np.floating):
        np.testing.assert_allclose(a, b, atol=1e-5)


def check_odd_clients(build: BuildFn) -> None:
  """Clients may be empty, single, or end in a partial batch."""
  setting = toys.make_setting()
  built = build(setting)
  state = built.initialize(1)
  for sizes in ((0,), (1,), (0, 1, 41)):
    examples = [toys.seeded(toys.make_examples(n, seed=n)) for n in sizes]
    cohort = clients.Cohort(examples, toys.COMMON_CLIENTS[: len(sizes)])
    cohorts = dict.fromkeys((pool.name for pool in setting.pools), cohort)
    state, metrics = built.next(state, cohorts, 1)
    assert all(np.isfinite(v).all() for v in tf.nest.flatten(state))
    assert metrics['train/a/clients'] == np.count_nonzero(sizes)


def check_broken_client_is_dropped(build: BuildFn) -> None:
  """A client whose update is not finite poisons nothing and is counted."""
  setting = toys.make_setting()
  built = build(setting)
  state = built.initialize(1)
  cohorts = toys.load_cohorts(setting, 1)
  broken = toys.seeded(toys.make_examples(9))
  broken['x'] = np.full_like(broken['x'], np.inf)
  absent = set(toys.COMMON_CLIENTS) - set(cohorts['b'].client_ids)
  with_broken = clients.Cohort(
    [*cohorts['b'], broken], [*cohorts['b'].client_ids, absent.pop()]
  )
  expected, _ = built.next(state, cohorts, 1)
  found, metrics = built.next(state, {**cohorts, 'b': with_broken}, 1)
  for name, weights in built.models(expected).items():
    toys.assert_same(built.models(found)[name], weights)
  assert metrics['train/b/clients_dropped'] == 1
  assert metrics['train/a/clients_dropped'] == 0


def check_cohort_sizes_may_change(build: BuildFn) -> None:
  """Cohorts differ in size between pools and between rounds."""
  setting = toys.make_setting()
  built = build(setting)
  state = built.initialize(1)
  cohorts = toys.load_cohorts(setting, 1)
  for round_num, size in enumerate((1, 3, 2), start=1):
    some = {**cohorts, 'a': cohorts['a'].select(range(size))}
    state, _ = built.next(state, some, round_num)
  assert all(np.isfinite(v).all() for v in tf.nest.flatten(state))


def check_architectures(build: BuildFn) -> None:
  """Pools may have the same architecture, and there may be three."""
  for names in (('small', 'small'), ('small', 'large', 'large')):
    setting = toys.make_setting(names)
    built = build(setting)
    state = run_rounds(built, setting, range(1, 3))
    assert len(built.models(state)) == len(names)


def check_evaluation_changes_nothing(build: BuildFn) -> None:
  """Evaluating twice gives the same metrics and the same next round."""
  setting = toys.make_setting()
  built = build(setting)
  evaluator = evaluation.Evaluator(setting, setting.task.test)
  measured = teachers.Teachers(setting)
  state = run_rounds(built, setting, range(1, 2))
  copy = tf.nest.map_structure(np.array, state)
  for measure in (evaluator.evaluate, measured.measure):
    assert measure(built.models(state)) == measure(built.models(state))
  toys.assert_same(state, copy)


def check_metric_names(build: BuildFn) -> None:
  """Metrics are finite scalars under the names that reports read."""
  setting = toys.make_setting()
  built = build(setting)
  _, metrics = built.next(built.initialize(1), toys.load_cohorts(setting, 1), 1)
  for pool in setting.pools:
    for name in ('loss', 'accuracy', 'examples', 'clients', 'clients_dropped'):
      assert f'train/{pool.name}/{name}' in metrics
  for name, value in metrics.items():
    assert name.split('/')[0] in ('train', 'exchange', 'time', 'privacy')
    assert np.ndim(value) == 0
    assert np.isfinite(value)


def check_learns(build: BuildFn) -> None:
  """A separable problem is learned by every pool's model in 60 rounds."""
  setting = toys.make_setting()
  built = build(setting)
  state = run_rounds(built, setting, range(1, 61))
  evaluator = evaluation.Evaluator(setting, setting.task.test)
  metrics = evaluator.evaluate(built.models(state))
  for pool in setting.pools:
    assert metrics[f'eval/{pool.name}/accuracy'] > 0.8


def check_second_round_does_not_retrace(build: BuildFn) -> None:
  """Python code of the models runs when computations are built, not later."""
  setting = toys.make_setting()
  built = build(setting)
  state = run_rounds(built, setting, range(1, 2))
  calls = []
  original = tf.keras.layers.Dense.call
  tf.keras.layers.Dense.call = lambda self, x: (
    calls.append(self.name) or original(self, x)
  )
  try:
    run_rounds(built, setting, range(2, 4), state=state)
  finally:
    tf.keras.layers.Dense.call = original
  assert not calls


def check_runtimes_agree(build: BuildFn) -> None:
  """Three rounds give the same models on every runtime, up to rounding."""
  found = []
  for name in runtime.runtimes.names():
    runtime.install(name)
    setting = toys.make_setting()
    built = build(setting)
    state = run_rounds(built, setting, range(1, 4))
    found.append(built.models(state))
  for other in found[1:]:
    for a, b in zip(tf.nest.flatten(found[0]), tf.nest.flatten(other)):
      np.testing.assert_allclose(a, b, atol=1e-4)


PROPERTIES = (
  check_state_type_is_fixed_point,
  check_seed_decides,
  check_round_changes_no_argument,
  check_order_of_clients_does_not_matter,
  check_odd_clients,
  check_broken_client_is_dropped,
  check_cohort_sizes_may_change,
  check_architectures,
  check_evaluation_changes_nothing,
  check_metric_names,
  check_learns,
  check_second_round_does_not_retrace,
)
