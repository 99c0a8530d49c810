"""What differential privacy costs federated averaging and CoDist."""

from tff_codist import reproduction


@reproduction.tables.register('privacy')
def privacy(scale: str) -> reproduction.Table:
  """Accuracy for several noise multipliers, in both pools alike."""
  multipliers = {
    'full': (0.5, 1.0, 2.0, 4.0),
    'machine': (0.1, 0.3, 1.0, 2.0),
    'quick': (1.0,),
  }[scale]
  common = {
    'preset': 'emnist',
    'client.weighting': 'uniform',
    'pools.models': ('small', 'medium'),
    'pools.clients_fraction': (1.0, 0.3),
    'pools.sampling': 'poisson',
    'unlabelled.sources': 'tfds:mnist',
    'server.learning_rate': 0.03,
    **{
      'full': {'pools.cohort_size': (500, 150), 'program.rounds': 1500},
      'machine': {'pools.cohort_size': (50, 20), 'program.rounds': 60},
      'quick': {'quick': True},
    }[scale],
  }
  protected = {
    'privacy.mechanism': 'gaussian',
    'privacy.clip': 0.3,
    'privacy.delta': 1e-4 if scale == 'full' else 1e-3,
  }
  methods = {
    'fed_avg': {'algorithm.name': 'fed_avg'},
    'merged_codist': {
      'algorithm.name': 'merged_codist',
      'merged.match_norm': False,
      **({} if scale == 'quick' else {'merged.warmup_rounds': 20}),
    },
  }
  return reproduction.Table(
    title='What differential privacy costs on EMNIST',
    source='none: the CoDist paper has no experiment with privacy.',
    claim=(
      'Open: whether CoDist, which is free of further cost in privacy when its '
      'distillation data is public, gains anything under noise.'
    ),
    choices=(
      'all of it. `match_norm` is off: it would match the norm of the noise. '
      'Settings were chosen on these writers, which the epsilons do not count.'
    ),
    rows=tuple(
      reproduction.Row(f'{name}_z{z}', {**flags, **more}, label=name)
      for name, method in methods.items()
      for flags in [{**common, **method}]
      for z, more in [
        ('0', {}),
        *(
          (f'{z:g}', {**protected, 'privacy.noise_multiplier': z})
          for z in multipliers
        ),
      ]
    ),
    last=1,
  )
