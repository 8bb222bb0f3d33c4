"""Benchmarks of operations run on the device at hand and write tables that the loader reads."""

import importlib
import json
import pathlib

import pytest

import pallas_kernels
from pallas_kernels import benchmark

OPS = sorted(path.parent.name for path in pathlib.Path(pallas_kernels.__file__).parent.glob('*/bench.py'))
SHAPES = dict(gmm=[32, 8, 12, 4], tgmm=[32, 8, 12, 4], combine=[16, 2, 8], route=[16, 4, 2])


@pytest.mark.parametrize('op', OPS)
def test_results_are_of_the_shapes_of_models(op, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(benchmark, 'SMALL', dict(tiny=(16, 8, 12, 4, 2)))
  bench = importlib.import_module(f'pallas_kernels.{op}.bench')
  out = tmp_path / 'table.json'
  old = dict(commands=['python -m pallas_kernels.other.bench', f'python -m pallas_kernels.{op}.bench --old'],
             rows=[dict(op='other'), dict(op=op, shape=SHAPES[op], old=True)])
  out.write_text(json.dumps(old), encoding='utf-8')
  benchmark.main(f'pallas_kernels.{op}.bench', bench.cases, ['--rounds', '1', '--json', str(out)])
  table = json.loads(out.read_text(encoding='utf-8'))
  command = f'python -m pallas_kernels.{op}.bench --rounds 1 --json {out}'
  assert table['commands'] == [old['commands'][0], command]
  ours = [row for row in table['rows'] if row['op'] != 'other']
  assert len(ours) == {'gmm': 6, 'tgmm': 4}.get(op, 1) == len(table['rows']) - 1
  assert all(row['seconds'] > 0 and row['ratio'] > 0 and not row.get('old') for row in ours)
  assert len(capsys.readouterr().out.splitlines()) == len(ours)


def test_results_of_other_shapes_stay_with_their_command(monkeypatch, tmp_path):
  from pallas_kernels.combine import bench
  monkeypatch.setattr(benchmark, 'SMALL', dict(tiny=(16, 8, 12, 4, 2), other=(8, 8, 12, 4, 2)))
  out = tmp_path / 'table.json'
  for name in ('tiny', 'other', 'other'):
    benchmark.main('pallas_kernels.combine.bench', bench.cases,
                   ['--rounds', '1', '--models', name, '--json', str(out)])
  table = json.loads(out.read_text(encoding='utf-8'))
  assert [row['shape'] for row in table['rows']] == [[16, 2, 8], [8, 2, 8]]
  assert [command.split()[6] for command in table['commands']] == ['tiny', 'other']


def test_tiles_that_compute_something_else_are_left_out():
  from pallas_kernels import vmem
  right, wrong = vmem.Tiles(16, 128, 128), vmem.Tiles(32, 128, 128)
  double = lambda x: 2 * x
  case = benchmark.Case((4,), 4, lambda: (benchmark.normal(0, 4),), benchmark.jitted('floor', double), [
      benchmark.jitted('double', double, right), benchmark.jitted('double', lambda x: 3 * x, wrong),
      benchmark.jitted('fails', lambda x: x @ x @ x, wrong), benchmark.jitted('double', double, right),
      benchmark.jitted('nan', lambda x: x * float('nan'), wrong)])
  notes = []
  rows = list(benchmark.measure([case], 1, notes.append))
  assert [row['op'] for row in rows] == ['double', 'double'] and len(notes) == 3
  assert 'not that of the first tiles' in notes[0] and notes[2].startswith('nan')
  assert notes[1].startswith('fails (4,) (32, 128, 128): left out')


def test_rows_of_experts_differ_and_none_is_lost():
  sizes = benchmark.sizes(512, 8, 2)
  assert int(sizes.sum()) == 1024 and int(sizes.max()) > int(sizes.min())
