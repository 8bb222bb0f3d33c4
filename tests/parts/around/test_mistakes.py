"""Blocks around blocks that do not fit them: one line says what does not, and what to do instead."""

from flax import nnx
import pytest

from stmoe import lookup
from stmoe.errors import UserError
from tests.models import tiny

ROUTER = dict(name='sigma_moe', num_experts=2, k=1)
OWN_NORM = dict(attention=dict(name='moeut', router=ROUTER))


@pytest.mark.parametrize('around, fields, message', [
    ('parallel', OWN_NORM, "normalises its input itself.*nearest: attention name='attention'"),
    ('ada_ln_zero', OWN_NORM, 'the attention of its block.*nearest: norm=True'),
    ('ada_ln_zero', dict(norm=False), 'the layer of its block.*nearest: norm=True'),
])
def test_block_that_does_not_fit_is_one_line(around, fields, message):
  block = dict(layer='dense', d_ff=8, around=dict(name=around)) | fields
  make = lookup.recipe('model', dict(name='lm', layers=(('d', 1),), **tiny.SHAPES))

  def run():
    return make(blocks=dict(d=block), rngs=nnx.Rngs(0))(tiny.batch('lm', 1, 4))[0]
  with pytest.raises(UserError, match=message) as caught:
    nnx.eval_shape(run)
  assert '\n' not in str(caught.value)
