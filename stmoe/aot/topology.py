"""Devices that are not there: what programs are compiled for, on a machine without any accelerator.

'v5p:8x8x8' are TPU chips, 'h100:8' GPUs, 'cpu:8' the virtual devices of this process. Only a compiler is
loaded, from the extra `aot`; JAX's own backend stays that of the CPU.
"""

import importlib.metadata
import importlib.util
import os
import sys

from stmoe import errors
from stmoe.hosts import hardware

# The compiler of TPUs asks its surroundings for a TPU unless told that there is none. Several processes
# may load this compiler, because none of them opens a device.
ENVIRONMENT = {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
               'TPU_ACCELERATOR_TYPE': 'v5p-8', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
               'TPU_STDERR_LOG_LEVEL': '3', 'TPU_MIN_LOG_LEVEL': '3', 'TF_CPP_MIN_LOG_LEVEL': '2'}
EXTRA = "pip install 'stmoe[aot]'"
PER_HOST = 8                           # GPUs of a machine, joined by NVLink

# The text form of XLA's description of a GPU; H100 SXM5; H200 differs in its memory.
GPU = '''gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"'''


def prepare(topology):
  """Sets the environment for `devices(topology)`; to be called before JAX is imported."""
  name, sizes = hardware.parse(topology)
  if 'jax' in sys.modules:
    return
  os.environ.update(ENVIRONMENT)
  flag = '--xla_force_host_platform_device_count'
  if name == 'cpu':
    other_flags = [f for f in os.environ.get('XLA_FLAGS', '').split() if not f.startswith(flag)]
    os.environ['XLA_FLAGS'] = ' '.join([*other_flags, f'{flag}={sizes[0]}'])


def devices(topology):
  """Returns (Chip as a device has it, list of devices, what to know about them).

  Raises UserError for a topology that does not exist, or whose compiler is not installed.
  """
  name, sizes = hardware.parse(topology)
  chip = hardware.CHIPS[name]
  of_kind = {'tpu': _tpu, 'gpu': _gpu, 'cpu': _cpu}[chip.kind](name, sizes)
  if chip.cores == 1:
    return chip, of_kind, ''
  # Its compiler knows no chip whose cores act as one device.
  first_cores = [d for d in of_kind if d.core_on_chip == 0]
  return chip.device(), first_cores, f'one of the {chip.cores} cores of a chip'


def versions(topology):
  """Returns dict package -> version of what compiles for `topology`."""
  compiler = {'tpu': ['libtpu'], 'gpu': ['jax-cuda12-pjrt', 'nvidia-cuda-nvcc-cu12'], 'cpu': []}
  kind = hardware.CHIPS[hardware.parse(topology)[0]].kind
  return {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', *compiler[kind])}


def _cpu(name, sizes):
  import jax
  virtual = jax.devices('cpu')
  if len(virtual) < sizes[0]:
    raise errors.UserError(f'topology cpu:{sizes[0]}: this process has {len(virtual)} devices; nearest: '
                           f'cpu:{len(virtual)}')
  return virtual[:sizes[0]]


def _tpu(name, sizes):
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(f'compiling for {name} needs the compiler of TPUs: {EXTRA}')
  os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
  from jax.experimental import topologies
  text = f'{name}:{"x".join(map(str, sizes))}'
  bounds = dict(chips_per_host_bounds=(1, 1, 1)) if hardware.chips(name, sizes) == 1 else {}
  largest = hardware.LARGEST[name]
  even = [size + size % 2 if axis < 2 else size for axis, size in enumerate(sizes)]
  near = [min(size, most) for size, most in zip(even, largest)]
  missing = errors.UserError(
      f'topology {text} does not exist: hosts have 2 x 2 chips and the largest slice is '
      f'{"x".join(map(str, largest))}; nearest: {name}:{"x".join(map(str, near))}')
  if any(size > most for size, most in zip(sorted(sizes), sorted(largest))):
    raise missing
  try:
    return topologies.get_topology_desc(text, platform='tpu', **bounds).devices
  except Exception as error:                                         # of a compiler that says why, or not
    raise (missing if near != list(sizes) else errors.UserError(f'topology {text}: {error}')) from error


def _gpu(name, sizes):
  if importlib.util.find_spec('jax_cuda12_plugin') is None or not _has_ptxas():
    raise errors.UserError(f'compiling for {name} needs the compilers of CUDA: {EXTRA}')
  number, chip = sizes[0], hardware.CHIPS[name]
  if number > PER_HOST and number % PER_HOST:
    low = number // PER_HOST * PER_HOST
    raise errors.UserError(f'topology {name}:{number}: machines have {PER_HOST} GPUs; nearest: {name}:{low}, '
                           f'{name}:{low + PER_HOST}')
  from jax.experimental import topologies
  target = GPU.format(name=f'NVIDIA {name.upper()}', memory=int(chip.memory), bandwidth=int(chip.bandwidth))
  hosts = max(1, number // PER_HOST)
  return topologies.get_topology_desc('', 'cuda', target_config=target,
                                      topology=f'1x{hosts}x{min(number, PER_HOST)}').devices


def _has_ptxas():
  """Whether the wheel with NVIDIA's assembler is installed."""
  spec = importlib.util.find_spec('nvidia')
  return spec is not None and importlib.util.find_spec('nvidia.cuda_nvcc') is not None
