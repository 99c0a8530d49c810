#!/usr/bin/env python3
"""Says whether this machine and installation can run the package.

Usage: bin/doctor.py [--data_dir DIR]

Exit code: 0 when nothing is wrong, 3 when there is a problem. Takes about ten
seconds, most of it for importing TensorFlow Federated. Runs on any Python from
3.8, so that it can say what is wrong with that Python.
"""

import argparse
import importlib.util
import pathlib
import shutil
import sys
import textwrap

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_EXIT_ENVIRONMENT = 3
_NAME_WIDTH = 28
_STATUS_WIDTH = 8


def _load_doctor():
  # By its path: importing the package needs what the doctor looks for.
  path = _ROOT / 'tff_codist' / 'runtime' / 'doctor.py'
  spec = importlib.util.spec_from_file_location('doctor', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules['doctor'] = module
  spec.loader.exec_module(module)
  return module


def _print_row(name, status, text):
  indent = ' ' * (_NAME_WIDTH + _STATUS_WIDTH)
  width = max(shutil.get_terminal_size((100, 24)).columns, len(indent) + 40)
  print(
    textwrap.fill(
      f'{name:{_NAME_WIDTH}}{status:{_STATUS_WIDTH}}{text}',
      width,
      subsequent_indent=indent,
      break_long_words=False,
      break_on_hyphens=False,
    ),
    flush=True,
  )


def main():
  parser = argparse.ArgumentParser(
    description='Says whether this machine can run the package.'
  )
  parser.add_argument(
    '--data_dir', help='data directory (default: $TFF_CODIST_DATA_DIR)'
  )
  args = parser.parse_args()
  sys.path.insert(0, str(_ROOT))
  doctor = _load_doctor()
  num_problems = 0
  for finding in doctor.check_all(args.data_dir):
    num_problems += finding.status == doctor.PROBLEM
    _print_row(finding.name, finding.status, finding.detail)
    if finding.fix:
      _print_row('', '', f'To fix: {finding.fix}.')
  print(
    f'\n{num_problems} problem(s) found.' if num_problems else '\nAll is well.'
  )
  return _EXIT_ENVIRONMENT if num_problems else 0


if __name__ == '__main__':
  sys.exit(main())
