"""Benchmarks of operations run on the device at hand and write tables that the loader reads."""

import importlib
import json

import pytest

from pallas_kernels import benchmark

OPS = ('gmm', 'tgmm', 'combine', 'route')


@pytest.mark.parametrize('op', OPS)
def test_results_are_of_the_shapes_of_models(op, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(benchmark, 'SMALL', dict(tiny=(16, 8, 12, 4, 2)))
  bench = importlib.import_module(f'pallas_kernels.{op}.bench')
  out = tmp_path / 'table.json'
  old = dict(commands=['python -m pallas_kernels.other.bench', f'python -m pallas_kernels.{op}.bench --old'],
             rows=[dict(op='other'), dict(op=op, old=True)])
  out.write_text(json.dumps(old), encoding='utf-8')
  benchmark.main(f'pallas_kernels.{op}.bench', bench.cases, ['--rounds', '1', '--json', str(out)])
  table = json.loads(out.read_text(encoding='utf-8'))
  command = f'python -m pallas_kernels.{op}.bench --rounds 1 --json {out}'
  assert table['commands'] == [old['commands'][0], command]
  ours = [row for row in table['rows'] if row['op'] != 'other']
  assert len(ours) == {'gmm': 6, 'tgmm': 4}.get(op, 1) == len(table['rows']) - 1
  assert all(row['seconds'] > 0 and row['ratio'] > 0 and not row.get('old') for row in ours)
  assert len(capsys.readouterr().out.splitlines()) == len(ours)


def test_rows_of_experts_differ_and_none_is_lost():
  sizes = benchmark.sizes(512, 8, 2)
  assert int(sizes.sum()) == 1024 and int(sizes.max()) > int(sizes.min())
