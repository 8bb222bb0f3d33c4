"""Compiles kernels for Hopper GPUs that are not there, and reads what NVIDIA's assembler says of them.

Those of Mosaic GPU are assembled when they are loaded; here it is seen that they are lowered, and fit.
"""

import dataclasses
import pathlib
import re
import subprocess

from stmoe.aot import topology

BLOCK = 232448                          # bytes of shared memory that one block may have
TARGETS = ('h100:1', 'h200:1')
# Rows, D, F, experts of Mixtral 8x7B, DeepSeekMoE-16B and OLMoE-1B-7B.
MODELS = {'mixtral': (8192, 4096, 14336, 8), 'deepseek': (98304, 2048, 1408, 64),
          'olmoe': (131072, 2048, 1024, 64)}
CASES = (('mixtral', 'bfloat16'), ('deepseek', 'bfloat16'), ('olmoe', 'bfloat16'), ('deepseek', 'float32'))


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Shared memory, registers of a thread and what it spills (bytes, number, bytes), tensor-core products."""
  shared: int
  registers: int
  spilled: int
  products: int


def fits(kernel, least=1):
  """Raises unless the Kernel fits on a multiprocessor, spills no registers and uses tensor cores.

  Its memory must be `least` bytes: the operands of all stages, which are loaded while others are multiplied.
  """
  assert least <= kernel.shared <= BLOCK and kernel.spilled == 0 and kernel.products > 0, (kernel, least)


def compile(where, folder, name, f, *args):
  """Returns the Kernel called `name` of jit(f) for arguments of (shape, dtype) on the topology `where`."""
  import jax
  mesh, args = _there(where, args)
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)           # what is cached writes no files
  try:
    # Optimised as it is for users, unlike the other programs of these tests.
    options = dict(xla_dump_to=str(folder), xla_backend_optimization_level=3)
    with jax.set_mesh(mesh):
      jax.jit(f).lower(*args).compile(compiler_options=options)
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
  return _read(pathlib.Path(folder), name)


def lower(where, f, *args):
  """Returns the compiled program of jit(f) for arguments of (shape, dtype) on the topology `where`."""
  import jax
  mesh, args = _there(where, args)
  with jax.set_mesh(mesh):
    return jax.jit(f).lower(*args).compile()


def _there(where, args):
  """(mesh of one device of the topology, abstract arguments on it)."""
  import jax
  _, devices, _ = topology.devices(where)
  place = jax.sharding.SingleDeviceSharding(devices[0])
  mesh = jax.sharding.Mesh(devices[:1], ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  return mesh, [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in args]


def _read(folder, name):
  [file] = [p for p in folder.glob('*.ptx') if f'.entry {name}(' in p.read_text()]
  import nvidia
  ptxas = pathlib.Path(list(nvidia.__path__)[0]) / 'cuda_nvcc' / 'bin' / 'ptxas'
  said = subprocess.run([ptxas, '-v', '-arch=sm_90a', file, '-o', folder / 'cubin'], check=True,
                        capture_output=True, text=True).stderr
  [thunks] = folder.glob('*thunk_sequence.txt')
  number = lambda pattern, text: sum(map(int, re.findall(pattern, text)))
  return Kernel(shared=number(r'shared_memory: (\d+) bytes', thunks.read_text()),
                registers=number(r'Used (\d+) registers', said),
                spilled=number(r'(\d+) bytes spill', said),
                products=len(re.findall(r'mma_async|mma\.sync', file.read_text())))
