"""Runtimes: TFF execution contexts, chosen by name.

`install` makes one of them TFF's default context; nothing else in the package
knows which one runs. Importing this module starts nothing and does not import
TensorFlow.
"""

from collections.abc import Callable
from typing import Any

from tff_codist import errors
from tff_codist import registry

# Functions that make a context from its options; they read the fields of the
# configuration under which they are registered.
runtimes: registry.Registry[Callable[..., Any]] = registry.Registry('runtime')


@runtimes.register('in_process', 'runtime.device', 'runtime.strict')
def _create_in_process(**options):
  from tff_codist.runtime import in_process

  return in_process.InProcessContext(**options)


@runtimes.register('stock')
def _create_stock(**options):
  from tff_codist.runtime import stock

  return stock.StockContext(**options)


_installed: dict[str, tuple[Any, dict[str, Any]]] = {}


def install(name: str, **options):
  """Makes the named runtime TFF's default context and returns it.

  A second call with the same name and options returns the context that is
  already running. TFF keeps its default context per thread: a thread that
  invokes computations calls `install` itself, and shares the running one.

  Args:
    name: `in_process`, or `stock`.
    **options: Keyword arguments of the runtime's context class,
      `in_process.InProcessContext` or `stock.StockContext`.

  Returns:
    A `tff.framework.SyncContext` with `close()`, also usable in a `with`
    statement, which closes it at its end.

  Raises:
    UnknownNameError: If there is no runtime of that name.
    ConfigError: If the runtime is already running with other options.
    WorkerError: If the runtime cannot start.

  Example:
    >>> with runtime.install('in_process'):
    ...   total = sum_over_clients([1, 2, 3])
  """
  create = runtimes[name]
  import tensorflow_federated as tff

  context, running_options = _installed.get(name, (None, None))
  if context is None or context.closed:
    context = create(**options)
    _installed[name] = (context, options)
  elif options != running_options:
    raise errors.ConfigError(
      f'runtime {name!r} running with options {running_options}',
      expected=f'the options asked for, {options}',
      fix='close the running context first, or install it with its options',
    )
  tff.framework.set_default_context(context)
  return context


def uninstall() -> None:
  """Takes every context away from TFF, also the one it makes when imported.

  TFF's own default context prints a traceback when Python ends without having
  replaced it.
  """
  import tensorflow_federated as tff

  class NoRuntime(tff.framework.SyncContext):
    """Refuses every computation."""

    def invoke(self, comp, arg):
      raise errors.EnvironmentSetupError(
        'a federated computation without a runtime',
        expected=f'one of {", ".join(runtimes.names())}',
        fix="call tff_codist.runtime.install('in_process') first",
      )

  tff.framework.set_default_context(NoRuntime())
