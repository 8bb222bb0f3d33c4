"""Every notebook runs from top to bottom in its small setting; its pair holds the same cells and figures."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import site
import subprocess
import sys

import pytest

import stmoe
from tests import xla

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.py'))


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
  environment = os.environ | dict(STMOE_SMOKE='1', XLA_FLAGS=xla.flags(devices=1))   # as on a laptop
  done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, timeout=300,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  drawn = sorted((tmp_path / 'figures').iterdir())               # cells are comments: no Jupyter is needed
  assert drawn and all(file.read_bytes().startswith(b'\x89PNG') for file in drawn)
  assert [line for line in done.stdout.splitlines() if line == f'figures/{path.stem}_1.png']


def first_cell(path):
  """The source of the first code cell of a notebook."""
  return next(source for kind, source in cells(path.read_text(encoding='utf-8')) if kind == 'code')


def test_notebooks_begin_alike_and_name_the_project_as_its_metadata_does():
  [begin] = {first_cell(path) for path in NOTEBOOKS}
  named = re.search("REPOSITORY = '(.*)' ", begin)[1], re.search("TAG = '(.*)'", begin)[1]
  cited = re.search("^repository-code: *[\"']?([^\"'\n]+)", (ROOT / 'CITATION.cff').read_text(), re.M)
  assert named == (cited[1] if cited else '', f'v{stmoe.__version__}')
  page = (ROOT / 'notebooks' / 'README.md').read_text(encoding='utf-8')
  where = named[0].replace('https://github.com', 'https://colab.research.google.com/github')
  badges = [f'{where}/blob/{named[1]}/notebooks/{path.stem}.ipynb' for path in NOTEBOOKS]
  assert not cited or all(badge in page for badge in badges), 'there is an address, and there are no badges'


def started(monkeypatch, folder, repository='', there=()):
  """The commands of a first cell that is run in `folder`, where of all modules `there` are installed."""
  commands = []
  monkeypatch.chdir(folder)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name in there or None)
  monkeypatch.setattr(subprocess, 'run', lambda words, check: commands.append(list(map(str, words))))
  monkeypatch.setattr(site, 'main', lambda: None)
  exec(first_cell(NOTEBOOKS[0]).replace("REPOSITORY = ''", f'REPOSITORY = {repository!r}'), {})
  return commands


def test_a_notebook_installs_the_checkout_it_lies_in(monkeypatch):
  [install] = started(monkeypatch, ROOT / 'notebooks')
  assert install[1:] == ['-m', 'pip', 'install', '-q', '-e', str(ROOT)]


def test_a_notebook_renews_the_plugin_of_an_accelerator_with_jax(monkeypatch):
  [install] = started(monkeypatch, ROOT / 'notebooks', there=['jax_cuda12_plugin'])
  assert install[-2:] == [str(ROOT), 'jax[cuda12]']


def test_a_notebook_elsewhere_clones_the_project_or_asks_where_it_is(monkeypatch, tmp_path):
  clone, install = started(monkeypatch, tmp_path, 'https://example.org/stmoe')
  assert clone[:2] == ['git', 'clone'] and clone[-2] == 'https://example.org/stmoe'
  assert install[-1] == clone[-1] == str(tmp_path / f'stmoe-v{stmoe.__version__}')
  with pytest.raises(RuntimeError, match='give REPOSITORY the address'):
    started(monkeypatch, tmp_path)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_needs_no_file_of_the_checkout(path):
  """An installed wheel has none: what is named beside the package is asked for before it is read."""
  code = '\n'.join(source for kind, source in cells(path.read_text(encoding='utf-8')) if kind == 'code')
  for name in re.findall(r'^(\w+) = .*stmoe\.__file__', code, re.M):
    assert f'if not {name}.is_dir():' in code


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_its_words_and_ends_with_questions(path):
  text = '\n'.join(source for kind, source in cells(path.read_text(encoding='utf-8')) if kind == 'markdown')
  assert '](../docs/concepts.md)' in text and '## Questions to try\n' in text


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
