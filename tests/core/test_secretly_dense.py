"""No dropless executor is a dense product over all experts in disguise, on any platform.

Products that XLA shows are counted: at most 1.3 times the FLOPs of the active experts (recomputation in the
backward included). What loops of unknown length and kernels do is not shown, but to multiply every row by
every expert they would need operands or results E times the size of the active ones, which are looked for.
"""

import contextlib
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, SingleDeviceSharding
import numpy as np
import pytest

from stmoe import axes
from stmoe import lookup
from stmoe.aot import hlo
from stmoe.aot import products
from stmoe.aot import topology
from stmoe.core import assignment
from stmoe.experts import mlp

T, D, F, E, K = 2048, 128, 512, 32, 2
LARGEST = 2 * T * K * F                    # elements; E times the active size would be 16 times this
ACTIVE = dict(forward=4 * T * K * D * F, train=12 * T * K * D * F)
DROPLESS = ['blocks', 'pallas']
ACCELERATORS = ['v5e:1x1', 'h100:1']


def layer(x, probs, bank, executor):
  a = assignment.cap(assignment.from_top_k(probs, K), T)             # nothing is dropped
  return lookup.module('executor', executor).execute(x, a, bank)


def compiled(executor, device=None):
  """Dict forward, train of the compiled layer, for `device` or for this machine."""
  place = {} if device is None else dict(sharding=SingleDeviceSharding(device))
  shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype, **place)
  make = lambda: mlp.Mlp(D, num_experts=E, d_ff=F, rngs=nnx.Rngs(0))
  bank = jax.tree.map(lambda w: shape(*w.shape), nnx.eval_shape(make))
  f = functools.partial(layer, executor=executor)

  def train(*arguments):
    y, pull = jax.vjp(f, *arguments)
    return y, pull(y)
  arguments = shape(1, T, D), shape(1, T, E, dtype=jnp.float32), bank
  with contextlib.nullcontext() if device is None else jax.set_mesh(_mesh(device)):
    return {name: jax.jit(g).lower(*arguments).compile() for name, g in (('forward', f), ('train', train))}


def _mesh(device):
  """Of one device: kernels ask the mesh which chip it is."""
  return Mesh(np.array([[[device]]]), axes.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def examine(program, what):
  """(FLOPs shown over the active ones, elements of the largest array that is no argument) of a program."""
  module = hlo.parse(program.as_text())
  shapes = [array for body in module.computations.values() for i in body if i.opcode != 'parameter'
            for array in hlo.arrays(i.shape)]
  return products.flops(module)[0] / ACTIVE[what], max(math.prod(dims) for _, dims in shapes)


def assert_sparse(programs):
  for what, program in programs.items():
    shown, largest = examine(program, what)
    assert shown <= 1.3 and largest <= LARGEST, (what, shown, largest)
    assert program.memory_analysis().temp_size_in_bytes < 4 * 16 * T * K * F


def is_dense(programs):
  found = [examine(program, what) for what, program in programs.items()]
  return all(shown > 0.9 * E / K or largest >= E * T * K * D for shown, largest in found)


@pytest.mark.parametrize('executor', DROPLESS)
def test_cpu(executor):
  assert_sparse(compiled(executor))


def test_ragged_dot_on_a_cpu_is_found_out():
  assert is_dense(compiled('ragged'))


@pytest.mark.aot
@pytest.mark.parametrize('name', ACCELERATORS)
def test_kernels_of_accelerators(name):
  _, devices, _ = topology.devices(name)
  assert_sparse(compiled('pallas', devices[0]))


@pytest.mark.aot
def test_hopper_has_kernels_of_its_own():
  program = compiled('pallas', topology.devices('h100:1')[1][0])['train']
  assert program.as_text().count('custom_call_target="mosaic_gpu_v2"') == 2        # those without a list


@pytest.mark.aot
def test_gpus_store_no_gathered_rows():
  module = hlo.parse(compiled('pallas', topology.devices('h100:1')[1][0])['train'].as_text())
  own = [i for body in module.computations.values() for i in body if i.opcode in ('gather', 'fusion', 'copy')]
  rows = [i.opcode for i in own for _, dims in hlo.arrays(i.shape) if math.prod(dims) == T * K * D]
  assert not rows, rows                                              # of x and dy; kernels load them by list


@pytest.mark.aot
def test_ragged_dot_on_a_gpu_is_found_out():
  assert is_dense(compiled('ragged', topology.devices('h100:1')[1][0]))


@pytest.mark.aot
def test_the_gradient_of_ragged_dot_on_a_tpu_is_found_out():
  programs = compiled('ragged', topology.devices('v5e:1x1')[1][0])
  assert_sparse(dict(forward=programs['forward']))                   # there it is a kernel
  assert is_dense(dict(train=programs['train']))                     # its gradient to the weights is not
