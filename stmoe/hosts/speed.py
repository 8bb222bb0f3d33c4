"""How fast a run trains and what memory it takes: the key `time` of metrics.jsonl.

Nothing else in a line differs between two runs of one seed.
"""

import math
import pathlib
import resource
import sys

import jax

from stmoe.hosts import hardware

GIB = hardware.GIB


def peak(mesh: jax.sharding.Mesh) -> float | None:
  """Returns the FLOP/s in bf16 of all devices of `mesh` by the vendor's figures; None if unknown."""
  chip = hardware.of_kind(mesh.devices.flat[0].device_kind)
  return chip and chip.flops * mesh.devices.size


def host_memory() -> float:
  """Returns the most GiB of memory that this process has had."""
  status = pathlib.Path('/proc/self/status')   # of Linux; `resource` counts there what the parent had, too
  for line in status.read_text().splitlines() if status.exists() else ():
    if line.startswith('VmHWM'):
      return int(line.split()[1]) * 2**10 / GIB
  unit = 1 if sys.platform == 'darwin' else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def device_memory(mesh: jax.sharding.Mesh) -> float | None:
  """Returns the most GiB that a device of this process has had in use; None for devices that do not say."""
  told = [device.memory_stats() or {} for device in mesh.local_devices]
  used = [stats['peak_bytes_in_use'] for stats in told if 'peak_bytes_in_use' in stats]
  return max(used) / GIB if used else None


class Speed:
  """Tells of each line of metrics how fast training went since the line before."""

  def __init__(self, mesh: jax.sharding.Mesh):
    self._mesh, self._peak = mesh, peak(mesh)
    self._before: dict | None = None

  def begin(self, totals: dict) -> None:
    """Counts from here on; `totals` as in `told`."""
    self._before = totals

  def told(self, totals: dict) -> dict[str, float]:
    """Returns the key `time` of a line; a number that is not known is left out.

      seconds           of training so far
      tokens_per_s      target tokens
      flops_per_s       active training FLOPs, what `flops` counts
      flop_utilisation  that over the peak of all devices
      host_memory_gib, device_memory_gib    the most so far, of this process and of its fullest device

    Args:
      totals: dict(tokens, flops, time=dict(seconds)) until now, as in the line.
    """
    found = dict(totals['time'], **self._rates(totals), host_memory_gib=host_memory(),
                 device_memory_gib=device_memory(self._mesh))
    self._before = totals
    return {name: value for name, value in found.items() if value is not None}

  def _rates(self, totals):
    """The numbers per second; {} where no step was timed."""
    if self._before is None or totals['time']['seconds'] <= self._before['time']['seconds']:
      return {}
    seconds = totals['time']['seconds'] - self._before['time']['seconds']
    tokens, flops = ((totals[name] - self._before[name]) / seconds for name in ('tokens', 'flops'))
    rates = dict(tokens_per_s=tokens, flops_per_s=flops, flop_utilisation=flops / (self._peak or math.inf))
    return {name: rate for name, rate in rates.items() if rate}
