"""The methods of this package on the same pools, models and data."""

from tff_codist import reproduction


@reproduction.tables.register('baselines')
def baselines(scale: str) -> reproduction.Table:
  """CoDist beside the methods of federated distillation."""
  common = {
    'full': {
      'preset': 'emnist',
      'program.rounds': 1500,
      'program.rounds_per_evaluation': 25,
    },
    'machine': {
      'preset': 'emnist',
      'program.rounds': 60,
      'program.evaluation_clients': 100,
    },
    'quick': {'preset': 'emnist', 'quick': True},
  }[scale]
  steps = {'full': 100, 'machine': 10, 'quick': 2}[scale]
  open_examples = {'full': 1000, 'machine': 200, 'quick': 20}[scale]
  models = {'full': 100, 'machine': 10, 'quick': 2}[scale]

  def row(name: str, **flags) -> reproduction.Row:
    return reproduction.Row(name, {**common, 'algorithm.name': name, **flags})

  # A rate for few rounds; the preset's is that of Reddi et al. for 1,500.
  averaging = {'server.learning_rate': 0.03} if scale == 'machine' else {}
  warmup = {
    'full': {'merged.warmup_rounds': 300},
    'machine': {'merged.warmup_rounds': 20},
  }.get(scale, {})
  # FedDF's own Adam and clipping, in place of what suits CoDist.
  ensemble = {
    'fed_df.steps': steps,
    'distillation.epsilon': 1e-7,
    'distillation.clip_norm': 5.0,
  }

  return reproduction.Table(
    title='Methods of federated distillation on EMNIST',
    source='none: the papers have other models, clients and budgets. Each '
    'reports itself above federated averaging in its setting, except FD, which '
    'trades accuracy for bytes.',
    claim=(
      'All methods train the same two models on the same writers, from the '
      'same weights, with the same clients in each round; the server distils '
      'on the same unlabelled images. With FD and DS-FL each client has a '
      'model of its own: FD is measured on a sample of them, DS-FL by the '
      "server's. plain_average is federated averaging without a server "
      'optimizer, on which FedDF and FedAUX build. FedMD is not here: it needs '
      'public data with labels.'
    ),
    choices='budgets and rates; those of the papers where they have them.',
    rows=(
      row('fed_avg', **averaging),
      row('periodic_codist', **averaging),
      row('merged_codist', **averaging, **warmup),
      reproduction.Row(
        'plain_average',
        {
          **common,
          'algorithm.name': 'fed_avg',
          'server.optimizer': 'fedavg',
          'server.learning_rate': 1.0,
        },
      ),
      row('fed_df', **ensemble),
      row(
        'fed_aux',
        **ensemble,
        **{'fed_df.learning_rate': 5e-5, 'fed_aux.epsilon': 1.0},
      ),
      row(
        'ds_fl',
        **{'ds_fl.open_examples': open_examples, 'ds_fl.epochs': 2},
      ),
      row('fd', **{'program.evaluation_models': models}),
    ),
    # In 60 rounds the models still learn between any two evaluations.
    last=1 if scale == 'machine' else 5,
  )
