"""What SECURITY.md says of the code: nothing read from a file runs, names in a configuration are modules."""

import ast
import pathlib

import pytest

import stmoe
from stmoe import errors
from stmoe import lookup

SOURCE = pathlib.Path(stmoe.__file__).parent
CODE = {'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve', 'yaml'}    # may run what they read


def trees():
  for path in sorted(SOURCE.rglob('*.py')):
    yield str(path.relative_to(SOURCE)), ast.parse(path.read_text(encoding='utf-8'))


def test_nothing_that_is_read_runs():
  for name, tree in trees():
    for node in ast.walk(tree):
      found = {alias.name.split('.')[0] for alias in node.names} if isinstance(node, ast.Import) else set()
      if isinstance(node, ast.ImportFrom) and node.module:
        found = {node.module.split('.')[0]}
      assert not found & CODE, name
      if isinstance(node, ast.Call):
        called = getattr(node.func, 'id', None)
        assert called not in ('eval', 'exec', 'compile'), f'{name}:{node.lineno}'
        assert not any(k.arg in ('allow_pickle', 'shell') and getattr(k.value, 'value', True) is not False
                       for k in node.keywords), f'{name}:{node.lineno}'


def test_submitit_whose_jobs_are_pickles_is_used_by_sweeps_alone():
  found = {name for name, tree in trees() for node in ast.walk(tree)
           if 'submitit' in str(getattr(node, 'module', '')) or isinstance(node, ast.Import)
           and any(alias.name.startswith('submitit') for alias in node.names)}
  assert found == {'sweep/launchers/slurm.py', 'sweep/work.py'}


@pytest.mark.parametrize('name', ['os', 'os.path', '../cli/main', '..cli.main', '__init__', '', 'stmoe.cli'])
def test_names_of_a_configuration_are_modules_of_their_package(name):
  for kind in lookup.PACKAGES:
    with pytest.raises(errors.UserError):
      lookup.module(kind, name)
