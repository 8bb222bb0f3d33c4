"""Settings of the whole suite, in place before JAX is imported; subprocesses inherit them.

CPU, eight virtual devices, and compilation without LLVM's optimisations: tests compile much and
compute little, and numbers are the same up to round-off. A persistent compilation cache in `.cache/jax`
of the checkout, so that a second run compiles nothing. Marks are declared in setup.cfg; `-m slow` runs
the slow tests.
"""

import os
import pathlib
import sys

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      str(pathlib.Path(__file__).resolve().parent.parent / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

for _flag, _value in (('--xla_force_host_platform_device_count', 8), ('--xla_backend_optimization_level', 0)):
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_flag}={_value}'.strip()


@pytest.fixture(autouse=True, scope='module')
def compiled_programs_are_freed():
  """Frees the programs of a file after it: thousands of them would be more than a process can map."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
