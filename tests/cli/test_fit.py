"""stmoe fit: what it prints and writes, and every mistake as one line."""

import json

import numpy as np
import pytest

from stmoe import lookup
from stmoe.analysis.scaling import figures
from stmoe.analysis.scaling import study
from tests.analysis.scaling import runs

FIGURES = {'clark': {'fit', 'loss_by_experts', 'effective_parameters'},
           'joint': {'fit', 'loss_by_experts', 'iso_flop', 'optimal_allocation'},
           'fine_grained': {'fit', 'iso_flop', 'optimal_allocation'},
           'chinchilla': {'fit', 'iso_flop', 'optimal_allocation'}, 'power': {'fit', 'loss_by_size'}}
SETS = dict(clark='s_base', joint='switch', fine_grained='e64', chinchilla='hoffmann', power='kaplan')


@pytest.fixture
def table(tmp_path):
  return runs.write(tmp_path / 'runs.csv', runs.draw('clark', 's_base')[1])


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ('joint', 'fine_grained')))
    for name in lookup.available('law')])
def test_every_law_is_fitted_and_drawn(command, tmp_path, name):
  _, table, coefficients = runs.draw(name, SETS[name])
  path = runs.write(tmp_path / 'runs.csv', table)
  code, out, err = command('fit', path, '--law', name, '--bootstrap', 0, '--hold-out', 1, '--out',
                           tmp_path / 'out')
  assert code == 0, err
  found = json.loads((tmp_path / 'out' / 'fit.json').read_text())
  assert set(found['coefficients']) == set(coefficients) and found['law'] == name
  assert all(key in out for key in coefficients) and 'held out' in out and len(found['held_out']['runs']) == 1
  drawn = {path.stem for path in (tmp_path / 'out').glob('*.png')}
  assert drawn == FIGURES[name] <= set(figures.captions())
  assert {path.stem for path in (tmp_path / 'out').glob('*.svg')} == drawn


def test_intervals_and_held_out_error(command, table, tmp_path):
  code, out, _ = command('fit', table, '--law', 'clark', '--hold-out', '2', '--bootstrap', '40', '--out',
                         tmp_path / 'out')
  found = json.loads((tmp_path / 'out' / 'fit.json').read_text())
  assert code == 0 and '95% interval' in out and 's_base' in out and 'typical error' in out
  span = found['percentiles']['a']
  assert span['2.5'] < span['10'] < found['coefficients']['a'] < span['90'] < span['97.5']
  for run in found['held_out']['runs']:
    assert run['error'] == pytest.approx(run['predicted'] / run['loss'] - 1)
    assert run['interval'][0] < run['predicted'] < run['interval'][1]
  assert found['settings'] == dict(fixed={}, hold_out=2, bootstrap=40, seed=0)


def test_other_headings_and_groups(command, tmp_path):
  """Two routers in one table, with headings of a sweep: each is fitted by itself."""
  rows = ['router,eval/loss,flops']
  for router, label in (('hash', 'clark_dense'), ('s base', 'kaplan')):
    _, table, _ = runs.draw('power', label, noise=0.0)
    rows += [f'{router},{loss!r},{x!r}' for x, loss in zip(table['x'].tolist(), table['loss'].tolist())]
  (tmp_path / 'runs.csv').write_text('\n'.join(rows))
  code, out, err = command('fit', tmp_path / 'runs.csv', '--law', 'power', '--column', 'x=flops', '--column',
                           'loss=eval/loss', '--by', 'router', '--bootstrap', '0', '--out', tmp_path / 'out')
  assert code == 0 and 'router=hash' in out, err
  slopes = [json.loads((tmp_path / 'out' / name / 'fit.json').read_text())['coefficients']['alpha']
            for name in ('hash', 's_base')]
  np.testing.assert_allclose(slopes, [0.078, 0.076])


def test_a_law_of_one_size_is_drawn_against_that_size(tmp_path):
  law, table, _ = runs.draw('power', 'kaplan')
  found = study.study('power', law, table, hold_out=2, bootstrap=40, headings=dict(x='flops'))
  figure = figures.draw(found)['loss_by_size']
  ax, = figure.axes
  line, fitted, held = (np.array(one.get_data()) for one in ax.lines)
  order = np.argsort(table['x'])
  assert [*fitted[0], *held[0]] == table['x'][order].tolist() and len(held[0]) == 2
  assert line[0].min() == table['x'].min() and line[0].max() == pytest.approx(table['x'].max())
  np.testing.assert_allclose(line[1], law.predict(found.fit.coefficients, dict(x=line[0])))
  low, high = (f(ax.collections[0].get_paths()[0].vertices[:, 1]) for f in (np.min, np.max))
  assert low < line[1].min() < line[1].max() < high                  # the band is around the line
  assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ('log', 'log', 'flops')


@pytest.mark.parametrize('more, words', [
    (['--law', 'clrk'], ["no law is called 'clrk'", 'nearest: clark']),
    (['--law', 'joint'], ["no column 'n_active_incl_emb'", 'embeddings', 'it has: n_dense, experts, loss']),
    (['--law', 'clark', '--column', 'experts=expert'], ["no column 'expert'", 'nearest: experts']),
    (['--law', 'clark', '--column', 'exprts=experts'], ['no such column', 'nearest: experts']),
    (['--law', 'clark', '--column', 'experts'], ['write NAME=VALUE']),
    (['--law', 'clark', '--by', 'router'], ["no column 'router'"]),
    (['--law', 'clark', '--by', 'n_dense'], ['n_dense=15000000.0', 'do not tell']),
    (['--law', 'clark', '--fix', 'e_mx=300'], ['no such coefficient', 'nearest: e_max']),
    (['--law', 'clark', '--fix', 'e_max=many'], ['--fix e_max=many: expected a finite number']),
    (['--law', 'clark', '--hold-out', '-1'], ['--hold-out -1']),
    (['--law', 'clark', '--hold-out', '54'], ['to hold out 54, the law needs 61 different runs']),
    (['--law', 'clark', '--bootstrap', '5'], ['too few', '40']),
    ([], ['--law']),
])
def test_mistakes(mistake, table, tmp_path, more, words):
  line = mistake('fit', table, *more, '--out', tmp_path / 'out')
  assert all(word in line for word in words), line
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, words', [
    (b'', ['no rows']), (b'n_dense,experts,loss\n', ['no rows']),
    (b'n_dense,experts,loss\n1,2\n', ['line 2 has 2 cells, its heading 3']),
    (b'n_dense,experts,loss,loss\n1,2,3,4\n', ["two columns 'loss'"]),
    (b'n_dense,experts,loss\n1e6,8,2.5\n\n1e6,8,nan\n', ['line 4', "loss='nan'", 'diverged']),
    (b'n_dense,experts,loss\n1e6,8,\n', ["loss=''", 'line 2']),
    (b'n_dense,experts,loss\n1e6,0,2.5\n', ["experts='0'"]),
    (b'n_dense,experts,loss\n1e6,8,inf\n', ["loss='inf'"]),
    (b'n_dense,experts,loss\n1e6,8,caf\xe9\n', ['no CSV table']),
    (b'n_dense,experts,loss\n1e6,8,2.5\n', ['at least 7 runs', 'here are 1']),
])
def test_mistakes_in_a_table(mistake, tmp_path, content, words):
  (tmp_path / 'runs.csv').write_bytes(content)
  line = mistake('fit', tmp_path / 'runs.csv', '--law', 'clark')
  assert 'runs.csv' in line and all(word in line for word in words), line


def test_of_many_columns_the_nearest_are_named(mistake, tmp_path):
  headings = ','.join(['flops', *(f'c{i}' for i in range(90))])
  (tmp_path / 'runs.csv').write_text(headings + '\n' + '1,' * 90 + '1\n')
  line = mistake('fit', tmp_path / 'runs.csv', '--law', 'power', '--column', 'x=flop')
  assert line.endswith("runs.csv has no column 'flop'; nearest: flops (it has 91 columns)")


def test_no_table(mistake, tmp_path):
  assert 'cannot read' in mistake('fit', tmp_path / 'nowhere.csv', '--law', 'clark')
  line = mistake('fit', tmp_path, '--law', 'clark')
  assert 'is a folder without results.csv, which stmoe sweep FILE --report writes' in line


@pytest.mark.parametrize('where', ['', 'report'])
def test_the_table_of_a_sweep_needs_no_words(command, tmp_path, where):
  """A folder is its table, whose eval/loss is the loss; a column loss comes before it."""
  table = runs.draw('clark', 's_base', noise=0.0)[1]
  sweep = {'loss/ce': 2 * table['loss'], 'eval/loss': table['loss']} | table
  (tmp_path / where).mkdir(exist_ok=True)
  said = {}
  for kind, without in (('own', 'eval/loss'), ('sweep', 'loss')):
    runs.write(tmp_path / where / 'results.csv', {name: v for name, v in sweep.items() if name != without})
    code, said[kind], err = command('fit', tmp_path, '--law', 'clark', '--bootstrap', '0')
    assert code == 0, err
  assert said['own'] == said['sweep']
