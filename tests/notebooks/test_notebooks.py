"""Every notebook runs from top to bottom in its small setting; its pair holds the same cells and figures."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import xla

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.py'))

# Cells are comments to Python, and figures go to `shown`: tests need no Jupyter.
RUN = """
import runpy, sys
from stmoe.analysis import canvas
shown = []
canvas.show = lambda figure: shown.append(canvas.encode(figure, 'png'))
runpy.run_path(sys.argv[1])
assert shown and all(data.startswith(b'\\x89PNG') for data in shown), 'no figure'
print(len(shown), 'figures')
"""


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
  environment = os.environ | dict(STMOE_SMOKE='1', XLA_FLAGS=xla.flags(devices=1))   # as on a laptop
  done = subprocess.run([sys.executable, '-c', RUN, str(path)], cwd=tmp_path, env=environment, timeout=300,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].endswith('figures')


def cells(text):
  """Returns [(kind, source)] of the cells of a percent-format file."""
  found = []
  for part in text.split('\n# %%')[1:]:
    head, _, body = part.partition('\n')
    lines = body.strip('\n').split('\n')
    if head.strip() == '[markdown]':
      found.append(('markdown', '\n'.join(line[2:] for line in lines)))
    else:
      found.append(('code', '\n'.join(lines)))
  return found


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_the_pair_holds_the_same_cells_with_their_output(path):
  text = path.read_text(encoding='utf-8')
  assert text.startswith('# ---\n# jupyter:') and 'formats: ipynb,py:percent' in text
  pair = json.loads(path.with_suffix('.ipynb').read_text(encoding='utf-8'))
  assert [(cell['cell_type'], ''.join(cell['source'])) for cell in pair['cells']] == cells(text)
  outputs = [out for cell in pair['cells'] for out in cell.get('outputs', ())]
  assert all(cell['execution_count'] for cell in pair['cells'] if cell['cell_type'] == 'code')
  assert any('image/png' in out.get('data', {}) for out in outputs)
  assert not [out for out in outputs if out['output_type'] == 'error' or out.get('name') == 'stderr']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin(path):
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 10, f'{node.name} has over ten lines: it belongs in the library'
    assert not isinstance(node, ast.ClassDef)
