"""Dropless and portable: the rows of each expert in blocks, as many as it has.

Rows are sorted by expert (`core/rows.py`). A loop over experts holds loops over blocks, whose
lengths are known only at run time (`pallas_kernels/walk.py`).
Drops are honoured (they have no row), and so are any k and any imbalance.

The last block of an expert reaches into the rows of the next one, which are computed later
and then overwrite it. The backward is written by hand: it runs the experts' forward again
block by block, so that nothing of size rows x F is ever stored, and adds the gradients of
the parameters in place, in the carry of the loops.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import walk
from stmoe.core import assignment
from stmoe.core import layouts
from stmoe.core import rows as rows_lib


def execute(x, a, experts, key=None):
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, every array of it with a leading E axis.
    key:     PRNG key for dropout inside experts (every block draws its own), or None.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  weight = jnp.where(assignment.live(a), a.weight, 0)                # dead weights may be NaN
  with jax.named_scope('dispatch'):
    rows = rows_lib.sort(a)
  return _execute(x, weight, experts, a.replace(weight=None), rows, key)


@jax.custom_vjp
def _execute(x, weight, experts, a, rows, key):
  return _forward(x, weight, experts, a, rows, key)[0]


def _forward(x, weight, experts, a, rows, key):
  tokens = x.reshape(-1, x.shape[-1])                                # [G*S, D]
  table = walk.padded(rows.token)                                   # [M+P]
  cuts = walk.sizes(rows.edge.size)

  def expert(i, out):
    e = busy[i]
    bank = _one(experts, e)

    def block(row, size, out):
      xb = _take(tokens, walk.take(table, row, size))                # [B, D]
      return walk.put(out, bank(layouts.Buckets(xb[None]), _fold(key, row)).x[0], row)
    return walk.blocks(cuts, rows.start[e], rows.sizes[e], block, out)

  with jax.named_scope('experts'):
    # The last row stays zero: edges without a row read it.
    out = jnp.zeros((table.size + 1, _width(experts, tokens)), x.dtype)   # [M+P+1, D']
    busy, number = walk.busy(rows.sizes)
    out = jax.lax.fori_loop(0, number, expert, out)
  with jax.named_scope('combine'):
    y = _per_edge(out, rows) * weight[..., None]                     # [G, N, D'], f32
    y = rows_lib.add_up(y, a).astype(x.dtype)                        # [G, S, D']
  return y, (x, weight, experts, a, rows, key, out)


def _backward(saved, dy):
  x, weight, experts, a, rows, key, out = saved
  tokens, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
  table, gate = walk.padded(rows.token), walk.padded(weight.reshape(-1)[rows.edge])
  cuts = walk.sizes(rows.edge.size)

  def expert(e, carry):
    bank, end = _one(experts, e), rows.start[e] + rows.sizes[e]
    add = lambda all, one: walk.put(all, walk.take(all, e, 1) + one, e)

    def block(row, size, carry):
      dx, dgate, dexperts = carry
      at = walk.take(table, row, size)
      mine = row + jnp.arange(size) < end                            # the rest is of the next expert
      xb, dyb = _take(tokens, at), _take(dy, at)                     # [B, D], [B, D']
      dgb = (walk.take(out, row, size).astype(jnp.float32) * dyb).sum(-1)
      dyb = (dyb * jnp.where(mine, walk.take(gate, row, size), 0)[:, None]).astype(x.dtype)
      _, pull = jax.vjp(lambda bank, xb: bank(layouts.Buckets(xb), _fold(key, row)).x, bank, xb[None])
      dbank, dxb = pull(dyb[None])
      return walk.put(dx, dxb[0], row), walk.put(dgate, dgb, row), jax.tree.map(add, dexperts, dbank)

    return walk.blocks(cuts, rows.start[e], rows.sizes[e], block, carry)

  with jax.named_scope('experts'):
    dgate = jnp.zeros(table.size + 1, jnp.float32)                   # [M+P+1]
    dx = jnp.zeros((table.size + 1, x.shape[-1]), x.dtype)           # [M+P+1, D]
    carry = dx, dgate, jax.tree.map(jnp.zeros_like, experts)
    dx, dgate, dexperts = jax.lax.fori_loop(0, a.num_experts, expert, carry)
  with jax.named_scope('dispatch'):
    dx = rows_lib.add_up(_per_edge(dx, rows), a).astype(x.dtype)     # [G, S, D]
  return dx, _per_edge(dgate, rows).astype(weight.dtype), dexperts, None, None, None


_execute.defvjp(_forward, _backward)


def _width(experts, tokens):
  """D', the width of the rows that the bank makes of tokens [.,D]."""
  run = lambda bank, row: bank(layouts.Buckets(row[None])).x
  return jax.eval_shape(run, jax.eval_shape(_one, experts, 0), tokens[:1]).shape[-1]


def _one(experts, e):
  """The bank of expert e alone: every array [1,...]."""
  return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, e, 0), experts)


def _per_edge(out, rows):
  """[G,N,...] f32: the row of every edge, zero where it has none."""
  at = jnp.where(rows.row < rows.edge.size, rows.row, out.shape[0] - 1)
  return _take(out, at).astype(jnp.float32)


def _fold(key, row):
  return None if key is None else jax.random.fold_in(key, row)


def _take(x, at):
  return x.at[at].get(mode='promise_in_bounds')
