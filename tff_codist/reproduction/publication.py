"""Tables in documents: copied from a report, and checked against its numbers.

A document shows a table between two marks,

    <!-- table codist_cifar100 accuracy -->
    <!-- end -->

of which the first names the table and the metric.
"""

import pathlib
import re
from collections.abc import Callable, Iterable

from tff_codist import errors
from tff_codist import files
from tff_codist.reproduction import report

_BLOCK = re.compile(
  r'(<!-- table (?P<table>\S+) (?P<metric>\S+) -->\n)'
  r'(?P<body>.*?)(<!-- end -->)',
  re.DOTALL,
)


def publish(
  name: str,
  out_dir: pathlib.Path,
  docs: pathlib.Path,
  documents: Iterable[pathlib.Path],
) -> list[pathlib.Path]:
  """Copies a table's report into a folder of documents, and into documents.

  Args:
    name: Name of the table.
    out_dir: The folder of the table, with its report.
    docs: The folder; `<docs>/<name>/` gets `report.md`, `report.csv` and the
      pictures.
    documents: Markdown files whose marked tables of this name are replaced.

  Returns:
    The documents that have such a table.

  Raises:
    RunFolderError: If the folder has no report.
    UnknownNameError: If a mark has a metric that the table does not report.
    StorageError: If a file cannot be written, or an old picture not removed.
  """
  numbers = out_dir / 'report.csv'
  if not numbers.exists():
    raise errors.RunFolderError(
      f'no report.csv in {out_dir}',
      expected='the folder of a table that has been reported',
      fix='give --out of the table, or reproduce it first',
    )
  folder = docs / name
  if folder.resolve() != out_dir.resolve():
    pictures = {path.name: path for path in (out_dir / 'plots').glob('*.png')}
    for path in (*pictures.values(), out_dir / 'report.md', numbers):
      files.write(folder / path.relative_to(out_dir), path.read_bytes())
    # No report ever links to a picture that is not there.
    old = (folder / 'plots').glob('*.png')
    files.remove(path for path in old if path.name not in pictures)
  marked = []
  for document in documents:
    old = document.read_text()
    new = refresh(old, lambda table: docs / table / 'report.csv', only=name)
    if new != old:
      files.write(document, new.encode())
    if any(match['table'] == name for match in _BLOCK.finditer(new)):
      marked.append(document)
  return marked


def refresh(
  text: str, csv_of: Callable[[str], pathlib.Path], *, only: str = ''
) -> str:
  """Returns a document with its marked tables made from their csv files.

  Args:
    text: The document.
    csv_of: From a table's name to its `report.csv`.
    only: Name of the table whose marks count; empty for all.

  Raises:
    UnknownNameError: If a mark has a metric that its table does not report.
  """

  def replace(match: re.Match) -> str:
    if only not in ('', match['table']):
      return match[0]
    results = report.from_csv(csv_of(match['table']).read_text())
    table = report.results_table(results, match['metric'])
    return f'{match[1]}{table}\n{match[5]}'

  return _BLOCK.sub(replace, text)
