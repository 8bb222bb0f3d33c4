"""Dropless and portable: the rows of each expert in blocks, as many as it has.

Rows are sorted by expert (`core/transport/rows.py`), and a loop goes over blocks of these rows. A block has
the rows of one expert, as many as that expert needs (`pallas_kernels/walk.py`).
Drops are honoured (they have no row), and so are any k and any imbalance.

The last block of an expert reaches into the rows of the next expert. Those rows are computed later and
overwrite what the block wrote there. The backward is written by hand (`core/transport/grouped.py`), so that
nothing with a row per edge is ever stored. The backward runs the experts' forward again block by block,
except for the experts' last product. Gradients of the parameters are added in place, in the carry of the
loop. Keeping the products instead costs CPUs as much in copies as it saves.

The loop reads the matrices of one expert at a time, out of the stack of layers where the bank is a slice of
one. There it adds up their gradients, too (`core/transport/stacked.py`).

Where products are small, a turn of the loop has several blocks. All of them are as large as the largest, so
there the rows of the expert that has most come first.
"""

import typing

import jax
import jax.numpy as jnp

from pallas_kernels import walk
from stmoe import axes
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.transport import grouped
from stmoe.core.transport import rows as rows_lib
from stmoe.core.transport import stacked

READS_STACKS = True                      # experts out of the stack of layers, see `parts/stack.py`


def execute(x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None = None) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, its arrays [E,...] or shared by all experts.
    key:     PRNG key for dropout inside experts (every block draws its own), or None.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  weight = jnp.where(assignment.live(a), a.weight, 0)                # dead weights may be NaN
  with jax.named_scope('dispatch'):
    rows = sort(a, experts)
  y, passed = _execute(x, weight, experts, a.replace(weight=None), rows, key, stacked.found(experts))
  stacked.pass_on(experts, passed)
  return y


def _with_totals(*arguments):
  return forward(*arguments), stacked.totals(arguments[-1])


_execute = jax.custom_vjp(_with_totals)


def forward(x: jax.Array, weight: jax.Array, experts: contract.Bank, a: assignment.Assignment,
            rows: rows_lib.Rows, key: jax.Array | None, read: typing.Any) -> jax.Array:
  """Returns y [G,S,D'] of `execute`; weight f32[G,N] is 0 on dead edges, `rows` are the rows of `a`.

  read: `experts` as their arrays lie in memory, see `stacked.found`.
  """
  tokens = x.reshape(-1, x.shape[-1])                                # [G*S, D]
  cut = _cut(rows, experts)
  table = walk.room(cut, rows.token)                                 # [M+P], P for blocks that reach further
  run = lambda bank, x, key: grouped.forward(bank, x, grouped.One(), key)[0]

  def block(i, size):
    row, bank = cut.row[i], _one(experts, read, cut.expert[i])
    y = run(bank, _take(tokens, walk.take(table, row, size)), _fold(key, row))         # [size, D']
    return walk.whole(cut, y)

  put = lambda out, i, y: walk.put(out, y, cut.row[i])
  with jax.named_scope('experts'):
    width = jax.eval_shape(run, jax.eval_shape(_one, experts, read, 0), tokens[:1], key).shape[-1]
    out = walk.each(cut, block, put, jnp.zeros((table.size, width), x.dtype))          # [M+P, D']
  with jax.named_scope('combine'):
    y = _per_edge(out, rows) * weight[..., None]                     # [G, N, D'], f32
    return rows_lib.add_up(y, a).astype(x.dtype)                     # [G, S, D']


def backward(saved: tuple, dy: jax.Array, passed: list) -> tuple:
  """Returns the gradients to x [G,S,D], weight f32[G,N], the bank and totals; see `stacked.Gradients.end`.

  Args:
    saved:  `forward`'s arguments, `read` without totals. dy: [G,S,D'] of y.
    passed: gradients of the totals so far, [L,E,...], None where there is none.
  """
  x, weight, experts, a, rows, key, read = saved
  tokens, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
  cut = _cut(rows, experts)
  table, gate = walk.room(cut, rows.token), walk.room(cut, weight.reshape(-1)[rows.edge])
  per_expert = jax.tree.leaves(axes.per_expert(experts))
  gradients = stacked.Gradients(experts, read, passed)

  def block(i, size):
    row, bank = cut.row[i], _one(experts, read, cut.expert[i])
    of_block = lambda v: walk.take(v, row, size)
    mine = jnp.arange(size) < cut.count[i]                           # further rows are of the next expert
    at = of_block(table)
    # A gate of 0 keeps those rows out of all gradients of the bank.
    dbank, dxb, dgb = grouped.backward(bank, _take(tokens, at), grouped.One(), _fold(key, row), None,
                                       jnp.where(mine, of_block(gate), 0), _take(dy, at).astype(x.dtype))
    return dbank, walk.whole(cut, dxb), walk.whole(cut, dgb)

  def put(carry, i, of_block):
    (dx, dgate, dexperts), (dbank, dxb, dgb), row = carry, of_block, cut.row[i]
    add = lambda own, total, part, at: walk.add(total, part, at) if own else total + part
    with jax.named_scope('weights'):
      dexperts = list(map(add, per_expert, dexperts, jax.tree.leaves(dbank), gradients.rows(cut.expert[i])))
    return walk.put(dx, dxb, row), walk.put(dgate, dgb, row), dexperts

  with jax.named_scope('experts'):
    dgate = jnp.zeros(table.size, jnp.float32)                       # [M+P]
    dx = jnp.zeros((table.size, x.shape[-1]), x.dtype)               # [M+P, D]
    with jax.named_scope('weights'):
      begun = gradients.begin()
    dx, dgate, dexperts = walk.each(cut, block, put, (dx, dgate, begun))
  with jax.named_scope('dispatch'):
    dx = rows_lib.add_up(_per_edge(dx, rows), a).astype(x.dtype)     # [G, S, D]
  return dx, _per_edge(dgate, rows).astype(weight.dtype), *gradients.end(dexperts)


def _backward(saved, cotangents):
  *own, passed = backward(saved, *cotangents)
  return *own, None, None, None, stacked.of_read(saved[-1], passed)


_execute.defvjp(lambda *arguments: (_with_totals(*arguments), to_save(arguments)), _backward)


def to_save(arguments: tuple) -> tuple:
  """Returns the arguments of `forward`, x [G,S,D] among them, as `backward` takes them."""
  return *arguments[:-1], stacked.without_totals(arguments[-1])


def sort(a: assignment.Assignment, experts: contract.Bank) -> rows_lib.Rows:
  """Returns the Rows of `a` in the order that suits the loop over the blocks of these experts."""
  return rows_lib.sort(a, falling=_together(experts, a.expert.size, a.num_experts) > 1)


def _cut(rows, experts):
  """The walk.Blocks of rows that `sort` gave."""
  together = _together(experts, rows.edge.size, rows.sizes.size)
  return walk.blocks(rows.sizes, rows.edge.size, rows.start if together > 1 else None, together)


def _together(experts, rows, num):
  """How many blocks a turn of the loop has, for the largest matrix of an expert."""
  numbers = lambda own, w: w.size // num if own else w.size
  matrices = jax.tree.leaves(jax.tree.map(numbers, axes.per_expert(experts), experts))
  return walk.together(rows, num, max(matrices, default=0))


@jax.named_scope('weights')
def _one(experts, read, e):
  """The bank of expert e alone: arrays of experts [1,...], shared arrays as they are."""
  take = lambda own, w: stacked.one(w, e) if own else w
  return jax.tree.map(take, axes.per_expert(experts), read)


def _per_edge(out, rows):
  """[G,N,...] f32: the row of every edge, zero where an edge has none."""
  at = jnp.where(rows.row < rows.edge.size, rows.row, out.shape[0])
  return out.at[at].get(mode='fill', fill_value=0).astype(jnp.float32)


def _fold(key, row):
  return None if key is None else jax.random.fold_in(key, row)


@jax.named_scope('place')
def _take(x, at):
  return x.at[at].get(mode='promise_in_bounds')
