"""Checks of dynamic top-p routing: the experts of every token, their weights, the layer's output."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe.core import metrics
from stmoe.core.execute import einsum
from stmoe.experts import glu
from stmoe.routers import top_p_routing


def layer(case):
  c = case.config
  x = jnp.asarray(case['x']).reshape(1, -1, c['D'])                  # [S, B, D], one group
  shape = (c['S'], c['B'], -1)
  bank = glu.Glu(c['D'], num_experts=c['E'], d_ff=c['F'], activation='silu', rngs=nnx.Rngs(0))
  for ours, theirs in (('wi', 'ffn_gate'), ('wg', 'ffn_up'), ('wo', 'ffn_down')):
    getattr(bank, ours)[...] = jnp.asarray(case[theirs].swapaxes(1, 2))

  @jax.jit
  def run(x):
    logits = jnp.einsum('gsd,ed->gse', x, case['router_weight'], precision='highest')
    # A p above 1 is refused by the router; the function is the reference's there, too.
    a, _ = top_p_routing.top_p_routing(logits, jnp.ones(x.shape[:2], bool), c['top_p'],
                                       top_p_routing.most_experts(c['top_p'], c['E']))
    return (jax.nn.softmax(logits), a.masks()[1].sum(-1), metrics.experts_per_token(a),
            einsum.execute(x, a, bank))
  probs, weights, number, y = run(x)
  case.assert_close('probs', probs.reshape(shape))
  case.assert_close('combine_weights', weights.reshape(shape))
  case.assert_close('num_active', number.reshape(shape[:2]))
  case.assert_close('output', y.reshape(shape))
