"""The benchmark: its rows, what they count, and its mistakes."""

import json

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import walk
from stmoe import lookup
from stmoe.aot import hlo
from stmoe.aot import products
from stmoe.bench import by_product
from stmoe.bench import layers as bench
from stmoe.bench import shapes
from stmoe.cli import main


@pytest.fixture
def tiny(monkeypatch):
  made = lambda name, **fields: shapes.Shape(name, 64, 16, 64, 4, 2, **fields)
  monkeypatch.setattr(shapes, 'SHAPES', dict(C1=made('C1', gated=False, dtype='float32'),
                                             S1=made('S1', gated=True, dtype='bfloat16')))
  monkeypatch.setattr(bench, 'PROBE', dict(float32=64))
  monkeypatch.setattr(walk, 'sizes', lambda *_: (32,))


@pytest.mark.slow
def test_rows_and_json(tiny, tmp_path, capsys):
  out = tmp_path / 'rows.json'
  argv = ['--shapes', 'C1', '--executors', 'gather,blocks', '--routing', 'skewed', '--rounds', '2',
          '--json', str(out), '--plot', str(out.with_suffix('.png'))]
  assert main.main(['bench', *argv]) == 0
  rows = json.loads(out.read_text())['rows']
  assert [(r['routing'], r['executor'], r['capacity_factor']) for r in rows] == [
      ('skewed', 'gather', 1.25), ('skewed', 'blocks', 1.25), ('skewed', 'blocks', None)]
  drops = {r['capacity_factor']: r['drop_rate'] for r in rows}
  assert drops[None] == 0
  # Half of the 64 tokens choose experts 0 and 1, the others add 16 each: twice 48 choices for 40 slots.
  assert drops[1.25] == pytest.approx(16 / 128)
  for row in rows:
    assert row['forward']['ratio'] > 0 and row['train']['ms'] > 0
  gather = rows[0]
  assert 1.25 <= gather['forward']['hlo_flops_over_active'] < 1.6    # padding and router
  assert [row['train']['hlo_flops_over_active'] for row in rows[1:]] == [None, None]    # loops of the data
  assert sum(line.startswith('C1') for line in capsys.readouterr().out.splitlines()) == 3


def test_products_are_known_of_loops_of_fixed_length_alone():
  w = jnp.ones((8, 8))
  def counted(f, *inputs):
    return products.known(hlo.parse(jax.jit(f).lower(w, *inputs).compile().as_text()))
  product = lambda x: jnp.tanh(x @ w)
  assert counted(lambda x: jax.lax.fori_loop(0, 7, lambda i, x: product(x), x)) == 7 * 2 * 8 ** 3
  n, flag = jnp.int32(3), jnp.bool_(True)
  assert counted(lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: product(x), x), n) is None
  assert counted(lambda x, flag: jax.lax.cond(flag, product, lambda x: x, x), flag) is None


@pytest.mark.slow
def test_gated_experts_in_bfloat16_and_a_peer(tiny, tmp_path, monkeypatch):
  out = tmp_path / 'rows.json'
  monkeypatch.setattr(bench, 'missing', lambda peer: '')
  monkeypatch.setattr(lookup.module('peer', 'megablox'), 'variant', lambda problem, floor: by_product.variant(
      problem, floor, jax.lax.ragged_dot))
  argv = ['--shapes', 'S1', '--executors', 'pallas', '--peers', 'megablox', '--rounds', '1',
          '--json', str(out)]
  assert main.main(['bench', *argv]) == 0
  rows = json.loads(out.read_text())['rows']
  assert [(r['executor'], r['capacity_factor']) for r in rows] == [('pallas', 1.25), ('pallas', None),
                                                                  ('megablox', None)]
  assert all(row['gated'] and row['dtype'] == 'bfloat16' for row in rows)


@pytest.mark.parametrize('bound', ['split', 'batched'])
def test_bounds_have_the_flops_of_the_floor(bound, tiny, tmp_path):
  out = tmp_path / 'rows.json'
  argv = ['--shapes', 'C1', '--executors', 'gather', '--peers', bound, '--rounds', '1', '--json', str(out)]
  assert main.main(['bench', *argv]) == 0
  row = json.loads(out.read_text())['rows'][-1]
  assert row['executor'] == bound and row['drop_rate'] == 0
  for what in ('forward', 'train'):
    assert 1 <= row[what]['hlo_flops_over_active'] < 1.1             # and sums over choices


def test_a_peer_that_cannot_run_is_named(tiny, capsys):
  argv = ['--shapes', 'C1', '--executors', 'gather', '--peers', 'megablox', '--rounds', '1']
  assert main.main(['bench', *argv]) == 0
  assert 'not timed: megablox: megablox runs on tpu, this is cpu' in capsys.readouterr().out


@pytest.mark.slow
def test_uniform_routing_drops_nothing(tiny, tmp_path):
  out = tmp_path / 'rows.json'
  argv = ['--shapes', 'C1', '--executors', 'gather,blocks', '--routing', 'uniform', '--rounds', '1',
          '--json', str(out)]
  assert main.main(['bench', *argv]) == 0
  assert [row['drop_rate'] for row in json.loads(out.read_text())['rows']] == [0, 0, 0]


@pytest.mark.parametrize('argv, message', [
    (['--shapes', 'C5'], "shapes: no 'C5'"), (['--executors', 'block'], 'nearest: blocks'),
    (['--routing', 'reel'], 'nearest: real'),
    (['--rounds', '0'], '--rounds 0: expected a whole number of at least 1'),
    (['--peers', 'tokamx'], 'nearest: tokamax'), (['--plot', 'rows.pdf'], 'nearest: rows.png'),
    (['--json', 'nowhere/rows.json'], 'no directory nowhere'), (['--json', 'tests'], '--json tests is a dir'),
    (['--step', 'lm/stdlib:smoke', '--json', 'nowhere/rows.json'], 'no directory nowhere'),
    (['--step', 'lm/stdlib:smoke', '--start', '--rounds', '3'], '--rounds is of executors (no flag), --step'),
    (['--data', '--config.seed=1'], '--feed, --compile; timed is --data'),
    (['--decode', '--data'], '--data and --decode: one of them is timed at a time'),
    (['--feed'], '--feed: of which step? nearest: --step lm/stdlib_small --feed')])
def test_mistakes_are_one_line(argv, message, capsys):
  assert main.main(['bench', *argv]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
