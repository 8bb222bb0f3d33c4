"""Every notebook runs from top to bottom in its small setting, without network, and shows figures."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.py'))

# Cells are comments to Python. What a notebook shows goes to `shown`: tests need no IPython.
RUN = """
import runpy, sys, types
shown = []
display = types.SimpleNamespace(display=shown.append, Image=lambda data: data)
sys.modules['IPython'] = types.SimpleNamespace(display=display, version_info=(9, 0))
runpy.run_path(sys.argv[1])
assert shown and all(data.startswith(b'\\x89PNG') for data in shown), 'no figure'
print(len(shown), 'figures')
"""


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
  environment = os.environ | dict(STMOE_SMOKE='1')
  done = subprocess.run([sys.executable, '-c', RUN, str(path)], cwd=tmp_path, env=environment, timeout=300,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].endswith('figures')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_a_pair_of_jupytext(path):
  text = path.read_text(encoding='utf-8')
  assert text.startswith('# ---\n# jupyter:') and 'formats: ipynb,py:percent' in text and '\n# %%' in text
