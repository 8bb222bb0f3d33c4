"""A wrong answer of a sub-layer, of what stands around a block, or of a virtual expert names its file."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from stmoe import errors
from stmoe.core import checked
from stmoe.core import contract
from stmoe.experts import mlp
from stmoe.layers import moe
from stmoe.parts import block
from stmoe.routers import st_moe

HERE, B, T, D = r'tests/parts/test_mistakes\.py', 2, 3, 4
CTX = contract.Context.of(jnp.ones((B, T), jnp.int32))


class Probe(nnx.Module):
  """A sub-layer that answers what `answer` says; so does a block that it stands for."""

  def __init__(self, d_model, *, answer, rngs):
    self.answer = answer

  def __call__(self, x, ctx, carry):
    return self.answer(x, carry)


ANSWERS = {
    'only y': (lambda x, carry: x, r'it returned float32\[2,3,4\]; wanted: \(y, aux, carry\)'),
    'two': (lambda x, carry: (x, carry), r'it returned a tuple of 2; wanted: \(y, aux, carry\)'),
    'nothing': (lambda x, carry: None, 'it returned NoneType; wanted'),
    'shape': (lambda x, carry: (x[..., :2], None, carry),
              r'it returned y float32\[2,3,2\]; wanted: float32\[2,3,4\]'),
    'dtype': (lambda x, carry: (x.astype(jnp.int32), None, carry), r'it returned y int32\[2,3,4\]; wanted'),
    'carry': (lambda x, carry: (x, None, None), 'it returned the carry NoneType; wanted'),
    'another carry': (lambda x, carry: (x, None, dict(h=x)),
                      r"it returned the carry \{'h': 'float32\[2,3,4\]'\}; wanted: .* init_carry"),
    'code': (lambda x, carry: x.absent, 'line [0-9]+: .*absent'),
}


@pytest.mark.parametrize('case', ANSWERS)
def test_a_layer(case):
  answer, says = ANSWERS[case]
  made = block.Block(D, layer=functools.partial(Probe, answer=answer), rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match=f'{HERE}[:,] {says}'):
    jax.eval_shape(made, jnp.ones((B, T, D)), CTX, {})


def test_what_is_reported():
  probe = Probe(D, answer=lambda x, carry: (x, dict(z=jnp.float32(0)), carry), rngs=None)
  with pytest.raises(errors.UserError, match=rf'{HERE}: it reported float32\[\]; wanted: None, contract.Aux'):
    checked.answer(probe, jnp.ones((B, T, D)), CTX, {})


def test_what_stands_around_a_block():
  unit = block.Unit([functools.partial(Probe, answer=lambda x, carry: (x, carry))], D, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match=f'{HERE}: it returned a tuple of 2'):
    jax.eval_shape(unit, jnp.ones((B, T, D)), CTX, {}, jnp.int32(0))


def test_a_constructor_and_a_virtual_expert():
  def absent(d_model, rngs):
    raise AttributeError('no such thing')
  with pytest.raises(errors.UserError, match=f'{HERE}, line [0-9]+: no such thing'):
    block.Block(D, layer=absent, rngs=nnx.Rngs(0))

  class Half(nnx.Module):
    def __call__(self, x):
      return x[..., :2]
  router = functools.partial(st_moe.STMoE, num_experts=3, k=1)
  experts = functools.partial(mlp.Mlp, d_ff=4)
  virtual = (lambda d_model, rngs: Half(),)
  layer = moe.Moe(D, router=router, experts=experts, virtual=virtual, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match=rf'{HERE}: it returned float32\[2,3,2\]; wanted: \[2,3,4\]'):
    jax.eval_shape(layer, jnp.ones((B, T, D)), CTX, {})
