"""The decoding benchmark: its rows, on a model small enough for a test; its mistakes."""

import json

import pytest

from stmoe.bench import decoding as bench
from stmoe.cli import main


@pytest.mark.slow
def test_rows(monkeypatch):
  monkeypatch.setattr(bench, 'MODEL', dict(bench.MODEL, d_model=16, num_heads=2, head_dim=8))
  rows = list(bench.measure([4, 2], [2], 3, 1, note=lambda text: None))
  assert [(row['num_experts'], row['rows'], row['d_ff']) for row in rows] == [(4, 2, 64), (2, 2, 64)]
  assert rows[1]['over_fewest'] == 1.0 and json.loads(json.dumps(rows)) == rows
  assert {'step_ms', 'tokens_per_s', 'recompute_tokens_per_s', 'speedup'} <= set(rows[0])
  assert len(bench.line(rows[0])) == len(bench.HEADING)


@pytest.mark.parametrize('words', [('--batch-sizes', '1,x'), ('--experts', '0'), ('--prompt', '0'),
                                   ('--rounds', '0')])
def test_mistakes(words, capsys):
  assert main.main(['bench', '--decode', *words]) == 2
  assert capsys.readouterr().err.splitlines()[-1].startswith(f'stmoe: {words[0]}')
