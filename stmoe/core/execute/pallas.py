"""Dropless, by the kernels of the platform that the program is compiled for.

Rows are sorted by expert. Grouped matmuls compute the bank's products, and a last kernel sums the rows of
each token. The kernels are Mosaic on TPUs, Mosaic GPU on Hopper, and Triton on other GPUs (`pallas_kernels`).
CPUs have no kernels and run `blocks`. On GPUs, where experts are narrow, the first products load tokens by
the list of rows. The backward loads the gradients of tokens by the same list.

One custom_vjp goes around everything from dispatch to combine. Three things are kept for the backward: x
[G,S,D] as it was before the dispatch, the results of the bank's products but the last, and tables of
integers. Nothing of M rows times D is kept. So a layer of many small experts stores what a dense layer of the
same active width does (SonicMoE, arXiv:2512.14080; `core/transport/grouped.py`). The gradient is exact.

Every device runs the kernels on its own groups, with all experts or (`all_to_all_dropless`) with its own.
Where a mesh also cuts experts' matrices over `model`, the compiler splits the matrices and `blocks` runs
instead. `blocks` also runs for banks that are not made of products.
"""

import typing

import jax
import jax.numpy as jnp

from pallas_kernels import target
from pallas_kernels.combine import api as combine
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.execute import blocks
from stmoe.core.transport import exchange
from stmoe.core.transport import grouped
from stmoe.core.transport import rows as rows_lib
from stmoe.core.transport import stacked
from stmoe.errors import UserError

READS_STACKS = True                      # on CPUs, by `blocks`


def execute(x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None = None) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`, its arrays [E,...] or shared by all experts.
    key:     PRNG key for dropout inside experts, or None; each platform draws other masks from the same key.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  return exchange.on_shards(_local, x, a, experts, key)


def _local(x, a, experts, key, over):
  if exchange.num_devices(over) > 1:
    raise UserError(f"executor 'pallas': the mesh splits the experts over {', '.join(over)}; nearest: "
                    "executor='all_to_all_dropless'")
  return of_device(x, a, experts, key)


def of_device(x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
              key: jax.Array | None) -> jax.Array:
  """Returns y [G,S,D'] of `execute` for the groups and with the experts of one device.

  Where the compiler splits matrices over further devices `blocks` computes y: kernels cannot be split.
  """
  if exchange.automatic() or not grouped.by_products(experts, a.num_experts, x, key):
    return blocks.execute(x, a, experts, key)
  weight = jnp.where(assignment.live(a), a.weight, 0)                # dead weights may be NaN
  with jax.named_scope('dispatch'):
    rows = target.choose(None, cpu=lambda a: blocks.sort(a, experts), tpu=rows_lib.sort, gpu=rows_lib.sort)(a)
  y, passed = _execute(x, weight, experts, a.replace(weight=None), rows, key, stacked.found(experts))
  stacked.pass_on(experts, passed)
  return y


@jax.custom_vjp
def _execute(*arguments):
  return _forward(*arguments)[0]


def _forward(*arguments):
  def on_cpu(*arguments):
    # CPUs keep nothing. As long as nobody reads these zeros, XLA does not make them.
    nothing = jax.tree.map(lambda z: jnp.zeros(z.shape, z.dtype), jax.eval_shape(forward, *arguments)[1])
    return blocks.forward(*arguments), nothing
  saved = blocks.to_save(arguments)
  y, kept = target.choose(None, cpu=on_cpu, tpu=forward, gpu=forward)(*saved)
  return (y, stacked.totals(arguments[-1])), (saved, kept)


def _backward(residuals, cotangents):
  def by_kernels(saved, kept, dy, passed):
    _, _, experts, *_, read = saved
    dx, dweight, dexperts = backward(saved, kept, dy)
    return dx, dweight, *stacked.Gradients(experts, read, passed).of_slices(dexperts)
  on_cpu = lambda saved, kept, dy, passed: blocks.backward(saved, dy, passed)
  *own, passed = target.choose(None, cpu=on_cpu, tpu=by_kernels, gpu=by_kernels)(*residuals, *cotangents)
  (*_, read), _ = residuals
  return *own, None, None, None, stacked.of_read(read, passed)


_execute.defvjp(_forward, _backward)


def forward(x: jax.Array, weight: jax.Array, experts: contract.Bank, a: assignment.Assignment,
            rows: rows_lib.Rows, key: jax.Array | None, read: typing.Any
            ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """Returns (y [G,S,D'], tuple of the [M,F] to keep); the arguments are as for `blocks.forward`.

  Kernels take arrays [E,...] and leave `read`.
  """
  with jax.named_scope('dispatch'):
    ops, xs = _ops(rows), _rows(x, rows)                             # M of D
  with jax.named_scope('experts'):
    y, kept = grouped.forward(experts, xs, ops, key)                 # [M, D']
  with jax.named_scope('combine'):
    return _sum(y, weight, a, rows).astype(x.dtype), kept            # [G, S, D']


def backward(saved: tuple, kept: tuple[jax.Array, ...] | None, dy: jax.Array) -> tuple:
  """Returns the gradients to x [G,S,D], weight f32[G,N] and the bank; `saved` are `forward`'s arguments."""
  x, weight, experts, a, rows, key, _ = saved
  with jax.named_scope('dispatch'):
    ops = _ops(rows)
    xs, dys = _rows(x, rows), _rows(dy.astype(x.dtype), rows)        # M of D, of D'
    gate = weight.reshape(-1)[rows.edge]                             # [M]
  with jax.named_scope('experts'):
    dexperts, dxs, dgate = grouped.backward(experts, xs, ops, key, kept, gate, dys)
  with jax.named_scope('dispatch'):
    dx = _sum(dxs, None, a, rows).astype(x.dtype)                    # [G, S, D]
    dweight = dgate.at[rows.row].get(mode='fill', fill_value=0)     # [G, N]
  return dx, dweight.astype(weight.dtype), dexperts


def _ops(rows):
  """The Kernels of these rows."""
  end, row = jnp.cumsum(rows.sizes), jnp.arange(rows.edge.size, dtype=jnp.int32)
  return grouped.Kernels(rows.sizes, jnp.searchsorted(end, row, side='right').astype(jnp.int32))


def _rows(x, rows):
  """Listed: the token of every row, from x [G,S,D]; rows of no expert have some token."""
  return grouped.Listed(x.reshape(-1, x.shape[-1]), rows.token)


def _sum(y, weight, a, rows):
  """[G,S,D']: for every token the sum of its rows y [M,D'], times `weight` f32[G,N] unless weight is None."""
  if a.choices is None:                                              # any number of edges per token
    y = y.at[rows.row].get(mode='fill', fill_value=0).astype(jnp.float32)              # [G, N, D']
    return rows_lib.add_up(y if weight is None else y * weight[..., None], a)
  groups = a.expert.shape[0]
  by_token = lambda v: v.reshape(groups, a.choices, a.num_tokens).swapaxes(1, 2).reshape(-1, a.choices)
  at = by_token(jnp.where(rows.row < rows.edge.size, rows.row, -1))  # [G*S, k]
  y = combine.combine(y, at, None if weight is None else by_token(weight))
  return y.reshape(groups, a.num_tokens, -1)
