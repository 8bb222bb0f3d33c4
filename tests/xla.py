"""How tests compile: much code runs once, so compiling fast counts and running fast does not."""

from importlib import metadata
import os

DEVICES = '--xla_force_host_platform_device_count'
# No optimisation by LLVM, the emitters that compile fastest, each program in one piece: a program is
# compiled in half the time, and numbers are the same up to round-off.
FAST = ('--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1')
if metadata.version('jaxlib').startswith('0.10.'):                   # later ones have no other emitters
  FAST += ('--xla_cpu_use_fusion_emitters=false',)


def flags(devices):
  """Returns XLA_FLAGS for so many virtual devices; of a flag that is there already, the value stays."""
  given = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if not flag.startswith(DEVICES)]
  return ' '.join([f'{DEVICES}={devices}', *FAST, *given])           # the last of equal ones counts
