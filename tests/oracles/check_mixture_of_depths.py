"""Checks of Mixture-of-Depths: who passes a block, what comes out, losses of both selections, gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe.parts import visible
from stmoe.parts.around import mixture_of_depths as depths


class Block(nnx.Module):
  """The reference's block: one head of attention, then a network, without norms or positions."""

  def __init__(self, d_model, *, weights, rngs):
    self.weights = nnx.data({name: jnp.asarray(w) for name, w in weights.items()})

  def __call__(self, x, ctx, carry):
    w, mask = self.weights, ctx.visible['attention'].mask[:, 0]
    logits = (x @ w['wq']) @ (x @ w['wk']).swapaxes(1, 2) / x.shape[-1] ** 0.5     # [B, C, C]
    x = x + jax.nn.softmax(jnp.where(mask, logits, -jnp.inf)) @ (x @ w['wv'])
    return x + jax.nn.gelu(x @ w['w1'], approximate=False) @ w['w2'], {}, carry


GATES = {False: 'raw', True: 'sigmoid'}


def block(case):
  c = case.config
  with jax.enable_x64(True):
    weights = {name: case[name] for name in ('wq', 'wk', 'wv', 'w1', 'w2')}
    layer = depths.MixtureOfDepths(
        c['D'], share=c['C'] / c['S'], gate=case.option('sigmoid_gate', GATES),
        block=lambda d_model, rngs: Block(d_model, weights=weights, rngs=rngs), rngs=nnx.Rngs(0))
    layer.router_w.set_value(jnp.asarray(case['w_router'])[:, None])
    layer.router_predictor.set_value(jnp.asarray(case['w_predictor'])[:, None])
    x = jnp.asarray(case['x'])
    ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32), causal=True).replace(train=True)
    ctx = ctx.replace(visible=dict(attention=visible.Visible(mask=visible.causal(ctx.segments))))

    def run(layer, x):
      y, reports, _ = layer(x, ctx, {})
      return jnp.sum(y * case['cotangent']), (y, reports['.depth'])

    (grads, dx), (y, aux) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(layer, x)
    r, p = (depths.scores(x, jnp.asarray(case[name])[:, None]) for name in ('w_router', 'w_predictor'))
  case.assert_close('router', r)
  case.assert_close('selected', depths.largest(r, ctx.mask, c['C'] / c['S'])[0])
  case.assert_close('y', y)
  case.assert_close('aux', aux.losses['membership'])
  case.assert_close('predictor_loss', aux.losses['predictor'])
  passed = np.zeros(x.shape[:2], bool)
  np.put_along_axis(passed, case['selected'], True, axis=1)
  case.assert_close('predictor_accuracy', np.mean((np.asarray(p) > 0) == passed))
  np.testing.assert_allclose(aux.metrics['predictor_accuracy'], case['predictor_accuracy'], rtol=1e-6)
  assert aux.load.tolist() == [passed.sum(), (~passed).sum()]
  case.assert_close('grad_x', dx)
  case.assert_close('grad_w_router', grads.router_w[:, 0])
