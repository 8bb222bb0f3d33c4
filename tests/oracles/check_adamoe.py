"""Checks of AdaMoE: a sparse block with null experts, its logits, output and released balance loss."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.execute import einsum
from stmoe.experts import glu
from stmoe.routers import adamoe


def block(case):
  c = case.config
  x = jnp.asarray(case['x']).reshape(1, -1, c['D'])                  # the reference has one group
  weights = np.concatenate([case['router_weight'], case['null_weight']])           # [E+m, D]
  bank = glu.Glu(c['D'], num_experts=len(case['router_weight']), d_ff=c['F'], activation='silu',
                 rngs=nnx.Rngs(0))
  for ours, theirs in (('wi', 'ffn_gate'), ('wg', 'ffn_up'), ('wo', 'ffn_down')):
    getattr(bank, ours)[...] = jnp.asarray(case[theirs].swapaxes(1, 2))

  @jax.jit
  def run(x):
    logits = jnp.einsum('gsd,ed->gse', x, weights, precision='highest')
    a, aux = adamoe.adamoe(logits, jnp.ones(x.shape[:2], bool), c['k'], len(case['null_weight']))
    return logits[0], einsum.execute(x, a, bank), aux
  logits, y, aux = run(x)
  case.assert_close('router_logits', logits)
  case.assert_close('output', y.reshape(case['output'].shape))
  # The loss that ran: the mean over nulls was taken of an empty slice, every null has its own share.
  case.assert_close('aux_loss', aux.losses['plain_balance'][None])
