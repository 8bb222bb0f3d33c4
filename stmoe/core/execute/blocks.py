"""Dropless and portable: the rows of each expert in blocks, as many as it has.

Rows are sorted by expert (`core/rows.py`). A loop over experts holds one loop over blocks
for each of SIZES, whose lengths are known only at run time: an expert's rows, rounded up to
a multiple of the last size, are cut into as many blocks of the first size as fit, the rest
into smaller ones. At most SIZES[-1] - 1 rows per expert are computed in vain.
Drops are honoured (they have no row), and so are any k and any imbalance.

The last block of an expert reaches into the rows of the next one, which are computed later
and then overwrite it. The backward is written by hand: it runs the experts' forward again
block by block, so that nothing of size rows x F is ever stored, and adds the gradients of
the parameters in place, in the carry of the loops.
"""

import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import layouts
from stmoe.core import rows as rows_lib

SIZES = (512, 256, 128, 32)             # each a multiple of the next
FEW = 64                                # up to so many rows, as in decoding, each is a block: none in vain


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
  table = _padded(rows.token)                                        # [M+P], P = max(SIZES)

  def expert(i, out):
    e = busy[i]
    bank = _one(experts, e)

    def block(row, size, out):
      xb = _take(tokens, _slice(table, row, size))                   # [B, D]
      return _put(out, bank(layouts.Buckets(xb[None]), _fold(key, row)).x[0], row)
    return _each_block(rows, e, block, out)

  with jax.named_scope('experts'):
    # The last row stays zero: edges without a row read it.
    out = jnp.zeros((table.size + 1, _width(experts, tokens)), x.dtype)   # [M+P+1, D']
    busy, number = _busy(rows)
    out = jax.lax.fori_loop(0, number, expert, out)
  with jax.named_scope('combine'):
    y = _per_edge(out, rows) * weight[..., None]                     # [G, N, D'], f32
    y = rows_lib.add_up(y, a).astype(x.dtype)                        # [G, S, D']
  return y, (x, weight, experts, a, rows, key, out)


def _backward(saved, dy):
  x, weight, experts, a, rows, key, out = saved
  tokens, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
  table, gate = _padded(rows.token), _padded(weight.reshape(-1)[rows.edge])

  def expert(e, carry):
    bank, end = _one(experts, e), rows.start[e] + rows.sizes[e]
    add = lambda all, one: _put(all, _slice(all, e, 1) + one, e)

    def block(row, size, carry):
      dx, dgate, dexperts = carry
      at = _slice(table, row, size)
      mine = row + jnp.arange(size) < end                            # the rest is of the next expert
      xb, dyb = _take(tokens, at), _take(dy, at)                     # [B, D], [B, D']
      dgb = (_slice(out, row, size).astype(jnp.float32) * dyb).sum(-1)
      dyb = (dyb * jnp.where(mine, _slice(gate, row, size), 0)[:, None]).astype(x.dtype)
      _, pull = jax.vjp(lambda bank, xb: bank(layouts.Buckets(xb), _fold(key, row)).x, bank, xb[None])
      dbank, dxb = pull(dyb[None])
      return _put(dx, dxb[0], row), _put(dgate, dgb, row), jax.tree.map(add, dexperts, dbank)

    return _each_block(rows, e, block, carry)

  with jax.named_scope('experts'):
    dgate = jnp.zeros(table.size + 1, jnp.float32)                   # [M+P+1]
    dx = jnp.zeros((table.size + 1, x.shape[-1]), x.dtype)           # [M+P+1, D]
    carry = dx, dgate, jax.tree.map(jnp.zeros_like, experts)
    dx, dgate, dexperts = jax.lax.fori_loop(0, a.num_experts, expert, carry)
  with jax.named_scope('dispatch'):
    dx = rows_lib.add_up(_per_edge(dx, rows), a).astype(x.dtype)     # [G, S, D]
  return dx, _per_edge(dgate, rows).astype(weight.dtype), dexperts, None, None, None


_execute.defvjp(_forward, _backward)


def _each_block(rows, e, block, carry):
  """Carries `block(first row, size, carry)` over all rows of expert e, large blocks first."""
  sizes = (1,) if rows.edge.size <= FEW else SIZES
  row, left = rows.start[e], (rows.sizes[e] + sizes[-1] - 1) // sizes[-1] * sizes[-1]
  for size in sizes:
    num = left // size
    body = lambda i, carry, row=row, size=size: block(row + i * size, size, carry)
    carry = jax.lax.fori_loop(0, num, body, carry)
    row, left = row + num * size, left - num * size
  return carry


def _width(experts, tokens):
  """D', the width of the rows that the bank makes of tokens [.,D]."""
  run = lambda bank, row: bank(layouts.Buckets(row[None])).x
  return jax.eval_shape(run, jax.eval_shape(_one, experts, 0), tokens[:1]).shape[-1]


def _busy(rows):
  """(i32[E], i32[]): the experts that have rows first, and their number; others' weights are not read."""
  some = rows.sizes > 0
  return jnp.argsort(~some, stable=True), some.sum(dtype=jnp.int32)


def _one(experts, e):
  """The bank of expert e alone: every array [1,...]."""
  return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, e, 0), experts)


def _per_edge(out, rows):
  """[G,N,...] f32: the row of every edge, zero where it has none."""
  at = jnp.where(rows.row < rows.edge.size, rows.row, out.shape[0] - 1)
  return _take(out, at).astype(jnp.float32)


def _fold(key, row):
  return None if key is None else jax.random.fold_in(key, row)


def _padded(table):
  return jnp.pad(table, (0, max(SIZES)))


def _take(x, at):
  return x.at[at].get(mode='promise_in_bounds')


def _slice(x, row, size):
  return jax.lax.dynamic_slice_in_dim(x, row, size, 0)


def _put(x, block, row):
  return jax.lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), row, 0)
