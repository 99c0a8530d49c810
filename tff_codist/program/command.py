"""How a command ends: errors as one line, and the exit code."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import tff_codist
from tff_codist import errors
from tff_codist import runtime
from tff_codist.program import stopping


def run(
  main: Callable[[Sequence[str]], None], *, needs_tff: bool = True
) -> NoReturn:
  """Runs a command and exits: 0 done, 1 failed, 2 bad input, 3 environment.

  A `CodistError` becomes one line on standard error. A run that a signal
  stopped ends with 128 plus the signal's number.

  Args:
    main: Takes the arguments without the program's name. It imports what needs
      TensorFlow Federated itself, after the check that it is there.
    needs_tff: Whether that check is made.
  """
  # TensorFlow 2.14 logs missing CUDA plug-ins as errors at every start.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logger = logging.getLogger(tff_codist.__name__)
  logger.addHandler(logging.StreamHandler())
  logger.setLevel(logging.INFO)
  logger.propagate = False
  code = 0
  try:
    if needs_tff:
      tff_codist.check_installation()
    main(sys.argv[1:])
  except errors.CodistError as error:
    print(f'error: {error}', file=sys.stderr)
    code = error.exit_code
  except stopping.StopRequested as stopped:
    print(
      'Stopped, with a checkpoint; the same command goes on from there.'
      if stopped.has_checkpoint
      else 'Stopped before the first round; the same command starts again.',
      file=sys.stderr,
    )
    code = 128 + stopped.signum
  except KeyboardInterrupt:
    print('Stopped.', file=sys.stderr)
    code = 128 + signal.SIGINT
  except BrokenPipeError:
    code = 128 + signal.SIGPIPE
  except SystemExit as ended:
    # argparse, after --help or on a wrong flag.
    code = ended.code
  except Exception:
    traceback.print_exc()
    code = 1
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    # Who read the output has seen enough; Python would complain at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 128 + signal.SIGPIPE
  if 'tensorflow_federated' in sys.modules:
    runtime.uninstall()
  sys.exit(code)
