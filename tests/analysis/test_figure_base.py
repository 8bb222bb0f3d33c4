"""The figure of the assignment gap: there for BASE layers, absent for others."""

import json

from stmoe.analysis.figures import base
from stmoe.runs import read as runs
from tests.analysis import synthetic


def test_lines_of_every_layer(tmp_path):
  folder = synthetic.write_run(tmp_path / 'run', 'base')
  assert base.draw(runs.read(folder)) == {}
  lines = [json.loads(text) for text in (folder / 'metrics.jsonl').read_text().splitlines()]
  for line in lines:
    line |= {'moe/decoder_01/assignment_gap': 0.25, 'moe/decoder_01/displaced_frac': 0.5,
             'moe/decoder_03/assignment_gap': 0.125, 'moe/decoder_03/displaced_frac': 0.25}
  (folder / 'metrics.jsonl').write_text('\n'.join(json.dumps(line) for line in lines))
  figures = base.draw(runs.read(folder))
  assert set(figures) == set(base.CAPTIONS)
  gap, displaced = figures[base.STEM].axes
  assert [set(line.get_ydata()) for line in gap.lines] == [{0.25}, {0.125}]
  assert [set(line.get_ydata()) for line in displaced.lines] == [{50.0}, {25.0}]     # in per cent
