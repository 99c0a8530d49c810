"""Checks whether this machine and installation can run the package.

Works on a broken installation, which is when it is needed: it imports nothing
but the standard library until a check needs more, and a check that fails to
import something reports that. `bin/doctor.py` prints the findings.
"""

from __future__ import annotations  # It must also run on a Python too old.

import dataclasses
import importlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata

OK = 'ok'
NOTE = 'note'
PROBLEM = 'problem'

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SETUP_FIX = 'run bin/setup, and use the Python of the .venv that it makes'
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 9), (3, 11)
_NVIDIA_SMI_SECONDS = 20.0

# What each distribution's version must start with (any of), '' is any version.
_VERSIONS = {
  'tensorflow': ('2.14.',),
  'keras': ('2.14.',),
  'tensorflow-federated': ('0.87.',),
  'numpy': ('1.25.', '1.26.'),
  'jax': ('0.4.20',),
  'jaxlib': ('0.4.20',),
  'dp-accounting': ('0.4.',),
  'tensorflow-privacy': ('0.9.',),
  'grpcio': ('1.',),
  'tqdm': ('4.',),
  'matplotlib': ('',),
  'tensorflow-datasets': ('',),
}

# Files in the data directory, by the task that reads them.
_DATA_FILES = {
  'cifar100': 'cifar100.sqlite',
  'emnist': 'emnist_all.sqlite',
  'stackoverflow': 'stackoverflow.sqlite',
}

_MIN_FREE_DISK_BYTES = 4 * 10**9
_MIN_MEMORY_BYTES = 4 * 10**9


@dataclasses.dataclass(frozen=True)
class Finding:
  """What one check found.

  Attributes:
    name: What was checked.
    status: `OK`, `NOTE` (worth knowing) or `PROBLEM` (will not run).
    detail: What was found, one line.
    fix: What the user can do about it; '' when there is nothing to do.
  """

  name: str
  status: str
  detail: str
  fix: str = ''


def check_python() -> Finding:
  """Checks the version of the running Python."""
  version = sys.version_info[:2]
  detail = f'{platform.python_version()} at {sys.executable}'
  if _OLDEST_PYTHON <= version <= _NEWEST_PYTHON:
    return Finding('python', OK, detail)
  return Finding(
    'python',
    PROBLEM,
    f'{detail}; TensorFlow Federated needs 3.9, 3.10 or 3.11',
    'install one of them and run bin/setup',
  )


def check_platform() -> Finding:
  """Checks the operating system, the processor's family and the C library."""
  libc, libc_version = platform.libc_ver()
  system = f'{platform.system()} {platform.machine()}'
  detail = f'{system}, {libc or "unknown libc"} {libc_version}'.strip()
  if system == 'Linux x86_64' and libc == 'glibc':
    return Finding('platform', OK, detail)
  return Finding(
    'platform',
    PROBLEM,
    f'{detail}; TensorFlow Federated is built for Linux x86_64 with glibc',
    'use such a machine, or a container of such a system',
  )


def check_cpu() -> Finding:
  """Checks for the instructions that TensorFlow's wheels use."""
  try:
    info = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError as error:
    return Finding('cpu', NOTE, f'features unknown: {error}')
  flags = next(
    (
      line.partition(':')[2].split()
      for line in info.splitlines()
      if line.startswith('flags')
    ),
    [],
  )
  cores = f'{len(os.sched_getaffinity(0))} usable cores'
  found = [name for name in ('avx', 'avx2', 'fma', 'avx512f') if name in flags]
  if 'avx' in found:
    return Finding('cpu', OK, f'{cores}, {" ".join(found)}')
  return Finding(
    'cpu',
    PROBLEM,
    f'{cores}, no AVX, which TensorFlow needs',
    'use another CPU; in a virtual machine pass the host CPU through',
  )


def check_packages() -> Iterator[Finding]:
  """Checks the versions of the packages that matter most, one by one."""
  for name, prefixes in _VERSIONS.items():
    try:
      version = metadata.version(name)
    except metadata.PackageNotFoundError:
      yield Finding(name, PROBLEM, 'not installed', _SETUP_FIX)
      continue
    if version.startswith(prefixes):
      yield Finding(name, OK, version)
    else:
      expected = ' or '.join(f'{prefix}*' for prefix in prefixes)
      yield Finding(
        name, PROBLEM, f'{version}; expected {expected}', _SETUP_FIX
      )


def check_imports() -> Iterator[Finding]:
  """Checks that TensorFlow, jax and TFF can be imported."""
  # Without AVX the import would end this process rather than raise.
  if check_cpu().status == PROBLEM:
    yield Finding('imports', NOTE, 'not tried on this CPU')
    return
  # TensorFlow says much about GPU libraries even when nothing is wrong.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  for module in ('tensorflow', 'jax', 'dp_accounting', 'tensorflow_federated'):
    start = time.monotonic()
    try:
      importlib.import_module(module)
    except Exception as error:  # Whatever a broken package raises.
      yield Finding(
        f'import {module}',
        PROBLEM,
        _describe(error),
        _SETUP_FIX,
      )
    else:
      seconds = time.monotonic() - start
      yield Finding(f'import {module}', OK, f'took {seconds:.1f} s')


def check_runtime(name: str, **options) -> Finding:
  """Checks that a runtime starts, answers 1 + 1 and stops.

  Args:
    name: The runtime.
    **options: As for `runtime.install`.
  """
  label = f'runtime {name}'
  try:
    import numpy as np
    import tensorflow_federated as tff

    from tff_codist import runtime
  except Exception as error:  # As in `check_imports`, which has the fix.
    return Finding(label, NOTE, f'not tried: {_describe(error)}')

  @tff.tensorflow.computation(np.int32)
  def add_one(value):
    return value + 1

  start = time.monotonic()
  try:
    with runtime.runtimes[name](**options) as context:
      started = time.monotonic()
      with tff.framework.get_context_stack().install(context):
        answer = add_one(1)
      devices = ', '.join(context.devices)
  except Exception as error:  # The runtime's failure is the finding.
    return Finding(
      label,
      PROBLEM,
      _describe(error),
      getattr(error, 'fix', 'reinstall with bin/setup'),
    )
  if answer != 2:
    return Finding(
      label, PROBLEM, f'1 + 1 gave {answer}', 'reinstall with bin/setup'
    )
  return Finding(
    label,
    OK,
    f'started in {started - start:.2f} s, answered in'
    f' {time.monotonic() - started:.2f} s; runs on {devices}',
  )


def check_data(data_dir: str | None = None) -> Finding:
  """Checks the data directory and lists the data sets in it.

  Args:
    data_dir: The directory; None is what `TFF_CODIST_DATA_DIR` names.

  Returns:
    A problem if a directory was named that cannot be used; data that is absent
    is a note, since some tasks need none.
  """
  data_dir = data_dir or os.environ.get('TFF_CODIST_DATA_DIR')
  if not data_dir:
    return Finding(
      'data',
      NOTE,
      'no data directory is named',
      'set TFF_CODIST_DATA_DIR to a folder to keep data in',
    )
  folder = pathlib.Path(data_dir)
  if not folder.is_dir():
    return Finding(
      'data',
      PROBLEM,
      f'{folder} is not a directory',
      f'mkdir -p "{folder}", or name another one in TFF_CODIST_DATA_DIR',
    )
  if not os.access(folder, os.W_OK | os.X_OK):
    return Finding(
      'data',
      PROBLEM,
      f'{folder} is not writable',
      'make it writable, or name another one in TFF_CODIST_DATA_DIR',
    )
  found, absent = [], []
  for task, name in _DATA_FILES.items():
    path = folder / name
    if path.is_file():
      found.append(f'{task} ({path.stat().st_size / 1e6:.0f} MB)')
    else:
      absent.append(task)
  detail = f'{folder}: {", ".join(found) or "empty"}'
  if not absent:
    return Finding('data', OK, detail)
  return Finding('data', NOTE, f'{detail}; absent: {", ".join(absent)}')


def check_gpu() -> Finding:
  """Lists the GPUs that the driver has and those that TensorFlow can use."""
  driver = _list_driver_gpus()
  try:
    import tensorflow as tf

    visible = tf.config.list_physical_devices('GPU')
  except Exception as error:  # As in `check_imports`, which has the fix.
    usable = f'TensorFlow was not asked: {_describe(error)}'
    visible = []
  else:
    usable = f'TensorFlow can use {len(visible)}'
  if not driver and not visible:
    return Finding('gpu', NOTE, 'none; everything runs on the CPU')
  detail = f'{"; ".join(driver) or "unknown to nvidia-smi"}; {usable}'
  if not visible:
    return Finding(
      'gpu',
      NOTE,
      detail,
      "install the CUDA libraries of the 'gpu' extra to use it",
    )
  return Finding('gpu', OK, detail)


def _list_driver_gpus() -> list[str]:
  try:
    result = subprocess.run(
      ['nvidia-smi', '--query-gpu=name,memory.total', '--format=csv,noheader'],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=_NVIDIA_SMI_SECONDS,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return []
  return result.stdout.strip().splitlines()


def check_disk(folder: str | None = None) -> Finding:
  """Checks the free disk space at `folder`, by default the working folder."""
  folder = os.path.abspath(folder or os.curdir)
  try:
    free_bytes = shutil.disk_usage(folder).free
  except OSError as error:
    return Finding('disk', NOTE, f'free space unknown: {error}')
  detail = f'{free_bytes / 1e9:.1f} GB free at {folder}'
  if free_bytes >= _MIN_FREE_DISK_BYTES:
    return Finding('disk', OK, detail)
  return Finding(
    'disk',
    NOTE,
    f'{detail}; data and runs may need {_MIN_FREE_DISK_BYTES / 1e9:.0f} GB',
    'free some space',
  )


def check_memory() -> Finding:
  """Checks the memory that programs can still take."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    sizes = {
      key: int(rest.split()[0]) * 1024
      for key, _, rest in (line.partition(':') for line in lines)
    }
    available_bytes = sizes['MemAvailable']
  except (OSError, KeyError, ValueError, IndexError) as error:
    return Finding('memory', NOTE, f'unknown: {error}')
  detail = (
    f'{available_bytes / 1e9:.1f} GB available'
    f' of {sizes["MemTotal"] / 1e9:.1f} GB'
  )
  if available_bytes >= _MIN_MEMORY_BYTES:
    return Finding('memory', OK, detail)
  return Finding(
    'memory',
    NOTE,
    f'{detail}; large cohorts may not fit',
    'close other programs, or use fewer clients in a round',
  )


def _describe(error: BaseException) -> str:
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text}'


def check_all(data_dir: str | None = None) -> Iterator[Finding]:
  """Yields every finding, the slow checks (about ten seconds) last.

  Args:
    data_dir: As in `check_data`.
  """
  yield check_python()
  yield check_platform()
  yield check_cpu()
  yield check_memory()
  yield check_disk()
  yield check_data(data_dir)
  yield from check_packages()
  yield from check_imports()
  yield check_runtime('in_process')
  yield check_runtime('stock')
  yield check_gpu()
