"""What a machine without a network must be given: what it lacks, whole, and not too much."""

import zipfile

import pytest

from stmoe import errors
from stmoe.bench.device import carry


@pytest.fixture
def index(monkeypatch):
  """A package index of three packages; pip is not asked."""
  needs = {'one': ['two>=1', "three; extra == 'more'", "four; python_version < '3'", 'jax>=0.10'],
           'two': ['Three[more]'], 'three': ["one; extra == 'more'"]}

  def wheel(want, folder, python, machine):
    if want.name.lower() not in needs:
      raise errors.UserError(f'{want.name}: no wheel')
    folder.mkdir(exist_ok=True)
    path = folder / f'{want.name.lower()}-1.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
      lines = ''.join(f'Requires-Dist: {need}\n' for need in needs[want.name.lower()])
      archive.writestr('x-1.0.dist-info/METADATA', f'Name: x\nVersion: 1.0\n{lines}\ntext')
    return path
  monkeypatch.setattr(carry, 'wheel', wheel)


def test_fetched_is_what_is_missing_with_its_needs(index, tmp_path, capsys):
  have = carry.listed('Package    Version\n---------- -------\njax        0.9.0\nNumPy      2.0\n')
  found = carry.fetch(['one', 'numpy', 'jax>=0.8'], have, tmp_path / 'wheels', '3.12', 'x86_64')
  assert {path.name.partition('-')[0] for path in found} == {'one', 'two', 'three'}
  assert capsys.readouterr().out == 'note: jax>=0.10 is wanted, and that machine has 0.9.0\n'
  with pytest.raises(errors.UserError, match='five: no wheel'):
    carry.fetch(['five'], have, tmp_path / 'wheels', '3.12', 'x86_64')


def test_too_much_is_an_error_and_lists_of_both_kinds_are_read(tmp_path, capsys):
  wheel = tmp_path / 'one-1.0-py3-none-any.whl'
  wheel.write_bytes(bytes(carry.MIB))
  files = {tmp_path / 'a.py': carry.MIB, wheel: carry.MIB}           # the wheel counts once
  assert carry.report([wheel], files, 2.0) == 0
  with pytest.raises(errors.UserError, match='2.0 MiB are over 1.5'):
    carry.report([wheel], files, 1.5)
  assert carry.listed('jax==0.11.2\nrouge_score\n') == {'jax': '0.11.2', 'rouge-score': ''}


def test_the_core_is_needed():
  assert {'jax>=0.10.2', 'ml-collections>=1.1.0', 'pytest'} <= set(carry.needed())
