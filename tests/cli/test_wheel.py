"""A wheel built from the tree, installed elsewhere, is the whole program: it finds its experiments."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from tests.docs import pages

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FILES = ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE')
PAGES = 'docs/concepts.md',              # which `stmoe show WORD` reads
TREES = ('stmoe', 'configs', 'experiments', 'pallas_kernels')

pytestmark = pytest.mark.slow


def _run(*words, cwd):
  outside = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  done = subprocess.run([str(word) for word in words], cwd=cwd, env=outside, capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel, built from a copy so that nothing is left in the checkout."""
  source = tmp_path_factory.mktemp('source')
  (source / 'docs').mkdir()
  for name in (*FILES, *PAGES):
    shutil.copy(ROOT / name, source / name)
  for name in TREES:
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  _run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '-w', source / 'dist', source, cwd=source)
  return next((source / 'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """bin/ of an environment with the wheel, and this environment's libraries but not its stmoe."""
  folder = tmp_path_factory.mktemp('elsewhere')
  _run(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv', cwd=folder)
  python = folder / 'venv' / 'bin' / 'python'
  site = _run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder).strip()
  # As a bare path: the .pth files of that folder, one of which may point to the checkout, are not read.
  (pathlib.Path(site) / 'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n')
  _run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index',
       '--ignore-installed', wheel, cwd=folder)
  return python.parent


def test_wheel_holds_every_module_and_nothing_else(wheel):
  names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
  source = wheel.parent.parent
  placed = {'configs': 'stmoe/configs', 'experiments': 'stmoe/experiments'}
  expected = {f'{placed.get(tree, tree)}/{path.relative_to(source / tree).as_posix()}'
              for tree in TREES for path in (source / tree).rglob('*.py')}
  assert {name for name in names if name.endswith('.py')} == expected
  tuned = {name for name in names if pathlib.PurePath(name).match('pallas_kernels/tuning/*.json')}
  results = {name for name in names - tuned if name.endswith(('.json', '.csv'))}   # which `claims` reads
  assert results and all(pathlib.PurePath(name).match('stmoe/experiments/*/results/*') for name in results)
  typed = {'stmoe/py.typed', 'pallas_kernels/py.typed'}                # believed by type checkers
  others = names - results - tuned - typed
  assert typed <= names and all(name.endswith(('.py', '.md', '.css', '.js')) for name in others)


def test_the_source_archive_makes_the_same_wheel_and_both_may_be_uploaded(wheel, tmp_path):
  pytest.importorskip('twine')
  build = 'from setuptools import build_meta; print(build_meta.build_{}("{}"))'
  code = build.format('sdist', wheel.parent)
  archive = wheel.parent / _run(sys.executable, '-c', code, cwd=wheel.parent.parent).split()[-1]
  with tarfile.open(archive) as files:
    files.extractall(tmp_path, filter='data')
  [unpacked] = tmp_path.iterdir()
  _run(sys.executable, '-c', build.format('wheel', tmp_path), cwd=unpacked)
  [again] = tmp_path.glob('*.whl')
  listed = lambda path: sorted((entry.filename, entry.CRC) for entry in zipfile.ZipFile(path).infolist()
                               if not entry.filename.endswith('/RECORD'))
  assert listed(again) == listed(wheel)
  _run(sys.executable, '-m', 'twine', 'check', '--strict', wheel, archive, cwd=tmp_path)


def test_installed_program_is_not_the_checkout(installed, tmp_path):
  modules = 'stmoe', 'stmoe.configs', 'pallas_kernels'
  code = f'import {", ".join(modules)}; print({", ".join(f"{name}.__file__" for name in modules)})'
  found = _run(installed / 'python', '-c', code, cwd=tmp_path).split()
  assert len(found) == 3 and all(file.startswith(str(installed.parent)) for file in found)


def test_installed_program_trains_its_experiment(installed, tmp_path):
  stmoe = installed / 'stmoe'
  assert 'lm/stdlib' in _run(stmoe, 'list', cwd=tmp_path)
  assert 'steps' in _run(stmoe, 'show', 'lm/stdlib:smoke', cwd=tmp_path)
  _run(stmoe, 'train', 'lm/stdlib:smoke', '--workdir', 'run', '--config.train.steps=2',
       '--config.eval.batches=1', cwd=tmp_path)
  assert (tmp_path / 'run' / 'DONE').is_file()


MINE = '''"""The router of a file of one's own, in the quickstart's model."""

from stmoe.configs.lm import quickstart


def get_config(arg=''):
  """Returns the Switch model with another router."""
  c = quickstart.get_config('method=switch,smoke').unlock()
  c.blocks.m.router = dict(name='my_router', num_experts=8)
  c.train.steps = 4
  return c.lock()
'''


def test_a_router_outside_of_the_package_is_checked_trained_and_compared(installed, tmp_path):
  stmoe = installed / 'stmoe'
  router = pages.titled('docs/router.md', 'stmoe/routers/sigmoid.py')
  (tmp_path / 'my_router.py').write_text(router.replace('class Sigmoid', 'class MyRouter'))
  (tmp_path / 'mine.py').write_text(MINE)
  assert re.search(r'\b(\d+) of \1 passed$', _run(stmoe, 'check', 'my_router.py', cwd=tmp_path).strip())
  plugin = ('--plugin', 'my_router.py')
  _run(stmoe, 'train', 'mine.py', *plugin, '--config.eval.batches=1', cwd=tmp_path)
  assert (tmp_path / 'runs' / 'mine' / 'DONE').is_file()
  table = _run(stmoe, 'compare', 'mine.py', 'lm/quickstart:method=switch,smoke', *plugin, '--workdir', 'both',
               '--config.eval.batches=1', '--config.train.steps=4', cwd=tmp_path)
  assert 'mine' in table and 'switch' in table and (tmp_path / 'both' / 'report.html').is_file()
