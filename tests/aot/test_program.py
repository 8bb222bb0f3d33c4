"""Reports about compiled programs: counts, bytes and FLOPs known by hand, on eight devices and from text."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe.aot import hlo
from stmoe.aot import products
from stmoe.aot import program

P = jax.sharding.PartitionSpec
ROWS = P(('data', 'expert'))


@pytest.fixture(scope='module')
def mesh():
  return axes.make_mesh(data=2, expert=4)


def compiled(function, mesh, *shapes):
  """The Compiled of `function` of f32 arrays under shard_map over all eight devices."""
  mapped = jax.shard_map(function, mesh=mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False)
  return jax.jit(mapped).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def found(program_, devices=8):
  return program.collectives(hlo.parse(program_.as_text()), devices)


# Of f32[64,16] every device has f32[8,16]: 512 bytes. Operation, kind, payload, devices, sent bytes.
CASES = {
    'all-to-all': (lambda x: jax.lax.all_to_all(x, 'expert', 0, 0, tiled=True), 512, 4, 512 * 3 / 4),
    'all-gather': (lambda x: jax.lax.all_gather(x, 'expert', tiled=True)[:8], 2048, 4, 2048 * 3 / 4),
    'all-reduce': (lambda x: jax.lax.psum(x, ('data', 'expert')), 512, 8, 2 * 512 * 7 / 8),
    'reduce-scatter': (lambda x: jnp.tile(jax.lax.psum_scatter(x, 'data', tiled=True), (2, 1)), 512, 2, 256),
    'collective-permute': (lambda x: jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)]), 512, None, 512),
}


@pytest.mark.parametrize('kind', CASES)
def test_one_collective(mesh, kind):
  function, payload, devices, sent = CASES[kind]
  one, = found(compiled(function, mesh, (64, 16)))
  assert (one.kind, one.bytes, one.times, one.known) == (kind, payload, 1, True)
  assert devices in (None, one.devices) and one.wire == sent


def test_loop_multiplies_collectives_and_products(mesh):
  def function(x):
    def body(x, _):
      with jax.named_scope('experts'):
        return jnp.tanh(jax.lax.psum(x @ jnp.ones((16, 16)), 'expert')), None
    return jax.lax.scan(body, x, length=5)[0]

  result = compiled(function, mesh, (64, 16))
  one, = found(result)
  assert (one.kind, one.bytes, one.times, one.total, one.scope) == ('all-reduce', 512, 5, 2560, 'experts')
  assert program.by_kind([one])['all-reduce'] == dict(count=1, executions=5, bytes=2560, known=True,
                                                      wire_bytes=2 * 2560 * 3 / 4)
  assert products.flops(hlo.parse(result.as_text())) == (5 * 2 * 8 * 16 * 16, True)


def test_loop_of_unknown_length_is_said_to_be(mesh):
  def function(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: jax.lax.psum(x, 'expert') + 1, x)
  ones = [c for c in found(compiled(function, mesh, (64, 16))) if c.bytes == 512]
  assert [(c.times, c.known) for c in ones] == [(1, False)]


def test_gradient_is_named_backward(mesh):
  def loss(w, x):
    def local(w, x):
      with jax.named_scope('experts'):
        return jax.lax.all_to_all(jnp.sin(x) @ w, 'expert', 0, 0, tiled=True)
    spec = P(('data', 'expert'))
    return jnp.sum(jax.shard_map(local, mesh=mesh, in_specs=(P(), spec), out_specs=spec)(w, x) ** 2)

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 16), (64, 16))]
  result = jax.jit(jax.grad(loss)).lower(*shapes).compile()
  sums = program.by_scope(found(result))
  assert sums['all-to-all forward/experts'] == sums['all-to-all backward/experts'] == 512


def test_memory_of_a_donated_argument(mesh):
  x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=jax.NamedSharding(mesh, P('data')))
  parts = program.memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
  assert parts['arguments'] == parts['outputs'] == parts['aliased'] == 32 * 16 * 4
  assert parts['peak'] == parts['arguments'] + parts['temporaries'] + parts['code']


def test_flops_and_traffic_of_a_product():
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((32, 64), (64, 128))]
  result = jax.jit(lambda a, b: a @ b).lower(*shapes).compile()
  module = hlo.parse(result.as_text())
  assert products.flops(module) == (2 * 32 * 64 * 128, True)
  assert products.traffic(module) == 4 * (32 * 64 + 64 * 128 + 32 * 128)


# What accelerators write: asynchronous forms, a loop whose condition says its length, a batched product as
# a convolution over the batch axis (4 products of [8,16] and [16,32]), memory on the chip (S(1)).
TEXT = (pathlib.Path(__file__).parent / 'scheduled.hlo').read_text(encoding='utf-8')


def test_asynchronous_forms_count_once():
  rows = {c.kind: (c.bytes, c.devices, c.times) for c in program.collectives(hlo.parse(TEXT), 8)}
  assert rows == {'all-to-all': (256, 4, 6), 'all-reduce': (512, 4, 1), 'all-gather': (4096, 8, 1),
                  'collective-permute': (512, 8, 1)}
  assert len(program.collectives(hlo.parse(TEXT), 8)) == 4


def test_overlap_counts_the_products_between_start_and_end():
  assert program.overlap(hlo.parse(TEXT)) == {
      'ar-start': 2, 'cp-start': 0, 'a2a-start': 0, 'all-gather chain 0 channel 4': 1}
  with pytest.raises(ValueError, match='not scheduled'):
    program.overlap(hlo.parse(TEXT.replace('is_scheduled=true', 'x=1')))


def test_flops_of_what_accelerators_write():
  batched, gemm = 4 * 2 * 8 * 16 * 32, 2 * 2 * 64 * 64
  assert products.flops(hlo.parse(TEXT)) == (2 * batched + gemm, True)


def test_traffic_leaves_out_what_is_on_the_chip_and_counts_slices():
  # Its result is written once and read once, unless it stays on the chip.
  module = hlo.parse(TEXT.replace('%product = f32[4,8,32]{2,1,0} fusion',
                                  '%product = f32[4,8,32]{2,1,0:T(8,128)S(1)} fusion'))
  assert products.traffic(hlo.parse(TEXT)) - products.traffic(module) == 2 * 4 * 8 * 32 * 4

  def function(stack):
    return jax.lax.scan(lambda x, w: (jnp.sin(x) + w, None), jnp.zeros((64, 64)), stack)[0]
  stack = jax.ShapeDtypeStruct((50, 64, 64), jnp.float32)
  moved = products.traffic(hlo.parse(jax.jit(function).lower(stack).compile().as_text()))
  layer = 64 * 64 * 4
  assert 50 * 2 * layer <= moved <= 50 * 7 * layer              # and not 50 times the whole stack


def test_convolution_is_counted_like_a_direct_one():
  x = jax.ShapeDtypeStruct((2, 9, 7, 3), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 2, 3, 5), jnp.float32)
  result = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
      x, k, (2, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))).lower(x, kernel)
  text = result.compile().as_text()
  assert products.flops(hlo.parse(text))[0] == 2 * (2 * 4 * 6 * 5) * (3 * 2 * 3)


def test_shapes():
  shape = '(f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[4]{0}, pred[], f8e4m3fn[8], s4[3])'
  assert hlo.size(shape) == 24 + 8 + 1 + 8 + 2
  assert products.main('(f32[2,3]{1,0:T(8,128)S(1)}, f32[4]{0})') == 16
  assert np.prod(hlo.arrays('f32[<=8,4]')[0][1]) == 32


@pytest.mark.parametrize('name, want', [
    ('jit(step)/transpose(jvp())/while/body/closed_call/layer/experts/dot_general', 'backward/experts'),
    ('jit(step)/jvp()/layer/shard_map/experts/jvp(dispatch)/all_to_all', 'forward/dispatch'),
    ('jit(step)/transpose(jvp())/checkpoint/rematted_computation/layer/add', 'recomputed/layer'),
    ('jit(step)/optimizer/add', 'optimizer'), ('', ''),
])
def test_scope(name, want):
  assert program.scope(name) == want
