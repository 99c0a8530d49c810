"""Tests for the doctor, above all on installations that are broken."""

import pathlib
import subprocess
import sys
from importlib import metadata

import pytest

from tff_codist.runtime import doctor

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_DOCTOR = _ROOT / 'bin' / 'doctor.py'

# Runs bin/doctor.py where every import of the modules named first fails.
_BLOCKED = """
import runpy, sys

class Block:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in blocked:
      raise ModuleNotFoundError(f'No module named {name!r}')

blocked = sys.argv[1].split(',')
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def _run_doctor(*command, cwd):
  return subprocess.run(
    [sys.executable, *command],
    cwd=cwd,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_sound_environment_is_all_well(tmp_path):
  result = _run_doctor(str(_DOCTOR), '--data_dir', str(tmp_path), cwd=tmp_path)
  assert result.returncode == 0, result.stdout + result.stderr
  assert 'problem' not in result.stdout
  assert 'started in' in result.stdout
  text = ' '.join(result.stdout.split())
  assert 'absent: cifar100, emnist, stackoverflow' in text


def test_missing_packages_are_findings_with_a_fix(tmp_path):
  # -S leaves the interpreter with the standard library alone.
  result = _run_doctor('-S', str(_DOCTOR), cwd=tmp_path)
  assert result.returncode == 3
  assert 'Traceback' not in result.stdout + result.stderr
  text = ' '.join(result.stdout.split())
  assert 'tensorflow-federated problem not installed' in text
  assert 'import tensorflow problem ModuleNotFoundError' in text
  assert 'runtime stock note not tried' in text
  assert 'To fix: run bin/setup' in text


def test_tff_that_cannot_be_imported_is_a_finding(tmp_path):
  result = _run_doctor(
    '-c', _BLOCKED, 'tensorflow_federated', str(_DOCTOR), cwd=tmp_path
  )
  assert result.returncode == 3
  assert 'Traceback' not in result.stdout + result.stderr
  text = ' '.join(result.stdout.split())
  assert 'import tensorflow ok' in text
  assert 'import tensorflow_federated problem ModuleNotFoundError' in text
  assert '1 problem(s) found' in text


def test_old_version_is_a_problem(monkeypatch):
  real_version = metadata.version
  monkeypatch.setattr(
    metadata,
    'version',
    lambda name: '2.9.1' if name == 'tensorflow' else real_version(name),
  )
  findings = {f.name: f for f in doctor.check_packages()}
  assert findings['tensorflow'].status == doctor.PROBLEM
  assert '2.9.1; expected 2.14.*' in findings['tensorflow'].detail
  assert 'bin/setup' in findings['tensorflow'].fix
  assert findings['tensorflow-federated'].status == doctor.OK


def test_old_python_is_a_problem(monkeypatch):
  monkeypatch.setattr(sys, 'version_info', (3, 12, 0, 'final', 0))
  assert doctor.check_python().status == doctor.PROBLEM


def test_other_platform_is_a_problem(monkeypatch):
  monkeypatch.setattr(doctor.platform, 'machine', lambda: 'aarch64')
  assert doctor.check_platform().status == doctor.PROBLEM


def test_cpu_without_avx_is_a_problem(monkeypatch):
  monkeypatch.setattr(
    pathlib.Path, 'read_text', lambda self: 'flags\t\t: fpu sse2\n'
  )
  assert doctor.check_cpu().status == doctor.PROBLEM
  assert [f.status for f in doctor.check_imports()] == [doctor.NOTE]


def test_worker_that_does_not_answer_is_a_problem():
  finding = doctor.check_runtime('stock', startup_timeout_seconds=1e-6)
  assert finding.status == doctor.PROBLEM
  assert 'did not answer' in finding.detail
  assert finding.fix


def test_named_data_directory_that_is_missing_is_a_problem(tmp_path):
  finding = doctor.check_data(str(tmp_path / 'absent'))
  assert finding.status == doctor.PROBLEM
  assert 'mkdir' in finding.fix


def test_data_directory_comes_from_the_environment(tmp_path, monkeypatch):
  monkeypatch.delenv('TFF_CODIST_DATA_DIR', raising=False)
  assert doctor.check_data().status == doctor.NOTE
  monkeypatch.setenv('TFF_CODIST_DATA_DIR', str(tmp_path))
  assert str(tmp_path) in doctor.check_data().detail


def test_data_that_is_there_is_listed_with_its_size(tmp_path):
  (tmp_path / 'emnist_all.sqlite').write_bytes(b'x' * 2_000_000)
  finding = doctor.check_data(str(tmp_path))
  assert finding.status == doctor.NOTE
  assert 'emnist (2 MB); absent: cifar100, stackoverflow' in finding.detail


@pytest.mark.parametrize('bytes_free, status', [(1, 'note'), (10**13, 'ok')])
def test_free_disk_space_is_compared(bytes_free, status, monkeypatch):
  monkeypatch.setattr(
    doctor.shutil,
    'disk_usage',
    lambda _: doctor.shutil._ntuple_diskusage(0, 0, bytes_free),
  )
  assert doctor.check_disk().status == status
