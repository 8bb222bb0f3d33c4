"""The report page: well-formed, self-contained, escaped, and with the facts in it."""

import html.parser
import json
import re

import pytest

from stmoe.analysis import report
from stmoe.analysis import routing_view
from stmoe.analysis import runs
from tests.analysis import synthetic

VOID = {'meta', 'img', 'br', 'input', 'hr', 'link'}


class Page(html.parser.HTMLParser):
  """Checks that tags close in order; collects attributes and the texts of cells."""

  def __init__(self, text):
    super().__init__()
    self.open, self.attributes, self.cells, self.tags = [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == [], f'never closed: {self.open}'

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    if tag not in VOID:
      self.open.append(tag)
    if tag in ('td', 'th'):
      self.cells.append('')

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f'</{tag}> closes nothing'

  def handle_data(self, data):
    if 'td' in self.open or 'th' in self.open:
      self.cells[-1] += data


EVIL = '<script>alert("1")</script>&amp;'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  paths = [synthetic.write_run(root / 'dense', 'dense', layers=(), final=2.4),
           synthetic.write_run(root / 'switch', 'switch', extra=dict(note=EVIL))]
  (root / 'switch' / 'env.json').write_text(json.dumps(dict(python='3.12.1', corpus=dict(evil=EVIL))))
  found = [runs.read(paths[0]), runs.read(paths[1], EVIL)]
  sample = routing_view.Sample(pieces=[EVIL, '\n'], taken=[[(1, 0.9)], []], num_experts=2,
                               table=[(0.25, [(EVIL, 3, 2.0)]), (0.75, [])])
  costs = {'dense': dict(parameters=1_240_000, active=1_240_000, flops_per_token=2.5e6)}
  return found, report.page(found, costs, routed={EVIL: {'decoder_01': sample}}, title=EVIL)


def test_page_is_well_formed_and_needs_nothing_else(made):
  page = Page(made[1])
  assert not {'script', 'link', 'iframe', 'object'} & set(page.tags)
  sources = [value for name, value in page.attributes if name in ('src', 'href')]
  assert sources and all(value.startswith('data:image/svg+xml;base64,') for value in sources)
  assert not re.search(r'https?://|url\(|@import', made[1])


def test_everything_from_a_run_is_escaped(made):
  assert '<script' not in made[1]
  texts = Page(made[1]).cells
  assert EVIL in texts                                               # the run's name, unharmed
  assert any(EVIL in text and '×2.0' in text for text in texts)      # a token in the table of experts


def test_results_have_costs_finals_and_baselines(made):
  cells = Page(made[1]).cells
  row = cells[cells.index('dense'):]
  assert row[1:4] == ['1.24M', '1.24M', '2.5M']
  bits = made[0][0].last('eval/bits_per_byte')
  assert f'{bits:.3f}' in row
  assert 'best byte n-gram' in cells and '1.962' in cells


def test_lowest_bits_are_marked(made):
  best = min(made[0], key=lambda run: run.last('eval/bits_per_byte'))
  assert f'<td class="best">{best.last("eval/bits_per_byte"):.3f}</td>' in made[1]


def test_differing_fields_and_both_environments_are_listed(made):
  cells = Page(made[1]).cells
  at = cells.index('blocks.m.router.name')
  assert cells[at + 1:at + 3] == ['"dense"', '"switch"']
  assert 'train.steps' not in cells                                  # equal in both
  assert {'3.11.7', '3.12.1', 'corpus.evil'} <= set(cells)


def test_unfinished_run_without_any_metrics_still_has_a_page(tmp_path):
  folder = synthetic.write_run(tmp_path / 'new', layers=(), done=False)
  (folder / 'metrics.jsonl').unlink()
  text = report.page([runs.read(folder)])
  assert '0 finished' in text
  Page(text)
