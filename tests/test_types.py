"""A type checker finds nothing, with the settings of setup.cfg, and sees what is wrong."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = ['--config-file', str(ROOT / 'setup.cfg'), '--cache-dir', str(ROOT / '.cache' / 'mypy')]
HEADER = '''from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import contract
from stmoe.core.execute import einsum
from stmoe.experts import mlp
from stmoe.layers import moe
from stmoe.routers import switch

'''
# Code in which `a` is an Assigned and `count` a Count -> what is found in it, or None.
PROBES = {
    'count + 1': None,
    'len(count)': 'arg-type',            # to the checker a range is the type of its values
    'contract.offered(a)': 'call-arg',
    'a.nothing': 'union-attr',
    'a.slot': 'union-attr',              # mixtures have no slots
    "moe.num_groups(1, 2, '3')": 'arg-type',
    'b: contract.Router = switch.Switch(8, num_experts=count, rngs=None)': None,
    "b: contract.Router = switch.Switch(8, num_experts='2', rngs=None)": 'arg-type',
    'b: contract.Router = mlp.Mlp(8, num_experts=2, d_ff=8, rngs=None)': 'assignment',
    'b: contract.Bank = mlp.Mlp(8, num_experts=2, d_ff=8, rngs=None)': None,
    'b: contract.SubLayer = moe.Moe(8, router=None, experts=None, rngs=None)': None,
    'b: contract.SubLayer = attention.Attention(8, num_heads=2, head_dim=4, rngs=None)': None,
    'b: contract.Executor = einsum.execute': None,
}


def checked(*files):
  """(what mypy says, what it says on stderr, exit code): in a process whose objects go with it."""
  done = subprocess.run([sys.executable, '-m', 'mypy', *SETTINGS, *map(str, files)], cwd=ROOT,
                        capture_output=True, text=True, check=False)
  return done.stdout, done.stderr, done.returncode


def test_types_fit():
  found, trouble, code = checked()
  assert code == 0, found + trouble


def test_ranges_and_protocols_are_types(tmp_path):
  probe = tmp_path / 'probe.py'
  probe.write_text(HEADER + ''.join(f'def f{n}(a: contract.Assigned, count: ranges.Count): {code}\n'
                                    for n, code in enumerate(PROBES)), encoding='utf-8')
  found, trouble, _ = checked(probe)
  first = HEADER.count('\n') + 1
  for line, (code, expected) in enumerate(PROBES.items(), first):
    said = [text for text in found.splitlines() if f'probe.py:{line}: error:' in text]
    assert {text.rpartition('[')[2] for text in said} == ({f'{expected}]'} if expected else set()), (
        code, found, trouble)
