"""Heterogeneous federated learning by knowledge codistillation, on TFF.

The public names. They are imported when they are first used: reading results
and checking an installation need no TensorFlow.
"""

import importlib
import importlib.util

from tff_codist import errors

__version__ = '0.1.0'

_MODULES = {
  'Algorithm': 'algorithm',
  'ClientData': 'clients',
  'Config': 'config',
  'Evaluator': 'evaluation',
  'Experiment': 'experiment',
  'Model': 'models',
  'Pool': 'pools',
  'Setting': 'algorithm',
  'Task': 'task',
  'UnlabelledData': 'unlabelled',
  'build_client_update': 'client_update',
  'build_distillation': 'distillation',
  'build_experiment': 'experiment',
  'build_fed_avg': 'codist',
  'build_merged_codist': 'codist',
  'build_periodic_codist': 'codist',
  'build_server_update': 'server_update',
  'load_run': 'reports',
  'train': 'program.training',
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  if _MODULES[name] != 'reports':
    check_installation()
  module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return __all__


def check_installation() -> None:
  """Checks that TFF is there, which pip cannot install by itself.

  Raises:
    EnvironmentSetupError: If it is not, with the way that works.
  """
  if importlib.util.find_spec('tensorflow_federated') is None:
    raise errors.EnvironmentSetupError(
      'no tensorflow_federated in this environment',
      expected='TensorFlow Federated 0.87, which pip cannot resolve: the '
      'jaxlib it pins has left the package index',
      fix='run bin/setup, or: pip install --no-deps '
      'tensorflow-federated==0.87.0',
    )
