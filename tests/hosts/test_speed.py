"""Speed and memory of a line of metrics, on devices that are made up."""

import pathlib
import resource
import types

import numpy as np
import pytest

from stmoe.hosts import speed


def mesh(kind, *memories):
  """A mesh of two devices of `kind`, of which this process has as many as there are `memories`."""
  local = [types.SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in memories]
  devices = np.array([types.SimpleNamespace(device_kind=kind)] * 2)
  return types.SimpleNamespace(devices=devices, local_devices=local)


def totals(steps):
  return dict(tokens=steps * 1000, flops=steps * 989e12, time=dict(seconds=steps * 5.0))


def test_rates_are_those_since_the_line_before():
  on = speed.Speed(mesh('NVIDIA H100', dict(peak_bytes_in_use=2**30), dict(peak_bytes_in_use=2**31)))
  assert on.told(totals(0)).keys() == {'seconds', 'host_memory_gib', 'device_memory_gib'}
  on.begin(totals(1))
  told = on.told(totals(3))
  assert (told['seconds'], told['tokens_per_s'], told['device_memory_gib']) == (15.0, 200.0, 2.0)
  assert told['flops_per_s'] == pytest.approx(2 * 989e12 / 10)
  assert told['flop_utilisation'] == pytest.approx(0.1)              # of two devices of 989 TFLOP/s each
  assert on.told(totals(4))['tokens_per_s'] == 200.0


def test_what_a_device_does_not_say_is_left_out():
  on = speed.Speed(mesh('cpu', None))
  on.begin(totals(1))
  assert on.told(totals(2)).keys() == {'seconds', 'tokens_per_s', 'flops_per_s', 'host_memory_gib'}
  assert on.told(totals(2)).keys() == {'seconds', 'host_memory_gib'}             # no step was timed


def test_the_memory_of_the_host_is_the_most_so_far():
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  now = pages * resource.getpagesize() / 2**30
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of Linux, in KiB
  assert 0.9 * now < speed.host_memory() < 1.1 * most
