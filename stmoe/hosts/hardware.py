"""Accelerators as data: what a chip can do by its vendor's figures. Nothing here was measured.

Peak is bf16 with float32 accumulation, without sparsity. `link` is what a chip sends to its
neighbours at once, all links together, in one direction. For GPUs (8 of a node) that is within an NVLink
domain; what crosses nodes is slower. A roofline from these figures is a bound from below, not a prediction.
"""

import math
from typing import NamedTuple

from stmoe import errors

GIB = 2**30


class Chip(NamedTuple):
  """A chip: FLOP/s in bf16, bytes of memory, bytes/s of memory and of links, where the figures are from.

  kind:  'tpu', 'gpu' or 'cpu'.
  cores: devices that a chip appears as in an ahead-of-time topology.
  """
  kind: str
  flops: float | None
  memory: float | None
  bandwidth: float | None
  link: float | None
  source: str
  cores: int = 1

  def device(self):
    """Returns the Chip's share of one device."""
    share = lambda n: n and n / self.cores
    return self._replace(flops=share(self.flops), memory=share(self.memory), link=share(self.link),
                         bandwidth=share(self.bandwidth), cores=1)


# Cloud TPU documentation, a page per chip: "bidirectional inter-chip interconnect bandwidth per chip" of
# v5e 400, v5p 1200, v6e 800 GB/s, of which one direction is half; v4 there has 2400 Gbit/s (one direction).
# NVIDIA data sheets of H100 SXM5 and H200 SXM: dense bf16, NVLink 900 GB/s in both directions together.
CHIPS = {
    'v4': Chip('tpu', 275e12, 32 * GIB, 1200e9, 300e9, 'Cloud TPU documentation', cores=2),
    'v5e': Chip('tpu', 197e12, 16 * GIB, 819e9, 200e9, 'Cloud TPU documentation'),
    'v5p': Chip('tpu', 459e12, 95 * GIB, 2765e9, 600e9, 'Cloud TPU documentation'),
    'v6e': Chip('tpu', 918e12, 32 * GIB, 1638e9, 400e9, 'Cloud TPU documentation'),
    'h100': Chip('gpu', 989e12, 80e9, 3350e9, 450e9, 'NVIDIA H100 SXM data sheet'),
    'h200': Chip('gpu', 989e12, 141e9, 4800e9, 450e9, 'NVIDIA H200 SXM data sheet'),
    'cpu': Chip('cpu', None, None, None, None, 'virtual devices of this machine'),
}
LARGEST = {'v4': (16, 16, 16), 'v5e': (16, 16), 'v5p': (16, 20, 28), 'v6e': (16, 16)}
MOST = 2**13                             # virtual devices, or GPUs, that a process can hold


# What JAX calls the devices of these chips, where that does not hold the chip's name.
CALLED = {'v5 lite': 'v5e', 'v6 lite': 'v6e', 'tpu v5': 'v5p'}


def of_kind(kind):
  """Returns the Chip of a device that JAX calls `kind`, None for a chip that is not among CHIPS.

  >>> of_kind('NVIDIA H200').memory, of_kind('TPU v5 lite').source, of_kind('cpu')
  (141000000000.0, 'Cloud TPU documentation', None)
  """
  kind = kind.lower()
  known = {name: name for name, chip in CHIPS.items() if chip.flops} | CALLED
  return next((CHIPS[name].device() for text, name in known.items() if text in kind), None)


def parse(topology):
  """Returns (name, sizes) of 'v5p:8x8x8': a key of CHIPS and the shape of the slice, or devices.

  Raises UserError for another name or shape, naming the nearest.
  """
  name, _, text = topology.partition(':')
  if name not in CHIPS:
    raise errors.UserError(f'topology {topology!r}: no chip is called {name!r}{errors.nearest(name, CHIPS)} '
                           f'(there are: {", ".join(CHIPS)})')
  tpu = name in LARGEST
  axes = len(LARGEST[name]) if tpu else 1
  example = f'{name}:{"x".join("2" * axes if axes == 3 else "24") if tpu else 8}'
  parts = text.split('x')
  if not tpu and text.isdecimal() and int(text) > MOST:
    raise errors.UserError(f'topology {topology!r}: at most {MOST}; nearest: {name}:{MOST}')
  if len(parts) != axes or not all(part.isdecimal() and int(part) > 0 for part in parts):
    raise errors.UserError(f'topology {topology!r}: after the colon comes the number of chips'
                           f'{" along each of " + str(axes) + " axes" if tpu else ""}; nearest: {example}')
  return name, tuple(map(int, parts))


def roofline(chip, flops, traffic, wire):
  """Returns dict(compute, memory, interconnect, total) of seconds: no step of that work can be faster.

  None where the chip has no figure. total: the largest of the three, as if they overlapped entirely.

  Args:
    chip:    a Chip.
    flops:   of the matrix products of one device.
    traffic: bytes that a device reads and writes in its memory.
    wire:    bytes that a device sends.
  """
  time = lambda work, rate: None if rate is None else work / rate
  parts = dict(compute=time(flops, chip.flops), memory=time(traffic, chip.bandwidth),
               interconnect=time(wire, chip.link))
  return parts | dict(total=None if None in parts.values() else max(parts.values()))


def chips(name, sizes):
  """Returns the number of chips of a topology."""
  return math.prod(sizes)
