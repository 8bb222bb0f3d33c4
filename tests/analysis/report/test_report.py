"""The report page: well-formed, self-contained, escaped, and with the facts in it."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from stmoe.analysis import verdict
from stmoe.analysis.report import chart
from stmoe.analysis.report import difference
from stmoe.analysis.report import export
from stmoe.analysis.report import leaderboard
from stmoe.analysis.report import page as html_page
from stmoe.analysis.report import report
from stmoe.analysis.routing import text as routing_view
from stmoe.runs import read as runs
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
  assert not {'link', 'iframe', 'object'} & set(page.tags)
  sources = [value for name, value in page.attributes if name in ('src', 'href')]
  assert any(value.startswith('data:') for value in sources)
  harmless = ('data:image/svg+xml;base64,', 'data:application/json;base64,', '#')
  assert all(value.startswith(harmless) for value in sources)
  named = made[1].replace('http://www.w3.org/2000/svg', '')          # a name, which nothing loads
  assert not re.search(r'https?://|url\(|@import', named)


def test_everything_from_a_run_is_escaped(made):
  scripts = [part.partition('</script>')[0] for part in made[1].split('<script')[1:]]
  assert scripts == [f'>{html_page.SCRIPT}']
  texts = Page(made[1]).cells
  assert EVIL in texts                                               # the run's name, unharmed
  assert any(EVIL in text and '×2.0' in text for text in texts)      # a token in the table of experts


def test_results_have_costs_finals_and_baselines(made):
  cells = Page(made[1]).cells
  headings = cells[:cells.index('dense')]
  row = dict(zip(headings, cells[cells.index('dense'):][:len(headings)]))
  assert [row[name] for name in ('parameters', 'active', 'FLOPs/token')] == ['1.24M', '1.24M', '2.5M']
  bits = made[0][0].last('eval/bits_per_byte')
  assert row['bits/byte'] == f'{bits:.3f}' and row['seeds'] == '1' and row['drops'] == '–'
  assert 'best byte n-gram' in cells and '1.962' in cells


def test_with_one_seed_no_result_is_the_best(made):
  assert 'class="best' not in made[1] and 'There is one seed of each' in made[1]


def test_the_best_is_marked_where_seeds_tell_it_from_all_others(tmp_path):
  for method, final in dict(switch=2.0, dense=2.5).items():
    for seed in (0, 1, 2):
      synthetic.write_run(tmp_path / f'{method}_seed{seed}', method, seed=seed, final=final + seed / 100,
                          layers=() if method == 'dense' else ('decoder_01',))
  found = runs.read_all(runs.expand([tmp_path]))
  labels = runs.labels(found)
  headings, rows = leaderboard.columns(found, {}, labels)
  marked = lambda rows: {(name, heading) for name, cells in rows.items()
                         for heading, cell in zip(headings, cells) if cell.kind == 'best'}
  assert marked(rows) == {('switch', 'bits/byte'), ('switch', 'loss (nats)')}
  text = difference.panel(found, labels)
  assert 'class="better"' in text and '-0.5000 ± 0.0000' in text and 'minus that of dense' in text
  two = [run for run in found if 'seed2' not in run.name]            # a spread as wide as the difference
  two = [dataclasses.replace(run, lines=[*run.lines, {'step': 201, 'eval/loss': value,
                                                      'eval/bits_per_byte': value}])
         for run, value in zip(two, (3.0, 1.0, 1.9, 2.0))]
  assert marked(leaderboard.columns(two, {}, runs.labels(two))[1]) == set()
  assert 'class="even"' in difference.panel(two, runs.labels(two))
  assert difference.panel(found[3:], labels[3:]) == ''               # no dense run


def test_tables_are_exported_with_their_spread_and_escaped(tmp_path):
  cell = html_page.Cell
  rows = [[cell('a_|b'), cell('2.000 ± 0.010', 2.0004, 'best', 0.01), cell('50.0%', 0.5)],
          [cell('c,d'), cell('2.5 ± 0.0', 2.5, '', 0.0), cell('–')]]
  headings = ['run', 'bits/byte', 'drops']
  assert export.as_csv(headings, rows) == ('run,bits/byte,bits/byte sd,drops\n'
                                           'a_|b,2.0004,0.01,0.5\n"c,d",2.5,0.0,–\n')
  assert export.as_markdown(headings, rows).splitlines()[2] == r'| a_\|b | **2.000 ± 0.010** | 50.0% |'
  latex = export.as_latex(headings, rows).splitlines()
  assert latex[:2] == [r'\begin{tabular}{lrr}', r'\toprule']
  assert latex[4] == r'a\_|b & \textbf{2.000 $\pm$ 0.010} & 50.0\% \\'


def test_a_chart_has_every_run_and_at_most_so_many_points(tmp_path):
  found = [runs.read(synthetic.write_run(tmp_path / EVIL[1:7], steps=9000)),
           runs.read(synthetic.write_run(tmp_path / 'b', layers=()))]
  text = chart.losses(found, ['a', 'b'], EVIL)
  attribute, = [value for name, value in Page(text).attributes if name == 'data-chart']
  data = json.loads(attribute)
  assert data['unit'] == 'loss (bits per byte)' and set(data['axes']) == {'step', 'tokens', 'flops', 'time'}
  first, second = data['series']
  assert len(first['train']['y']) == chart.MOST == len(first['train']['x']['flops'])
  np.testing.assert_allclose(second['eval']['y'], found[1].series('eval/bits_per_byte')[1], rtol=1e-5)
  np.testing.assert_allclose(second['train']['y'], found[1].series('loss/ce')[1] / np.log(2), rtol=1e-5)


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


def test_browsers_may_run_the_page_script_alone(made):
  script = made[1].split('<script>')[1].split('</script>')[0].encode()
  digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
  policy = next(value for name, value in Page(made[1]).attributes if name == 'content' and 'src' in value)
  assert policy.split('; ') == ["default-src 'none'", "style-src 'unsafe-inline'", 'img-src data:',
                                f"script-src 'sha256-{digest}'"]


@pytest.fixture
def seeds(tmp_path):
  """Two sparse methods and a dense one with two seeds each in a folder, and a run elsewhere."""
  for method, final in dict(switch=2.2, dense=2.3).items():
    for seed in (0, 1):
      synthetic.write_run(tmp_path / 'one' / f'{method}-{seed}{"0" * 7}', method, seed=seed,
                          final=final + seed / 10, layers=() if method == 'dense' else ('decoder_01',))
  synthetic.write_run(tmp_path / 'two' / 'switch_seed3', seed=3, final=2.0, done=False)
  return runs.read_all(runs.expand([tmp_path / 'one', tmp_path / 'two' / 'switch_seed3']))


def test_seeds_of_a_folder_are_one_row_with_mean_and_spread(seeds):
  labels = runs.labels(seeds)
  assert labels == ['dense', 'dense', 'one/switch', 'one/switch', 'two/switch']
  _, rows = leaderboard.columns(seeds, {}, labels)
  assert [cells[0].text for cells in rows.values()] == [labels[4], labels[2], labels[0]]    # by their loss
  headings = leaderboard.columns(seeds, {}, labels)[0]
  cell = lambda label, heading: rows[label][headings.index(heading)].text
  assert [cell(label, 'seeds') for label in rows] == ['0 of 1', '2', '2']
  bits = [run.last('eval/bits_per_byte') for run in seeds[2:4]]
  assert cell(labels[2], 'bits/byte') == f'{np.mean(bits):.3f} ± {np.std(bits, ddof=1):.3f}'


def test_a_seed_that_is_not_done_is_counted_and_not_averaged(tmp_path):
  for seed, final in enumerate((2.0, 2.2, 3.0)):
    folder = synthetic.write_run(tmp_path / f'x_seed{seed}', layers=(), final=final, seed=seed, done=seed < 2)
    if seed < 2:
      (folder / 'DONE').write_text(json.dumps({'step': 200, 'pairs/bleu@decode': 10.0 + seed}))
  found = runs.read_all(runs.expand([tmp_path]))
  headings, rows = leaderboard.columns(found, {}, runs.labels(found))
  cell = lambda heading: rows['x'][headings.index(heading)].text
  assert (cell('seeds'), cell('bleu@decode')) == ('2 of 3', '10.50 ± 0.71')
  bits = np.mean([run.last('eval/bits_per_byte') for run in found[:2]])
  assert cell('bits/byte').startswith(f'{bits:.3f} ± ')


def test_runs_on_other_text_are_neither_best_nor_compared(tmp_path):
  found = []
  for name, final, files in (('a', 2.0, 'x'), ('b', 1.0, 'y'), ('c', 2.1, 'x')):
    for seed in (0, 1):
      run = runs.read(synthetic.write_run(tmp_path / f'{name}_seed{seed}', final=final, seed=seed))
      data = dict(task='text', files=[files], cache_dir=name) | (dict(replaced=0.0) if name == 'c' else {})
      found.append(dataclasses.replace(run, config=run.config | dict(data=data, model=dict(name=name))))
  headings, rows = leaderboard.columns(found, {}, runs.labels(found))
  assert {label for label, cells in rows.items() if any(cell.kind == 'best' for cell in cells)} == {'a'}
  assert 'data' in headings


def test_methods_are_named_by_router_and_what_is_around_it():
  inner = dict(name='moe', router=dict(name='smoe'))
  assert leaderboard.method(dict(blocks=dict(m=dict(layer='momentum', inner=inner)))) == 'momentum smoe'
  assert leaderboard.method(dict(blocks=dict(d=dict(layer='dense')))) == 'dense'


def test_folders_are_drawn_by_themselves_and_single_runs_once_a_label(seeds):
  drawn = report.folders(seeds, runs.labels(seeds))
  assert sum('<h3>' in part for part in drawn) == 2
  loads = [part for part in drawn if 'White is balanced' in part]
  assert len(loads) == 2 and not any('<details' in part for part in loads)


def test_only_the_best_configurations_are_drawn(tmp_path):
  found = runs.read_all([synthetic.write_run(tmp_path / f'run{i:02}', final=3.0 - i / 10, layers=())
                         for i in range(report.SHOWN + 2)])
  names = [run.name for run in found]
  assert report.best(found, names) == names[:1:-1]
  assert any(f'{report.SHOWN} configurations of lowest loss, of {report.SHOWN + 2}' in part
             for part in report.folders(found, names))


def test_commands_are_listed_once_with_their_revision(tmp_path):
  found = []
  started = dict(a=['x/main.py', 'train', 'lm/a b'], b=['y', 'compare', 'lm'], c=['z', 'compare', 'lm'])
  for name, words in started.items():
    folder = synthetic.write_run(tmp_path / name, layers=())
    (folder / 'env.json').write_text(json.dumps(dict(command=words, revision='abc+')))
    found.append(runs.read(folder))
  text = report.commands(found, 'stmoe report a')
  assert text == ('<pre># revision abc+\nstmoe train &#x27;lm/a b&#x27;\nstmoe compare lm\n'
                  '# this page\nstmoe report a</pre>')


def test_questions_show_claims_and_verdicts(made):
  told = [verdict.exceeds('a < b', {0: 1.0, 1: 1.1}, {0: 2.0, 1: 2.1}), verdict.exceeds('none', {}, {})]
  one = report.Question('q:small', '# q: [what](x.md)?\n\nClaim & `why`.\n\n```sh\nno\n```', 'stmoe sweep q',
                        '2 of 4', told, {})
  text = report.page(made[0], questions=[one])
  cells = Page(text).cells
  at = cells.index('a < b')
  assert cells[at - 1:at + 2] == ['holds', 'a < b', '+1']
  assert cells[cells.index('none') - 1] == 'not decided' and 'nan' not in ' '.join(cells[at:])
  assert 'q: what?' in text and 'Claim &amp; why.' in text and 'no\n' not in text


@pytest.mark.slow
def test_defaults_in_which_runs_differ_are_listed(tmp_path):
  """Neither config.json says how many experts a token has."""
  found = [runs.read(synthetic.write_run(tmp_path / name, name)) for name in ('switch', 'st_moe')]
  cells = Page(report.page(found)).cells
  at = cells.index('blocks.m.router.k')
  assert cells[at + 1:at + 3] == ['', '2'] and 'blocks.m.router.min_capacity' not in cells
