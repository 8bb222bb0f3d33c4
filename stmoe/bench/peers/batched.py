"""No library but a bound: all experts in one batched dense product, all with as many rows, no routing.

The matrices of a product lie in one array, as a bank has them, and rows in the order of the tokens. Any real
computation of all experts at once is slower: experts differ in their rows, so some would be padded.
"""

import jax
import jax.numpy as jnp

from stmoe.bench import layers as bench


def missing():
  return ''


def variant(problem, floor):
  experts, k = problem.wi.shape[0], problem.expert.shape[1]
  times = lambda x, w: jnp.einsum('erd,edf->erf', x, w)

  def layer(x, wi, wo, *wg):
    """x [T,D]; wi, wg [E,D,F], wo [E,F,D]."""
    rows = jnp.tile(x, (k, 1)).reshape(experts, -1, x.shape[1])      # [E, T k / E, D]
    h = times(rows, wi)
    h = jax.nn.silu(h) * times(rows, wg[0]) if wg else jax.nn.relu(h)
    return sum(jnp.split(times(h, wo).reshape(len(x) * k, -1), k))   # [T, D]
  gates = [w for w in [problem.wg] if w is not None]
  return bench.compiled(layer, (problem.x, problem.wi, problem.wo, *gates), {}, floor)
