"""FedAUX: FedDF that uses the unlabelled data twice more.

Before the first round, unlabelled data U pre-train the feature extractor h_0^P
of each prototype P (a pool), from which its federated training starts. And each
client k says, once, how much an example looks like its own: it tells its data
D_k from negatives U⁻ ⊂ U by logistic regression on the frozen features,

    w_k = argmin_w  1/N_k · Σ_{x ∈ D_k ∪ U⁻} log(1 + exp(−t_x·⟨w, h(x)⟩))
                    + λ/2 · ‖w‖²,          t_x = 1 on D_k and −1 on U⁻,
    w̃_k = w_k + N(0, σ²·I),               σ² = 8·ln(1.25/δ) / (ε·λ·N_k)²
    s_k(u) = 1 / (1 + exp(−⟨w̃_k, h(u)⟩)) + 1e-8

with N_k = |D_k| + |U⁻| and features of norm at most 1, h = h_0^P / max(R,
‖h_0^P‖), where R is the largest norm on U. Each round is FedDF's, on U^d = U \\
U⁻, and the clients count by their scores:

    z(u) = Σ_{k∈S} s_k(u) · f(x_k, u) / Σ_{k∈S} s_k(u)

Order: pre-training; in a client's first round its scorer w̃_k, before it trains;
local training, averages, distillation. The distillation's Adam goes on from
round to round, at a constant rate. Distillation's fields are those of the group
`fed_df`; with equal scores and no pre-training this is FedDF.

Privacy: ‖w_k − w_k'‖ ≤ 2/(λ·N_k) if one example of D_k is replaced, as all
features have norm at most 1. So one release of w̃_k is (ε, δ)-differentially
private for ε ≤ 1, where neighbours differ in one example, and U and the number
of examples are public. A client in several pools makes one release in each, and
their ε and δ add up; so do those of a run that is resumed from before a
release. This covers the scores alone: models are exchanged without noise, and
one by one. Noise comes from the operating system's entropy, so that two runs
with a seed differ; with `reproducible_noise` they do not, and there is no
guarantee, as the seed is published with the run.

Traffic: as FedAvg in every round; in a client's first round in a pool also h_0,
R and U⁻ down and w̃_k up, one float for each feature.

Authors' values: ε = 0.1, δ = 1e-5, λ = 0.01, a fifth of U as negatives, 20
clients, one local epoch of Adam 1e-3 in batches of 32; Adam 5e-5 in batches of
128, one pass over U^d in a round. Reported: ResNet-8 on CIFAR-10 with clients
of different labels, from 30.4 % to 78.1 %. Ours, small model of preset `digits`
with about 300 examples in U, after 20 rounds with 20 steps of rate 1e-3, mean
of seeds 1 to 3: 75.4 % with ε = ∞, 72.8 % then without pre-training, 61.3 % by
FedDF at a constant rate, which uses all of U; 52.3 % with ε = 1, whose noise
has a standard deviation of 10 with so few negatives.

Differences, all deliberate:
* Pre-training is a denoising autoencoder, of which h_0 is the encoder: the
  prototype's own layers before its last one. The paper: contrastive learning.
* λ weighs the mean loss, as the analysis of σ supposes. The code's λ is that of
  the summed loss, so that its noise is too small.
* R is computed on U, and private features beyond it are clipped. The code
  scales by the largest norm of private features.
* No intercept. The code has one that is noised but not regularised.
* U⁻ and U^d are disjoint. The code draws them independently, so they overlap.
* Averages weigh clients by their examples, as FedDF's (the code: uniformly),
  and clients train by SGD.
* Models have no batch normalisation; the code's run in training mode.

References:
  Sattler et al., FedAUX: Leveraging Unlabeled Auxiliary Data in Federated
  Learning, 2021. arXiv 2102.02514.
"""

import collections
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple, Union

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_probability as tfp
from scipy import special

from baselines import fed_df
from tff_codist import algorithm
from tff_codist import client_update
from tff_codist import clients
from tff_codist import codist
from tff_codist import computations
from tff_codist import config as config_lib
from tff_codist import distillation
from tff_codist import errors
from tff_codist import local_training
from tff_codist import models
from tff_codist import personal
from tff_codist import randomness
from tff_codist import task as task_lib
from tff_codist import unlabelled as unlabelled_lib

# Added to every score, as in the paper's code.
_LEAST_SCORE = 1e-8
# Relative change of w_k at which Newton's method ends; the next would be its
# square. It takes three to twenty iterations.
_TOLERANCE = 1e-9
_MOST_ITERATIONS = 100
# Examples of U in one forward pass, which bounds memory.
_EXAMPLES_AT_ONCE = 512


class Extractor(NamedTuple):
  """A prototype's frozen feature extractor.

  Attributes:
    weights: Of h_0^P.
    bound: R, a float32 scalar above 0.
  """

  weights: models.Weights
  bound: np.float32


class FedAUXState(NamedTuple):
  """The state, each part by prototype.

  Attributes:
    weights: The prototypes' weights.
    optimizers: The distillation's Adams.
    extractors: The `Extractor`s.
    scorers: Digests of the clients' w̃_k, see `personal.ClientStates`.
    is_pretrained: Whether the extractors are what they remain, a bool scalar.
  """

  weights: fed_df.FedDFState
  optimizers: fed_df.Optimizers
  extractors: collections.OrderedDict
  scorers: collections.OrderedDict
  is_pretrained: np.bool_


# {prototype: {client id: w̃_k}}
Scorers = Mapping[str, Mapping[str, np.ndarray]]


class Autoencoder(NamedTuple):
  """A prototype's layers before its last one, and one layer back to the input.

  Attributes:
    extractor: From inputs to features `[batch, d]`; its weights are the first
      ones of `whole` and of the prototype.
    whole: From inputs to inputs of the same shape.
  """

  extractor: models.Model
  whole: models.Model


def build_autoencoder(model: models.Model) -> Autoencoder:
  """Builds the autoencoder of a prototype.

  Args:
    model: The prototype's model, of real inputs, ending in a dense layer. All
      layers but that one are the encoder; a linear model's features are its
      inputs.

  Returns:
    The autoencoder, with a dense linear layer as decoder.

  Raises:
    ConfigError: If the model has tokens for inputs, or another last layer.
  """
  keras_model = model.to_keras(
    [np.zeros(leaf.shape, leaf.dtype) for leaf in model.weights_type]
  )
  layers, head = tf.keras.layers, keras_model.layers[-1]
  if (
    not model.input_dtype.is_floating
    or not isinstance(head, layers.Dense)
    or len(head.input_shape) != 2
  ):
    raise errors.ConfigError(
      f'fed_aux with the model {model.name!r}, from {model.input_dtype.name} '
      f'and ending in {head.name}',
      expected='a classifier of real inputs that ends in a dense layer',
      fix='choose an image task and its models, or another --algorithm.name',
    )
  decoded = layers.Dense(math.prod(model.input_shape))(head.input)

  def part(name, outputs):
    keras_part = tf.keras.Model(keras_model.inputs, outputs)
    return models.Model(
      f'{name} of {model.name}',
      functools.partial(tf.keras.models.clone_model, keras_part),
    )

  return Autoencoder(
    extractor=part('extractor', layers.Activation('linear')(head.input)),
    whole=part('autoencoder', layers.Reshape(model.input_shape)(decoded)),
  )


def build_pretraining(
  autoencoder: models.Model,
  x_type: tff.TensorType,
  preprocess: task_lib.Preprocess,
  config: config_lib.Config,
) -> tff.Computation:
  """Builds the training of an autoencoder on all of U.

  Adam on the mean squared error between the models' inputs of clean examples
  and what the autoencoder makes of them once Gaussian noise is added.

  Type signature:
    (<weights=A@SERVER, examples=[?,...]@SERVER, seed=int32[2]@SERVER> ->
    <weights=A, loss=float32>@SERVER)

  Args:
    autoencoder: The model with weights A.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the models' inputs, used without
      augmentation.
    config: The groups `fed_aux` and `distillation`, of which the batch size.

  Returns:
    The computation. `loss` is the mean over all steps. Order and noise depend
    on `seed` only.
  """
  fields = config.fed_aux
  adam = tff.learning.optimizers.build_adam(fields.pretraining_learning_rate)

  @tf.function
  def train(weights, examples, seed):
    def loss_of(trained, rows, batch_seed):
      x = preprocess(tf.gather(examples, rows))
      noise = tf.random.stateless_normal(
        tf.shape(x), batch_seed, stddev=fields.pretraining_noise
      )
      made = autoencoder.logits(trained, x + noise, training=True)
      loss = tf.reduce_mean(tf.math.squared_difference(made, x))
      return loss, (loss, 1.0)

    _, trained, (loss, steps) = local_training.descend(
      loss_of,
      weights,
      adam,
      models.fresh_optimizer_state(adam, weights),
      num_examples=tf.shape(examples)[0],
      epochs=fields.pretraining_epochs,
      batch_size=config.distillation.batch_size,
      seed=seed,
      zeros=(0.0, 0.0),
    )
    return collections.OrderedDict(
      weights=trained, loss=tf.math.divide_no_nan(loss, steps)
    )

  return computations.at_server(
    train,
    autoencoder.weights_type,
    x_type,
    tff.TensorType(np.int32, (2,)),
  )


def build_features(
  extractor: models.Model,
  x_type: tff.TensorType,
  preprocess: task_lib.Preprocess,
) -> tff.Computation:
  """Builds the features h_0(x), of any norm.

  Type signature:
    (<weights=E@SERVER, x=[?,...]@SERVER> -> float32[?,d]@SERVER)

  Args:
    extractor: h_0.
    x_type: TFF type of raw inputs, `[?, ...]`.
    preprocess: From raw inputs to the models' inputs.
  """
  return computations.at_server(
    lambda weights, x: extractor.logits(weights, preprocess(x)),
    extractor.weights_type,
    x_type,
  )


def clip_to_unit(features: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
  """Returns h = h_0 / max(R, ‖h_0‖), whose norm is at most 1.

  Of features that are not finite it is 0, as no example may have more.

  Args:
    features: h_0(x), `[..., d]`.
    bound: R.
  """
  norm = tf.norm(features, axis=-1, keepdims=True)
  return tf.where(
    tf.math.is_finite(norm),
    tf.math.divide_no_nan(features, tf.maximum(bound, norm)),
    0.0,
  )


def fit_scorer(
  own: tf.Tensor, negatives: tf.Tensor, regularization: float
) -> tf.Tensor:
  """Solves the logistic regression of a client's examples and negatives.

  By Newton's method in float64, to convergence.

  Args:
    own: h(x) of the client's examples, float32 `[n, d]`.
    negatives: h(x) of U⁻, float32 `[m, d]`, m above 0.
    regularization: λ, above 0.

  Returns:
    w_k, float32 `[d]`.
  """
  h = tf.cast(tf.concat([own, negatives], axis=0), tf.float64)
  is_own = tf.range(tf.shape(h)[0]) < tf.shape(own)[0]
  # It adds up the examples' losses, and half of what it calls regularizer.
  scorer, *_ = tfp.glm.fit(
    h,
    tf.cast(is_own, tf.float64),
    tfp.glm.Bernoulli(),
    l2_regularizer=regularization * tf.cast(tf.shape(h)[0], tf.float64),
    maximum_iterations=_MOST_ITERATIONS,
    convergence_criteria_fn=(
      tfp.glm.convergence_criteria_small_relative_norm_weights_change(
        tolerance=_TOLERANCE
      )
    ),
  )
  return tf.cast(scorer, tf.float32)


def noise_stddev(
  config: config_lib.FedAUXConfig, num_examples: Union[float, tf.Tensor]
) -> Union[float, tf.Tensor]:
  """Returns σ, of each entry of w̃_k.

  √(8·ln(1.25/δ)) / (ε·λ·N_k): the Gaussian mechanism for a sensitivity of
  2/(λ·N_k), which is proven for ε ≤ 1. With ε = ∞ it is 0.

  Args:
    config: ε, δ and λ.
    num_examples: N_k, above 0.
  """
  spread = math.sqrt(8 * math.log(1.25 / config.delta))
  return spread / (config.epsilon * config.regularization * num_examples)


def build_scorers(
  extractor: models.Model,
  examples_type: tff.Type,
  preprocess: task_lib.Preprocess,
  config: config_lib.FedAUXConfig,
) -> tff.Computation:
  """Builds what each client does once: fit a scorer and make it private.

  Type signature:
    (<shared=<weights=E, bound=float32, negatives=float32[?,d]>@SERVER,
    examples={<x,y,seed>}@CLIENTS> -> {float32[d]}@CLIENTS)

  Args:
    extractor: h_0.
    examples_type: TFF type of a client's examples.
    preprocess: From raw inputs to the models' inputs.
    config: λ, ε and δ.

  Returns:
    The computation. `negatives` are h(x) of U⁻; the result is w̃_k, whose noise
    depends on the client's seed only. Labels are not read.
  """
  negatives_type = tff.TensorType(np.float32, (None, *extractor.output_shape))
  shared_type = tff.StructWithPythonType(
    [
      ('weights', extractor.weights_type),
      ('bound', tff.TensorType(np.float32)),
      ('negatives', negatives_type),
    ],
    collections.OrderedDict,
  )

  @tff.tensorflow.computation(shared_type, examples_type)
  def fit(shared, examples):
    negatives = shared['negatives']
    own = clip_to_unit(
      extractor.logits(shared['weights'], preprocess(examples['x'])),
      shared['bound'],
    )
    scorer = tf.function(fit_scorer)(own, negatives, config.regularization)
    num_examples = tf.cast(
      tf.shape(own)[0] + tf.shape(negatives)[0], tf.float32
    )
    noise = tf.random.stateless_normal(tf.shape(scorer), examples['seed'])
    return scorer + noise_stddev(config, num_examples) * noise

  @tff.federated_computation(
    tff.FederatedType(shared_type, tff.SERVER),
    tff.FederatedType(examples_type, tff.CLIENTS),
  )
  def fit_clients(shared, examples):
    return tff.federated_map(fit, (tff.federated_broadcast(shared), examples))

  return fit_clients


class Split(NamedTuple):
  """U in two disjoint parts.

  Attributes:
    distillation: U^d.
    negatives: U⁻, raw inputs `[m, ...]`.
  """

  distillation: unlabelled_lib.UnlabelledData
  negatives: np.ndarray


def split(
  unlabelled: unlabelled_lib.UnlabelledData,
  config: config_lib.Config,
) -> Split:
  """Splits U; which examples go where is drawn by the seed.

  Args:
    unlabelled: U.
    config: The seed and the share of the negatives.

  Raises:
    DataError: If U has fewer than two examples.
  """
  x = unlabelled.x
  if len(x) < 2:
    raise errors.DataError(
      'a single unlabelled example for distillation and negatives',
      expected='at least two, as no example is both',
      fix='choose more data with --unlabelled.sources',
    )
  order = randomness.derive_rng(config.seed, 'fed_aux', 'split').permutation(
    len(x)
  )
  count = round(config.fed_aux.negatives_fraction * len(x))
  count = min(max(count, 1), len(x) - 1)
  return Split(
    unlabelled_lib.UnlabelledData(x[order[count:]], seed=config.seed),
    x[order[:count]],
  )


class _Prototype(NamedTuple):
  """What certainty needs of one prototype.

  Attributes:
    autoencoder: Its autoencoder.
    clients: Where its clients' scorers are.
    pretrain: See `build_pretraining`.
    features: See `build_features`.
    fit: See `build_scorers`.
  """

  autoencoder: Autoencoder
  clients: personal.ClientStates
  pretrain: tff.Computation
  features: tff.Computation
  fit: tff.Computation

  def encoder(self, weights: models.Weights) -> models.Weights:
    """Returns the first weights of a prototype or of its autoencoder."""
    return tuple(weights[: len(self.autoencoder.extractor.weights_type)])

  def raw_features(self, encoder: models.Weights, x: np.ndarray) -> np.ndarray:
    """Returns h_0(u) of raw inputs `[n, ...]`."""
    return np.concatenate(
      [
        self.features(encoder, x[i : i + _EXAMPLES_AT_ONCE])
        for i in range(0, len(x), _EXAMPLES_AT_ONCE)
      ]
    )

  def unit_features(self, extractor: Extractor, x: np.ndarray) -> np.ndarray:
    """Returns h(u) of raw inputs `[n, ...]`."""
    raw = self.raw_features(extractor.weights, x)
    return clip_to_unit(raw, extractor.bound).numpy()


class Certainty:
  """The prototypes' extractors, and their clients' scorers on the features."""

  def __init__(
    self,
    setting: algorithm.Setting,
    config: config_lib.Config,
    negatives: np.ndarray,
  ):
    """Builds the computations of each prototype.

    Args:
      setting: The pools, each a prototype; task, unlabelled data, client store.
      config: The groups `fed_aux` and `distillation`, and the seed.
      negatives: U⁻.

    Raises:
      ConfigError: If a prototype has no features.
    """
    task, x_type = setting.task, setting.examples_type['x']
    self._config = config
    self._x, self._negatives = setting.unlabelled.x, negatives
    self._prototypes = {}
    for pool in setting.pools:
      autoencoder = build_autoencoder(pool.model)
      extractor = autoencoder.extractor
      self._prototypes[pool.name] = _Prototype(
        autoencoder=autoencoder,
        clients=personal.ClientStates(pool, setting),
        pretrain=build_pretraining(
          autoencoder.whole, x_type, task.preprocess, config
        ),
        features=build_features(extractor, x_type, task.preprocess),
        fit=build_scorers(
          extractor, setting.examples_type, task.preprocess, config.fed_aux
        ),
      )

  def initialize(
    self, weights: fed_df.FedDFState
  ) -> tuple[collections.OrderedDict, collections.OrderedDict]:
    """Returns extractors that are not pre-trained, and no scorers."""
    extractors, scorers = collections.OrderedDict(), collections.OrderedDict()
    for name, prototype in self._prototypes.items():
      encoder = prototype.encoder(weights[name])
      extractors[name] = Extractor(encoder, np.float32(1))
      scorers[name] = prototype.clients.initialize()
    return extractors, scorers

  def pretrain(
    self, state: FedAUXState
  ) -> tuple[FedAUXState, algorithm.Metrics]:
    """Trains each prototype's extractor on U and puts it into the prototype.

    Costs as many passes of each autoencoder over U as there are epochs, and one
    more of the extractor.

    Args:
      state: Before the first round.

    Returns:
      The state with frozen extractors, and metrics.

    Raises:
      NonFiniteModelError: If an autoencoder diverges.
    """
    weights, extractors = state.weights.copy(), state.extractors.copy()
    seed, metrics = self._config.seed, {}
    for name, prototype in self._prototypes.items():
      encoder = prototype.encoder(weights[name])
      head = weights[name][len(encoder) :]
      drawn = prototype.autoencoder.whole.initialize(seed, name)
      result = prototype.pretrain(
        (*encoder, *drawn[len(encoder) :]),
        self._x,
        randomness.derive_seed(seed, 'pretraining', name),
      )
      encoder = prototype.encoder(result['weights'])
      norms = np.linalg.norm(prototype.raw_features(encoder, self._x), axis=1)
      if not np.isfinite([result['loss'], norms.max()]).all():
        raise errors.NonFiniteModelError(
          f'an autoencoder of pool {name!r} that is not finite',
          expected='pre-training that converges',
          fix='lower --fed_aux.pretraining_learning_rate',
        )
      weights[name] = (*encoder, *head)
      extractors[name] = Extractor(encoder, norms.max())
      metrics[f'exchange/{name}/pretraining_loss'] = result['loss']
    state = state._replace(
      weights=weights, extractors=extractors, is_pretrained=np.bool_(True)
    )
    return state, metrics

  def fit(
    self, state: FedAUXState, cohorts: algorithm.Cohorts
  ) -> tuple[FedAUXState, Scorers, algorithm.Metrics]:
    """Gets the scorers of the clients that have not sent theirs yet.

    Args:
      state: With frozen extractors.
      cohorts: {prototype: examples of its clients}.

    Returns:
      The state with the new scorers, those of all clients of the cohorts, and
      metrics.
    """
    digests, scorers, metrics = state.scorers.copy(), {}, {}
    for name, prototype in self._prototypes.items():
      metrics[f'exchange/{name}/scorers_sent'] = 0
      cohort = cohorts[name]
      if not cohort:
        continue
      # Zeros stand for a client that has not sent a scorer.
      nothing = np.zeros(
        prototype.autoencoder.extractor.output_shape, np.float32
      )
      sent = prototype.clients.load(digests[name], cohort.client_ids, nothing)
      scorers[name] = dict(zip(cohort.client_ids, sent))
      new = cohort.select(i for i, w in enumerate(sent) if not w.any())
      if new:
        fitted = self._fit_new(name, state.extractors[name], new)
        scorers[name].update(zip(new.client_ids, fitted))
        digests[name] = prototype.clients.save(
          digests[name], new.client_ids, fitted
        )
        metrics[f'exchange/{name}/scorers_sent'] = len(new)
    return state._replace(scorers=digests), scorers, metrics

  def score(
    self,
    extractors: Mapping[str, Extractor],
    scorers: Scorers,
    members: fed_df.Members,
    batches: np.ndarray,
  ) -> Mapping[str, np.ndarray]:
    """Returns s_k(u) of all members, see `fed_df.Score`."""
    x = batches.reshape(-1, *batches.shape[2:])
    scores = {}
    for name, own in members.items():
      h = self._prototypes[name].unit_features(extractors[name], x)
      w = np.stack([scorers[name][member.client_id] for member in own])
      scores[name] = (special.expit(w @ h.T) + _LEAST_SCORE).reshape(
        len(own), *batches.shape[:2]
      )
    return scores

  def traffic(
    self, scorers: Mapping[str, personal.Digests]
  ) -> dict[str, algorithm.Traffic]:
    """Returns what all clients have received and sent for their scorers.

    Each that has sent its scorer: h_0, R and U⁻ down, w̃_k up.

    Args:
      scorers: Digests of the clients' w̃_k, by prototype.
    """
    negatives = math.ceil(self._negatives.nbytes / algorithm.BYTES_PER_FLOAT)
    sent = {}
    for name, prototype in self._prototypes.items():
      extractor = prototype.autoencoder.extractor
      num_clients = len(personal.stored([scorers[name]]))
      sent[name] = algorithm.Traffic(
        down=num_clients * (extractor.num_parameters + 1 + negatives),
        up=num_clients * math.prod(extractor.output_shape),
      )
    return sent

  def _fit_new(
    self, name: str, extractor: Extractor, cohort: clients.Cohort
  ) -> list[np.ndarray]:
    """Returns the scorers of clients that have none."""
    prototype = self._prototypes[name]
    shared = collections.OrderedDict(
      weights=extractor.weights,
      bound=extractor.bound,
      negatives=prototype.unit_features(extractor, self._negatives),
    )
    if not self._config.fed_aux.reproducible_noise:
      cohort = clients.Cohort(map(_with_entropy, cohort), cohort.client_ids)
    with errors.in_pool(name, cohort.client_ids):
      return list(prototype.fit(shared, cohort))


def _with_entropy(examples: clients.SeededExamples) -> clients.SeededExamples:
  """Returns a client whose seed is from the operating system's entropy."""
  seed = np.random.SeedSequence().generate_state(2, np.uint32).view(np.int32)
  return clients.SeededExamples(examples, seed=seed)


@algorithm.algorithms.register(
  'fed_aux',
  'fed_aux',
  *client_update.MEAN_FIELDS,
  *(
    f'fed_df.{name}'
    for name in (
      'steps',
      'learning_rate',
      'teachers',
      'selection',
      'steps_per_validation',
      'patience',
      'drop_worst',
    )
  ),
  *distillation.PASS_FIELDS,
)
def build_fed_aux(
  setting: algorithm.Setting, config: config_lib.Config
) -> algorithm.Algorithm:
  """Builds FedAUX.

  Args:
    setting: Pools, each a prototype; task, unlabelled data, validation set and
      client store.
    config: The groups `client`, `distillation`, `fed_df` and `fed_aux`.

  Returns:
    The algorithm. Its first round begins with the pre-training.

  Raises:
    ConfigError: If there is no distillation data, no validation set where one
      is needed, a model has no features, or the models are to be protected.
    DataError: If there are fewer than two unlabelled examples.
  """
  prototypes = fed_df.Prototypes(setting, config)
  parts = split(algorithm.require_unlabelled(setting, config), config)
  fusion = fed_df.Fusion(
    setting._replace(unlabelled=parts.distillation),
    config_lib.change(config, fed_df={'anneal': False}),
  )
  certainty = Certainty(setting, config, parts.negatives)

  def initialize(seed):
    weights = prototypes.initialize(seed)
    extractors, scorers = certainty.initialize(weights)
    return FedAUXState(
      weights=weights,
      optimizers=fusion.initialize(weights),
      extractors=extractors,
      scorers=scorers,
      is_pretrained=np.bool_(False),
    )

  def next_fn(state, cohorts, round_num):
    pretraining_metrics = {}
    if not state.is_pretrained:
      state, pretraining_metrics = certainty.pretrain(state)
    state, scorers, scorers_metrics = certainty.fit(state, cohorts)
    members, metrics = prototypes.train(state.weights, cohorts)
    teachers = fusion.drop_worst(members)
    metrics['exchange/clients_dropped'] = sum(
      len(own) - len(teachers[name]) for name, own in members.items()
    )
    optimizers, weights, exchange_metrics = fusion.run(
      state.optimizers,
      prototypes.average(state.weights, teachers),
      teachers,
      round_num - 1,
      score=functools.partial(certainty.score, state.extractors, scorers),
    )
    return state._replace(weights=weights, optimizers=optimizers), {
      **pretraining_metrics,
      **scorers_metrics,
      **metrics,
      **exchange_metrics,
    }

  return algorithm.Algorithm(
    initialize,
    next_fn,
    lambda state: {name: (own,) for name, own in state.weights.items()},
    traffic=codist.model_traffic(setting),
    once=lambda state: certainty.traffic(state.scorers),
    client_states=lambda state: personal.stored(state.scorers.values()),
  )


@task_lib.presets.register('fed_aux')
def preset(quick: bool) -> config_lib.Config:
  """FedAUX on CIFAR-100 with the pools, models and data of preset `cifar100`.

  Command: bin/train.py --preset fed_aux --run_dir runs/fed_aux

  Distillation as published: Adam 5e-5, one pass over U^d, 31 batches of 128, in
  a round. Privacy is not: with a thousand negatives the published epsilon of
  0.1 would give noise with a standard deviation of 9 on features of norm 1,
  and scores of noise alone; with 1 it is 0.9. The clients of the large pool are
  in the small one too, so that they pay twice.

  Args:
    quick: Two rounds of few clients and steps, one pass of pre-training.
  """
  return config_lib.change(
    fed_df.preset(quick),
    algorithm={'name': 'fed_aux'},
    fed_df={'steps': 4 if quick else 31, 'learning_rate': 5e-5},
    fed_aux={'epsilon': 1.0, 'pretraining_epochs': 1 if quick else 10},
  )
