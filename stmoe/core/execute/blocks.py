"""Dropless and portable: the rows of each expert in blocks, as many as it has.

Rows are sorted by expert (`core/rows.py`). A loop over experts holds one loop over blocks
for each of SIZES, whose lengths are known only at run time: an expert's rows, rounded up to
a multiple of the last size, are cut into as many blocks of the first size as fit, the rest
into smaller ones. At most SIZES[-1] - 1 rows per expert are computed in vain.
Drops are honoured (they have no row), and so are any k and any imbalance.

The last block of an expert reaches into the rows of the next one, which are computed later
and then overwrite it. The backward is written by hand: block by block it takes up what the
experts' own backward wants to know of each row (the hidden activation, as in a dense layer)
and adds the gradients of the parameters in place, in the carry of the loops.
"""

import functools

import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import layouts
from stmoe.core import rows as rows_lib

SIZES = (512, 128, 32)                  # each a multiple of the next


def execute(x, a, experts, key=None):
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, every array of it with a leading E axis.
    key:     PRNG key for dropout inside experts (every block draws its own), or None.
  Returns:
    [G,S,D] in the dtype of x; tokens without a live edge get zeros.
  """
  weight = jnp.where(assignment.live(a), a.weight, 0)                # dead weights may be NaN
  with jax.named_scope('dispatch'):
    rows = rows_lib.sort(a)
  return _execute(x, weight, experts, a.replace(weight=None), rows, key)


@jax.custom_vjp
def _execute(x, weight, experts, a, rows, key):
  tokens, table = x.reshape(-1, x.shape[-1]), _padded(rows.token)    # [G*S, D], [M+P]; P = max(SIZES)

  def block(e, bank, row, size, out):
    xb = _take(tokens, _slice(table, row, size))[None]               # [1, B, D]
    return _put(out, _run(key, row, bank, xb)[0], row)

  with jax.named_scope('experts'):
    out = _each_block(rows, experts, block, _no_rows(table, x))      # [M+P+1, D]
  return _combine(out, weight, a, rows, x)


def _forward(x, weight, experts, a, rows, key):
  tokens, table = x.reshape(-1, x.shape[-1]), _padded(rows.token)

  def block(e, bank, row, size, carry):
    out, kept = carry
    xb = _take(tokens, _slice(table, row, size))[None]               # [1, B, D]
    y, pull = jax.vjp(functools.partial(_run, key, row), bank, xb)
    leaves = jax.tree.leaves(pull)
    return _put(out, y[0], row), {i: _put(all, leaves[i][0], row) for i, all in kept.items()}

  with jax.named_scope('experts'):
    kept = {i: jnp.zeros((table.size, *leaf.shape[2:]), leaf.dtype)  # [M+P, ...]
            for i, leaf in _per_row(experts, x, key).items()}
    out, kept = _each_block(rows, experts, block, (_no_rows(table, x), kept))
  return _combine(out, weight, a, rows, x), (x, weight, experts, a, rows, key, out, kept)


def _backward(saved, dy):
  x, weight, experts, a, rows, key, out, kept = saved
  tokens, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
  table, gate = _padded(rows.token), _padded(weight.reshape(-1)[rows.edge])

  def block(e, bank, row, size, carry):
    dx, dgate, dexperts = carry
    at = _slice(table, row, size)
    mine = row + jnp.arange(size) < rows.start[e] + rows.sizes[e]    # the rest is of the next expert
    dyb = _take(dy, at)                                              # [B, D]
    dgb = (_slice(out, row, size).astype(jnp.float32) * dyb).sum(-1)
    dyb = (dyb * jnp.where(mine, _slice(gate, row, size), 0)[:, None]).astype(x.dtype)
    # What was kept takes the place of what this would compute again, which is then never run.
    pull = jax.vjp(functools.partial(_run, key, row), bank, _take(tokens, at)[None])[1]
    leaves, tree = jax.tree.flatten(pull)
    leaves = [_slice(kept[i], row, size)[None] if i in kept else leaf for i, leaf in enumerate(leaves)]
    dbank, dxb = jax.tree.unflatten(tree, leaves)(dyb[None])
    add = lambda all, one: _put(all, _slice(all, e, 1) + one, e)
    return _put(dx, dxb[0], row), _put(dgate, dgb, row), jax.tree.map(add, dexperts, dbank)

  with jax.named_scope('experts'):
    dgate = jnp.zeros(table.size + 1, jnp.float32)                   # [M+P+1]
    carry = jnp.zeros_like(out), dgate, jax.tree.map(jnp.zeros_like, experts)
    dx, dgate, dexperts = _each_block(rows, experts, block, carry)
  with jax.named_scope('dispatch'):
    dx = rows_lib.add_up(_per_edge(dx, rows), a).astype(x.dtype)     # [G, S, D]
  return dx, _per_edge(dgate, rows).astype(weight.dtype), dexperts, None, None, None


_execute.defvjp(_forward, _backward)


def _run(key, row, bank, xb):
  """[1,B,D] -> [1,B,D] by a bank of one expert, for the block that begins at `row`."""
  return bank(layouts.Buckets(xb), None if key is None else jax.random.fold_in(key, row)).x


def _per_row(experts, x, key):
  """Dict of the leaves that `_run`'s backward keeps of each row, by number, as shapes [1,B,...]."""
  def leaves(size):
    xb = jax.ShapeDtypeStruct((1, size, x.shape[-1]), x.dtype)
    one = jax.tree.map(lambda w: jax.ShapeDtypeStruct((1, *w.shape[1:]), w.dtype), experts)
    run = functools.partial(_run, key, 0)
    return jax.tree.leaves(jax.eval_shape(lambda *inputs: jax.vjp(run, *inputs)[1], one, xb))
  first, second = SIZES[:2]
  return {i: a for i, (a, b) in enumerate(zip(leaves(first), leaves(second)))
          if a.shape[:2] == (1, first) and b.shape[:2] == (1, second)}


def _each_block(rows, experts, block, carry):
  """Carries `block(e, bank of e, first row, size, carry)` over all rows, in their order."""
  def expert(e, carry):
    bank = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, e, 0), experts)
    row, left = rows.start[e], (rows.sizes[e] + SIZES[-1] - 1) // SIZES[-1] * SIZES[-1]
    for size in SIZES:
      num = left // size
      body = lambda i, carry, row=row, size=size: block(e, bank, row + i * size, size, carry)
      carry = jax.lax.fori_loop(0, num, body, carry)
      row, left = row + num * size, left - num * size
    return carry
  return jax.lax.fori_loop(0, rows.sizes.size, expert, carry)


def _no_rows(table, x):
  """[M+P+1,D] zeros; the last row stays zero: edges without a row read it."""
  return jnp.zeros((table.size + 1, x.shape[-1]), x.dtype)


def _combine(out, weight, a, rows, x):
  with jax.named_scope('combine'):
    y = _per_edge(out, rows) * weight[..., None]                     # [G, N, D], f32
    return rows_lib.add_up(y, a).astype(x.dtype)                     # [G, S, D]


def _per_edge(out, rows):
  """[G,N,...] f32: the row of every edge, zero where it has none."""
  at = jnp.where(rows.row < rows.edge.size, rows.row, out.shape[0] - 1)
  return _take(out, at).astype(jnp.float32)


def _padded(table):
  return jnp.pad(table, (0, max(SIZES)))


def _take(x, at):
  return x.at[at].get(mode='promise_in_bounds')


def _slice(x, row, size):
  return jax.lax.dynamic_slice_in_dim(x, row, size, 0)


def _put(x, block, row):
  return jax.lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), row, 0)
