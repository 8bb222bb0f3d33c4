"""Checks of ReMoE: gates, loss, its gradient and the coefficient over several steps."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.routers import remoe


def router(case):
  c = case.config
  made = remoe.ReMoE(4, num_experts=c['E'], k=c['k'], initial=c['initial'], multiplier=c['multiplier'],
                     rngs=nnx.Rngs(0))
  mask = jnp.ones((1, c['T']), bool)

  @jax.jit
  def step(made, logits):
    def loss(logits):
      a, aux = remoe.remoe(logits[None], made.coefficient[...], mask, c['k'])
      return aux.losses['sparsity'], (a.masks()[1][0].sum(-1), aux)
    (value, (gates, aux)), grad = jax.value_and_grad(loss, has_aux=True)(logits)
    made.commit(aux)
    return made, dict(gates=gates, loss=value, grad_logits=grad, sparsity=aux.metrics['sparsity'])

  found, coefficients = [], [made.coefficient[...]]
  for logits in case['logits']:
    made, one = step(made, jnp.asarray(logits))
    found.append(one)
    coefficients.append(made.coefficient[...])
  _assert_close(case, 'coefficient', coefficients)
  for name in found[0]:
    _assert_close(case, name, [one[name] for one in found])


def _assert_close(case, name, values):
  """At the file's tolerance, which is of the largest entry: a coefficient of 1e-8 is compared, too."""
  case.assert_close(name, np.stack(values))
  most = np.abs(case[name]).max()
  np.testing.assert_allclose(np.stack(values), case[name], rtol=0, atol=1e-5 * most, err_msg=f'{case} {name}')
