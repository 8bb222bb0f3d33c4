"""Settings of the whole suite, in place before JAX is imported; subprocesses inherit them.

CPU, eight virtual devices, and fast compilation (tests/xla.py). A persistent compilation cache in
`.cache/jax` of the checkout, so that a second run compiles nothing. Marks are declared in setup.cfg;
`-m slow` runs the slow tests.
"""

import functools
import gc
import os
import pathlib
import sys

import pytest

from tests import xla

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      str(pathlib.Path(__file__).resolve().parent.parent / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

# No places in our files beside each operation of a program: gathering them takes a tenth of the tracing.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

os.environ['XLA_FLAGS'] = xla.flags(devices=8)

# A command that a test starts need not compile the modules that another one has compiled.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)

# Tracing makes many objects that live as long as their program: garbage is looked for after each file only.
gc.disable()


def pytest_collection_finish():
  """What is there before the first test stays: modules and thousands of pytest's items."""
  look_for_garbage()


def look_for_garbage():
  """Frees what nobody can reach, and looks at what is left no more: it has come to stay."""
  gc.collect()
  gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def two_sizes_of_blocks():
  """The executor `blocks` cuts rows into two sizes, one block a turn: a model compiles its experts for each.

  What is shipped, some sixteen sizes, runs in tests/core/test_conformance.py and in every subprocess.
  """
  from pallas_kernels import walk                                    # JAX reads the settings above
  shipped = dict(sizes=walk.sizes, TOGETHER=walk.TOGETHER)
  with pytest.MonkeyPatch.context() as patch:
    few = lambda rows, experts: shipped['sizes'](rows, experts)[3::12] or (1,)       # (1,): few rows
    patch.setattr(walk, 'sizes', few)
    patch.setattr(walk, 'TOGETHER', 1)
    yield shipped


@pytest.fixture(autouse=True, scope='module')
def one_context_for_all_programs():
  """The programs of a file share one MLIR context; JAX makes one for each, a quarter of a small one's cost.

  What is lowered while another program is being lowered has its own: it would become a part of the other.
  """
  from jax._src.interpreters import mlir                              # JAX has no public name for it
  make, shared = mlir.make_ir_context, functools.cache(mlir.make_ir_context)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mlir, 'make_ir_context', lambda: make() if mlir.ir.Context.current else shared())
    yield


@pytest.fixture(scope='module')
def one_size_of_blocks():
  """From here to the end of the file blocks have two rows: a model compiles its experts once."""
  from pallas_kernels import walk
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(walk, 'sizes', lambda rows, experts: (2,))
    yield


@pytest.fixture(scope='module')
def one_device():
  """From here to the end of the file meshes have one device: programs for eight compile far longer."""
  import jax
  from stmoe.train import state as states
  make = states.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(states, 'make_mesh', lambda sizes, devices=None: make(sizes, jax.devices()[:1]))
    yield


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """The folder with the texts of tests/train/tiny_run.py, a file's own: caches are written beside them."""
  from tests.train import tiny_run
  return tiny_run.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture
def shipped_sizes(two_sizes_of_blocks, monkeypatch):
  """Blocks of all the sizes that users have, and as many of them a turn."""
  from pallas_kernels import walk
  for name, value in two_sizes_of_blocks.items():
    monkeypatch.setattr(walk, name, value)


@pytest.fixture(autouse=True, scope='module')
def compiled_programs_are_freed():
  """Frees the programs of a file after it: thousands of them would be more than a process can map."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
  look_for_garbage()
