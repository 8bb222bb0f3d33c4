"""Checks of Duo-LLM: one layer with a router, soft and hard, its budget and gradients; oracles of routes."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.analysis.routing import oracle
from stmoe.core import assignment
from stmoe.core.execute import einsum
from stmoe.core.transport import rows
from stmoe.routers import duo_llm

MASK = lambda x: jnp.ones(x.shape[:2], bool)
ARRAYS = dict(wi='gate', wg='up', wo='down')


def router_layer(case):
  _layer_in_float32(case)
  with jax.enable_x64(True):                                         # the stated tolerance is of float64
    c, layer, x = case.config, _layer(case), jnp.asarray(case['x'])[None]

    def run(layer, x):
      probs = jax.nn.softmax(c['tau'] * (x @ layer.router.w[...]), axis=-1)
      y = {kind: x + _output(layer, x, duo_llm.duo_llm(probs, MASK(x), choice, len(layer.virtual))[0])
           for kind, choice in dict(soft=None, hard=jnp.argmax(probs, axis=-1)[..., None]).items()}
      big = duo_llm.duo_llm(probs, MASK(x), None, len(layer.virtual))[1]
      budget = duo_llm.budget(big, jnp.zeros((*big.shape, 2)), MASK(x), c['target'], 'microbatch', big.size)
      loss = jnp.sum(y['soft'][0] * case['cotangent']) + budget
      return loss, (probs[0], y['soft'][0], y['hard'][0], budget)

    (grads, dx), (probs, soft, hard, budget) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(layer, x)
  for name, value in dict(prob=probs, y_soft=soft, y_hard=hard, budget_loss=budget[None], grad_x=dx[0],
                          grad_W_r=grads.router.w[...], choice=np.argmax(probs, axis=-1)).items():
    case.assert_close(name, value)


def _output(layer, x, edges):
  a = assignment.cap(edges, edges.num_tokens)
  gates = rows.virtual_gates(a)                                      # [G, S, Z]
  added = [gates[..., z, None] * layer.virtual[z](x) for z in range(len(layer.virtual))
           if layer.virtual[z](x) is not None]
  return einsum.execute(x, a, layer.experts) + sum(added)


def _layer_in_float32(case):
  """The layer itself, in training soft and in evaluation hard."""
  layer, x = _layer(case), jnp.asarray(case['x'], jnp.float32)[None]
  ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32), causal=True)

  @functools.partial(jax.jit, static_argnames='train')
  def run(layer, x, train):
    y, aux, _ = layer(x, ctx.replace(train=train), {})
    return (x + y)[0], aux.losses['budget'][None]

  close = lambda name, value: np.testing.assert_allclose(value, case[name], rtol=1e-4, atol=1e-5)
  soft, budget = run(layer, x, train=True)
  close('y_soft', soft), close('budget_loss', budget), close('y_hard', run(layer, x, train=False)[0])


def _layer(case):
  """The layer with the weights of `case`."""
  c = case.config
  virtual = (dict(name='small', d_ff=c['small']),) + case.option('skip', {True: ('zero',), False: ()})
  layer = lookup.recipe('layer', dict(
      name='moe', executor='einsum', virtual=virtual,
      experts=dict(name='glu', d_ff=c['big'], activation='silu'),
      router=dict(name='duo_llm', tau=(c['tau'], c['tau']), target=c['target'], scope='microbatch')))(
          c['D'], rngs=nnx.Rngs(0))
  for ours, theirs in ARRAYS.items():
    _set(getattr(layer.experts, ours), case[f'big_{theirs}'][None])
    _set(getattr(layer.virtual[0], ours), case[f'small_{theirs}'])
  _set(layer.router.w, case['W_r'])
  return layer


def oracle_selection(case):
  c = case.config
  every = oracle.routes(c['layers'], case.option('ways', {2: 2, 3: 3}))
  case.assert_close('routes', every)
  found = oracle.best(case['loss'], every)
  for ours, theirs in dict(exact='best_exact', loss_exact='loss_exact', loss_at_most='loss_at_most',
                           big_share='big_share', difficulty='difficulty').items():
    np.testing.assert_array_equal(getattr(found, ours), case[theirs], err_msg=theirs)


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable.set_value(jnp.asarray(value))
