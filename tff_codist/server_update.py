"""The server's step on a pseudo-gradient: FedAvg, FedAvgM and FedOpt.

Each of Reddi et al.'s adaptive optimizers exists in two flavors. `tff` is
TensorFlow Federated's optimizer: with bias correction, and for Adagrad with
epsilon inside the root. `reddi` is the paper's Algorithm 2 for a pseudo-
gradient g = −Δ:

    m_t = β1·m_{t−1} + (1−β1)·g_t
    v_t = v_{t−1} + g_t²                                    FedAdagrad, β1 = 0
    v_t = v_{t−1} − (1−β2)·g_t²·sign(v_{t−1} − g_t²)        FedYogi
    v_t = β2·v_{t−1} + (1−β2)·g_t²                          FedAdam
    x_{t+1} = x_t − η·m_t / (√v_t + τ)

η may decay in steps, to η·γ^⌊(t−1)/R⌋ in round t, where γ is
`learning_rate_decay` and R is `rounds_per_decay`.

References:
  Reddi et al., Adaptive Federated Optimization, ICLR 2021. arXiv 2003.00295.
"""

import collections
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import computations
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import registry

SecondMoment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class ReddiOptimizer(tff.learning.optimizers.Optimizer):
  """An adaptive server optimizer in the paper's own form."""

  def __init__(
    self,
    second_moment: SecondMoment,
    *,
    learning_rate: float,
    beta1: float,
    epsilon: float,
    initial_accumulator: float,
  ):
    """Makes the optimizer.

    Args:
      second_moment: From v_{t−1} and g_t² to v_t.
      learning_rate: η.
      beta1: Decay of m, β1.
      epsilon: Adaptivity τ, outside the root.
      initial_accumulator: v before the first round.
    """
    self._second_moment = second_moment
    self._learning_rate = learning_rate
    self._beta1 = beta1
    self._epsilon = epsilon
    self._initial_accumulator = initial_accumulator

  def initialize(self, specs):
    """Returns η, m = 0 and v = `initial_accumulator`, as in `specs`."""
    return collections.OrderedDict(
      learning_rate=tf.constant(self._learning_rate, tf.float32),
      momentum=tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), specs
      ),
      second_moment=tf.nest.map_structure(
        lambda spec: tf.fill(
          spec.shape, tf.cast(self._initial_accumulator, spec.dtype)
        ),
        specs,
      ),
    )

  def next(self, state, weights, gradients):
    """Returns the state and the weights after one step."""
    learning_rate = state['learning_rate']
    m = tf.nest.map_structure(
      lambda m, g: self._beta1 * m + (1 - self._beta1) * g,
      state['momentum'],
      gradients,
    )
    v = tf.nest.map_structure(
      lambda v, g: self._second_moment(v, tf.square(g)),
      state['second_moment'],
      gradients,
    )
    stepped = tf.nest.map_structure(
      lambda x, m, v: x - learning_rate * m / (tf.sqrt(v) + self._epsilon),
      weights,
      m,
      v,
    )
    new_state = collections.OrderedDict(
      learning_rate=learning_rate, momentum=m, second_moment=v
    )
    return new_state, stepped


BuildOptimizerFn = Callable[
  [config_lib.ServerConfig], tff.learning.optimizers.Optimizer
]


server_optimizers: registry.Registry[BuildOptimizerFn] = registry.Registry(
  'server optimizer'
)

_ADAPTIVE = ('server.flavor', 'server.epsilon', 'server.initial_accumulator')
_WITH_DECAYS = (*_ADAPTIVE, 'server.beta1', 'server.beta2')


@server_optimizers.register('fedavg')
def _fedavg(config):
  return tff.learning.optimizers.build_sgdm(config.learning_rate)


@server_optimizers.register('fedavgm', 'server.momentum')
def _fedavgm(config):
  return tff.learning.optimizers.build_sgdm(
    config.learning_rate, momentum=config.momentum
  )


@server_optimizers.register('fedadam', *_WITH_DECAYS)
def _fedadam(config):
  if config.flavor == 'tff':
    if config.initial_accumulator:
      raise errors.ConfigError(
        f'server.initial_accumulator = {config.initial_accumulator}',
        expected="0, which is where TFF's Adam starts",
        fix='leave it out, or set --server.flavor reddi',
      )
    return tff.learning.optimizers.build_adam(
      config.learning_rate, config.beta1, config.beta2, config.epsilon
    )
  return _reddi(
    config, lambda v, g2: config.beta2 * v + (1 - config.beta2) * g2
  )


@server_optimizers.register('fedyogi', *_WITH_DECAYS)
def _fedyogi(config):
  if config.flavor == 'tff':
    return tff.learning.optimizers.build_yogi(
      config.learning_rate,
      config.beta1,
      config.beta2,
      config.epsilon,
      **_accumulator(config),
    )
  return _reddi(
    config, lambda v, g2: v - (1 - config.beta2) * g2 * tf.sign(v - g2)
  )


@server_optimizers.register('fedadagrad', *_ADAPTIVE)
def _fedadagrad(config):
  if config.flavor == 'tff':
    return tff.learning.optimizers.build_adagrad(
      config.learning_rate, epsilon=config.epsilon, **_accumulator(config)
    )
  return _reddi(config, lambda v, g2: v + g2, beta1=0.0)


def _accumulator(config):
  """Returns the argument of TFF's optimizers, whose defaults differ."""
  if config.initial_accumulator is None:
    return {}
  return {'initial_preconditioner_value': config.initial_accumulator}


def _reddi(config, second_moment, beta1=None):
  return ReddiOptimizer(
    second_moment,
    learning_rate=config.learning_rate,
    beta1=config.beta1 if beta1 is None else beta1,
    epsilon=config.epsilon,
    initial_accumulator=config.initial_accumulator or 0.0,
  )


def build_server_optimizer(
  config: config_lib.ServerConfig,
) -> tff.learning.optimizers.Optimizer:
  """Builds the server optimizer that a configuration names.

  A rejected pseudo-gradient is no step of it, and does not count for the decay.

  Raises:
    UnknownNameError: If there is no such optimizer.
    ConfigError: If the flavor does not have the configured start.
  """
  optimizer = server_optimizers[config.optimizer](config)
  if config.rounds_per_decay is None:
    return optimizer

  def learning_rate(step):
    decays = tf.cast(step // config.rounds_per_decay, tf.float32)
    return config.learning_rate * config.learning_rate_decay**decays

  return tff.learning.optimizers.schedule_learning_rate(
    optimizer, learning_rate
  )


class ServerUpdate(NamedTuple):
  """The server computations of one pool's update.

  Attributes:
    initialize: Type signature: `(W@SERVER -> O@SERVER)`.
    next: Type signature: `(<state=O@SERVER, weights=W@SERVER,
      pseudo_gradient=W@SERVER> -> <state=O@SERVER, weights=W@SERVER,
      rejected=float32@SERVER>)`.
  """

  initialize: tff.Computation
  next: tff.Computation


def build_server_update(
  model: models.Model, config: config_lib.ServerConfig
) -> ServerUpdate:
  """Builds the server's step for one pool.

  A pseudo-gradient that is not finite is rejected: weights and optimizer state
  stay as they are and `rejected` is 1.

  Args:
    model: The pool's model.
    config: The server optimizer.

  Returns:
    The computations, with the type signatures of `ServerUpdate`.

  Raises:
    ConfigError, UnknownNameError: As `build_server_optimizer`.
  """
  optimizer = build_server_optimizer(config)

  def start(weights):
    return models.fresh_optimizer_state(optimizer, weights)

  def step(state, weights, pseudo_gradient):
    is_finite = models.all_finite(pseudo_gradient)
    state, weights = tf.cond(
      is_finite,
      lambda: optimizer.next(state, weights, pseudo_gradient),
      lambda: (state, weights),
    )
    return collections.OrderedDict(
      state=state,
      weights=weights,
      rejected=1 - tf.cast(is_finite, tf.float32),
    )

  initialize = computations.at_server(start, model.weights_type)
  next_fn = computations.at_server(
    step,
    initialize.type_signature.result.member,
    model.weights_type,
    model.weights_type,
  )
  return ServerUpdate(initialize=initialize, next=next_fn)
