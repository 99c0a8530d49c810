import dataclasses
import html
import json
import math
import re
import shutil

import pytest

from tff_codist import errors
from tff_codist import files
from tff_codist import reproduction
from tff_codist.reproduction import report

_KEY = ('accuracy', 'small')


@pytest.fixture
def made(three_seeds):
  """A table of two rows with three seeds, and its runs."""
  rows = (
    reproduction.Row('fed_avg', {'preset': 'digits'}, published={_KEY: 31.84}),
    reproduction.Row(
      'merged', {'preset': 'digits'}, label='p=1 <b>', published={_KEY: 33.02}
    ),
    reproduction.Row('periodic', {'preset': 'digits'}),
  )
  table = reproduction.Table(
    'A table', 'A paper.', 'A claim.', 'a choice.', rows, last=2
  )
  environment = {
    'commit': 'abc',
    'platform': 'Linux',
    'cpus': 2,
    'python': '3.11 x',
    'packages': {'tensorflow': '2.14'},
  }
  runs = {}
  for run in three_seeds:
    (run.path / 'environment.json').write_text(json.dumps(environment))
    row = rows[run.algorithm != 'fed_avg']
    runs[reproduction.Cell(row, run.seed, run.path)] = run
  return table, runs


def _write(made, tmp_path, missing=None):
  table, runs = made
  return report.write(
    'name', table, runs, missing or {}, out_dir=tmp_path / 'out', command='c'
  )


def test_csv_has_means_errors_gains_and_their_test(made, tmp_path):
  # fed_avg 40, 42, 44; the other 43, 44, 48: gains 3, 2, 4 with error
  # 1 / sqrt(3), t = 3 sqrt(3) with two degrees of freedom, for which the two-
  # sided p is 1 - t / sqrt(2 + t^2).
  _, path, _ = _write(made, tmp_path)
  base, merged = report.from_csv(path.read_text())
  assert base == report.Result(
    metric='accuracy',
    pool='small',
    model='cnn_small',
    setting='fed_avg',
    n=3,
    mean=pytest.approx(42),
    error=pytest.approx(2 / math.sqrt(3)),
    published=31.84,
    gain=None,
    gain_error=None,
    p_value=None,
    is_paired=None,
    published_gain=None,
    values='40 42 44',
  )
  assert merged.setting == 'p=1 <b>'
  assert merged.mean == pytest.approx(45)
  assert merged.error == pytest.approx(math.sqrt(7 / 3))
  assert merged.gain == pytest.approx(3)
  assert merged.gain_error == pytest.approx(1 / math.sqrt(3))
  assert merged.p_value == pytest.approx(1 - math.sqrt(27 / 29))
  assert merged.is_paired is True
  assert merged.published_gain == pytest.approx(1.18)
  assert merged.values == '43 44 48'


def test_csv_is_read_back_as_it_was_written(made, tmp_path):
  _, path, _ = _write(made, tmp_path)
  results = report.from_csv(path.read_text())
  results.append(dataclasses.replace(results[0], mean=math.inf, error=1.0))
  text = report.to_csv(results)
  assert report.from_csv(text) == results
  assert type(report.from_csv(text)[-1].error) is float
  assert type(report.from_csv(text)[-1].n) is int


def test_markdown_table_is_made_from_the_csv_file_alone(made, tmp_path):
  markdown, path, _ = _write(made, tmp_path)
  table = report.results_table(report.from_csv(path.read_text()), 'accuracy')
  assert table in markdown.read_text()
  cells = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in table.splitlines()
  ]
  assert cells[2] == [
    *('cnn_small (small)', 'fed_avg', '3', '31.84', '42.00 ± 1.15'),
    *('', '', ''),
  ]
  assert cells[3][4:] == ['45.00 ± 1.53', '+1.18', '+3.00 ± 0.58', '0.035']


def test_published_gain_without_published_values(made, tmp_path):
  table, _ = made
  row = reproduction.Row('x', {}, published_gain={('loss', 'small'): -0.5})
  assert report._published_gain(table, row, ('loss', 'small')) == -0.5
  assert report._published_gain(table, row, _KEY) is None
  assert report._published_gain(table, table.rows[0], _KEY) is None


def test_missing_runs_are_named_with_the_reason(made, tmp_path):
  cell = reproduction.Cell(made[0].rows[2], 1, tmp_path)
  why = 'failed: __enter__ <b> src="plots/none.png"'
  markdown, _, page = _write(made, tmp_path, {cell: why})
  assert f'* periodic, seed 1: `{why}`\n' in markdown.read_text()
  escaped = html.escape(why, quote=False)
  assert f'periodic, seed 1: <code>{escaped}</code>' in page.read_text()


def test_report_of_no_finished_run(made, tmp_path):
  table, runs = made
  missing = dict.fromkeys(runs, 'not finished')
  paths = _write((table, {}), tmp_path, missing)
  assert paths[0].read_text().count('not finished') == 6
  assert report.from_csv(paths[1].read_text()) == []


def test_page_needs_no_other_file(made, tmp_path):
  _, _, path = _write(made, tmp_path)
  page = path.read_text()
  assert 'p=1 &lt;b&gt;' in page
  sources = re.findall(r'src="([^"]*)"', page)
  assert len(sources) >= 2
  assert all(s.startswith('data:image/png;base64,') for s in sources)
  assert not re.search(r'<(script|link|iframe)|@import|url\(', page)


def test_pictures_of_an_earlier_report_are_removed_last(
  made, tmp_path, monkeypatch
):
  old = tmp_path / 'out' / 'plots' / 'old.png'
  old.parent.mkdir(parents=True)
  old.touch()
  write, written = files.write, []

  def note(path, content):
    assert old.exists()
    write(path, content)
    written.append(path)

  monkeypatch.setattr(report.files, 'write', note)
  markdown, _, _ = _write(made, tmp_path)
  assert not old.exists()
  pictures = {
    markdown.parent / link
    for link in re.findall(r'\((plots/.*?)\)', markdown.read_text())
  }
  assert set(old.parent.iterdir()) == pictures
  # Whoever reads the report finds its pictures at any time.
  assert written.index(markdown) > max(map(written.index, pictures))


def test_page_has_the_pictures_that_another_process_removes(
  made, tmp_path, monkeypatch
):
  write = files.write

  def write_and_lose(path, content):
    write(path, content)
    if path.suffix == '.png' and path.is_relative_to(tmp_path / 'out'):
      path.unlink()

  monkeypatch.setattr(report.files, 'write', write_and_lose)
  _, _, page = _write(made, tmp_path)
  assert 'data:image/png;base64,' in page.read_text()


def test_old_picture_that_cannot_be_removed(made, tmp_path):
  (tmp_path / 'out' / 'plots' / 'old.png').mkdir(parents=True)
  with pytest.raises(errors.StorageError, match='cannot be removed'):
    _write(made, tmp_path)


def test_runs_with_other_packages_are_named_together(made, tmp_path):
  path = next(iter(made[1].values())).path / 'environment.json'
  environment = json.loads(path.read_text())
  environment['packages'] = {'jax': '0.4.20'}
  path.write_text(json.dumps(environment))
  markdown, _, _ = _write(made, tmp_path)
  text = markdown.read_text()
  assert 'jax 0.4.20, none, tensorflow none, 2.14.' in text


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, r'has no environment\.json'),
    ('{"commit"', r'environment\.json, line 1'),
    ('{"commit": "a"}', 'no value for platform'),
  ],
)
def test_run_whose_environment_cannot_be_read(made, tmp_path, content, message):
  path = next(iter(made[1].values())).path / 'environment.json'
  path.unlink()
  if content is not None:
    path.write_text(content)
  with pytest.raises(errors.RunFolderError, match=message):
    _write(made, tmp_path)


def test_page_in_a_browser(made, tmp_path):
  selenium = pytest.importorskip('selenium.webdriver')
  chromium, driver = map(shutil.which, ('chromium', 'chromedriver'))
  if not (chromium and driver):
    pytest.skip('no chromium and chromedriver on the PATH')
  _, _, path = _write(made, tmp_path)
  options = selenium.ChromeOptions()
  options.binary_location = chromium
  for argument in (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--no-first-run',
    f'--user-data-dir={tmp_path / "profile"}',
    '--window-size=600,800',
  ):
    options.add_argument(argument)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  browser = selenium.Chrome(
    options=options, service=selenium.ChromeService(driver)
  )
  try:
    browser.get(path.as_uri())
    assert browser.title == 'A table'
    cells = [
      [cell.text for cell in row.find_elements('css selector', 'td')]
      for row in browser.find_elements('css selector', 'tr')
    ]
    assert ['cnn_small (small)', 'p=1 <b>', '3', '33.02'] in [
      row[:4] for row in cells
    ]
    widths = browser.execute_script(
      'return [...document.images].map(i => [i.naturalWidth, i.clientWidth])'
    )
    assert widths
    # All pictures are there, and none is wider than the window.
    assert all(natural > 0 and 0 < shown <= 600 for natural, shown in widths)
    assert (
      browser.execute_script('return document.documentElement.scrollWidth')
      <= 600
    )
    assert (
      browser.execute_script(
        'return performance.getEntriesByType("resource")'
        '.filter(e => !e.name.startsWith("data:")).length'
      )
      == 0
    )
    assert browser.get_log('browser') == []
  finally:
    browser.quit()
