"""The README's examples run as they stand, and its links lead somewhere."""

import pathlib
import re
import subprocess
import sys

import baselines  # noqa: F401  Registers its presets.
import tasks  # noqa: F401  Registers the presets.
from tff_codist import task as task_lib

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = (_ROOT / 'README.md').read_text()

# After the example that registers it, the algorithm is run once.
_USE_ONE_WAY = """
from tff_codist import runtime
from tff_codist.testing import conformance, toys

setting = toys.make_setting()
config = config_lib.Config(pools=config_lib.PoolsConfig(names=('a', 'b')))
built = algorithm.algorithms['one_way'](setting, config)
with runtime.install('in_process'):
  state = conformance.run_rounds(built, setting, range(1, 3))
print('rounds done', list(built.models(state)))
"""


def test_all_presets_are_in_the_table():
  named = re.findall(r'^\| `(\w+)` \|.*\|.*\|$', _README, re.MULTILINE)
  assert set(task_lib.presets.names()) <= set(named)


def test_examples_run(tmp_path):
  blocks = re.findall(r'```python\n(.*?)```', _README, re.DOTALL)
  assert len(blocks) == 5
  script = tmp_path / 'examples.py'
  script.write_text(
    f'import sys\nsys.path.insert(0, {str(_ROOT)!r})\n'
    + '\n'.join(blocks)
    + _USE_ONE_WAY
  )
  done = subprocess.run(
    [sys.executable, str(script)],
    capture_output=True,
    text=True,
    timeout=180,
    check=False,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('6\n')
  assert '6 in all\n' in done.stdout
  assert "rounds done ['a', 'b']" in done.stdout
  assert (tmp_path / 'runs' / 'halves' / 'DONE').exists()


def test_files_that_documents_name_exist():
  for document in (_ROOT / 'README.md', *(_ROOT / 'docs').glob('*.md')):
    text = document.read_text()
    assert not re.search(r'@[A-Z]+@', text)
    for target in re.findall(r'\]\((?!http)([^)#]+)\)', text):
      assert (document.parent / target).exists(), target
    for command in re.findall(r'(?<!venv/)bin/[a-z_]+(?:\.py)?', text):
      assert (_ROOT / command).exists(), command
