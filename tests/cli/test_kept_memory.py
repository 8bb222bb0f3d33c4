"""A command that trains keeps the memory of a step for the next one."""

import os
import subprocess
import sys

import pytest

from stmoe.cli import main

# Prints the fewest fresh pages that a run of a program with a quarter of a GiB of temporaries touches, of the
# last six. The C library may place a large array anew in one run or another.
FAULTS = '''
import resource
import jax
import jax.numpy as jnp
x = jnp.ones(2**25)
f = jax.jit(lambda x: jnp.cumsum(x)[::-1] @ jnp.sin(x)).lower(x).compile()
assert f.memory_analysis().temp_size_in_bytes > 2**28
fresh = lambda: f(x).block_until_ready() and resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults = [fresh() for _ in range(8)]
print(min(b - a for a, b in zip(faults[1:], faults[2:])))
'''
COMMAND = f'''
import sys
from stmoe.cli import main
main._run = lambda argv: exec({FAULTS!r}, {{}})
sys.argv = ['stmoe', 'train']
main.main()
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='settings of the C library of Linux')
def test_a_step_touches_no_fresh_memory(tmp_path):
  script = tmp_path / 'command.py'
  script.write_text(COMMAND)
  faults = {}
  for kept, more in ((True, {}), (False, dict(GLIBC_TUNABLES=''))):
    environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    done = subprocess.run([sys.executable, script], env=environment | dict(XLA_FLAGS='') | more, check=True,
                          stdout=subprocess.PIPE, text=True)
    faults[kept] = int(done.stdout)
  assert faults[False] > 100                                         # all of them fresh, small or large
  assert faults[True] < 64, main.KEPT
