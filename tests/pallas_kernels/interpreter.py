"""Mosaic GPU's kernels interpreted on CPUs: how, and what JAX before 0.11 needs for it.

The interpreter runs every warpgroup as a thread, with the waits of the barriers, and fails where a barrier
completes unseen. What the copy engine reads beyond an array is NaN here (zeros on a GPU). The interpreter of
JAX 0.10 multiplies no transposed references and knows no layouts of registers; `ready` adds both. Where one
thread fails the others may wait forever, so a test is ended after MOST seconds.
"""

import faulthandler
import threading

import jax
import pytest

PROGRAMS = 3                            # of a kernel: each computes several tiles
MOST = 300


@pytest.fixture
def ready():
  """Yields the interpreter's parameters."""
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
  from jax._src.pallas.mosaic_gpu.interpret import params
  with pytest.MonkeyPatch.context() as patch:
    if jax.__version_info__ < (0, 11):
      _without_layouts()
      _with_transposes(gpu_callbacks, patch)
    faulthandler.dump_traceback_later(MOST, exit=True)
    yield params.InterpretGPUParams(out_of_bounds_reads='uninitialized')
    faulthandler.cancel_dump_traceback_later()


def _without_layouts():
  from jax._src.pallas.mosaic_gpu import core
  from jax.interpreters import mlir
  mlir.register_lowering(core.layout_cast_p, lambda ctx, x, **_: [x], platform='cpu')


def _with_transposes(gpu_callbacks, patch):
  """Lets `wgmma` read buffers whose last transform is a transpose."""
  wgmma, memory, this = gpu_callbacks.wgmma, gpu_callbacks._get_shared_memory, threading.local()

  def with_transposes(*, a_transforms, b_transforms, **rest):
    this.turned = {}
    kept = {name: [t for t in transforms if not hasattr(t, 'permutation')]
            for name, transforms in (('a', a_transforms), ('b', b_transforms))}
    for name, transforms in (('a', a_transforms), ('b', b_transforms)):
      key = gpu_callbacks.HostAllocationKey.from_array(rest[f'{name}_allocation_key_as_array'])
      this.turned[key] = len(kept[name]) < len(transforms)
    try:
      return wgmma(a_transforms=kept['a'], b_transforms=kept['b'], **rest)
    finally:
      del this.turned

  class Memory:
    def __init__(self, memory):
      self.memory = memory

    def __getattr__(self, name):
      return getattr(self.memory, name)

    def get_buffer_content(self, key, *args, **options):
      found, *others = self.memory.get_buffer_content(key, *args, **options)
      return found.T if this.turned.get(key) else found, *others

  patch.setattr(gpu_callbacks, 'wgmma', with_transposes)
  patch.setattr(gpu_callbacks, '_get_shared_memory',
                lambda: Memory(memory()) if hasattr(this, 'turned') else memory())
