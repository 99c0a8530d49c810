import pathlib
import re

import pytest

from tff_codist import errors
from tff_codist.reproduction import publication
from tff_codist.reproduction import report

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_MARK = '<!-- table {} accuracy -->\n{}<!-- end -->\n'


def _result(**changes):
  values = {
    'metric': 'accuracy',
    'pool': 'small',
    'model': 'cnn',
    'setting': 'fed_avg',
    'n': 1,
    'mean': 42.0,
    'values': '42',
    **changes,
  }
  names = report.Result.__dataclass_fields__
  return report.Result(**{name: values.get(name) for name in names})


@pytest.fixture
def out_dir(tmp_path):
  folder = tmp_path / 'out'
  (folder / 'plots').mkdir(parents=True)
  (folder / 'report.md').write_text('# report')
  (folder / 'report.csv').write_text(report.to_csv([_result()]))
  (folder / 'plots' / 'accuracy.png').write_bytes(b'png')
  return folder


def test_publish_copies_the_report_and_fills_its_tables(out_dir, tmp_path):
  docs, readme = tmp_path / 'docs', tmp_path / 'README.md'
  other = _MARK.format('other', 'as it was\n')
  readme.write_text('Before.\n' + _MARK.format('mine', 'old\n') + other)
  (docs / 'mine' / 'plots').mkdir(parents=True)
  (docs / 'mine' / 'plots' / 'old.png').touch()
  plain = tmp_path / 'plain.md'
  plain.write_text('No table.\n')

  changed = publication.publish('mine', out_dir, docs, [readme, plain])

  assert changed == [readme]
  table = report.results_table([_result()], 'accuracy')
  assert readme.read_text() == (
    'Before.\n' + _MARK.format('mine', f'{table}\n') + other
  )
  copied = {p.relative_to(docs) for p in docs.rglob('*') if p.is_file()}
  assert {str(path) for path in copied} == {
    'mine/report.md',
    'mine/report.csv',
    'mine/plots/accuracy.png',
  }


def test_publish_that_fails_keeps_the_pictures_of_before(out_dir, tmp_path):
  old = tmp_path / 'docs' / 'mine' / 'plots' / 'old.png'
  old.parent.mkdir(parents=True)
  old.touch()
  (old.parent.parent / 'report.md').mkdir()
  with pytest.raises(errors.StorageError, match='cannot be written'):
    publication.publish('mine', out_dir, tmp_path / 'docs', [])
  assert old.exists()


def test_publish_without_a_report(tmp_path):
  with pytest.raises(errors.RunFolderError, match='no report'):
    publication.publish('mine', tmp_path, tmp_path / 'docs', [])
  assert not (tmp_path / 'docs').exists()


def test_refresh_finds_a_number_that_was_changed(out_dir):
  csv_of = {'mine': out_dir / 'report.csv'}.__getitem__
  fresh = publication.refresh(_MARK.format('mine', ''), csv_of)
  assert publication.refresh(fresh, csv_of) == fresh
  assert publication.refresh(fresh.replace('42.00', '43.00'), csv_of) == fresh


def test_mark_with_a_misspelt_metric(out_dir):
  csv_of = {'mine': out_dir / 'report.csv'}.__getitem__
  text = _MARK.format('mine', '').replace('accuracy', 'acuracy')
  with pytest.raises(errors.UnknownNameError, match="use 'accuracy'"):
    publication.refresh(text, csv_of)


@pytest.mark.parametrize(
  'document', ['README.md', 'docs/results.md'], ids=lambda path: path
)
def test_tables_in_documents_are_those_of_the_csv_files(document):
  text = (_ROOT / document).read_text()
  fresh = publication.refresh(
    text, lambda name: _ROOT / 'docs' / name / 'report.csv'
  )
  assert text == fresh
  assert len(re.findall('<!-- table ', text)) == text.count('<!-- end -->')
