"""MultiHash: a feed-forward layer in segments, each chosen by a hash function of its own."""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import lookup
from stmoe import ranges
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.layers import moe


class Segment(nnx.Module):
  """One hash function, and its K pieces of both matrices: [D, F/N] and [F, D/N]; executors run the pieces."""

  def __init__(self, router: contract.Router, inward: contract.Bank, outward: contract.Bank, d_model: int,
               group_size: int | None):
    self.router = router
    self.experts = nnx.List([inward, outward])
    self.d_model = d_model
    self.group_size = group_size


class MultiHash(nnx.Module):
  """N hash functions, each choosing 1/N of both matrices (Hash Layers, arXiv:2106.04426).

  v = act(concat_m A[m, h_m(token)] x), y = concat_m C[m, h_m(token)] v. The layer computes one feed-forward
  network and holds K of them, which makes K^N different networks. N = 1 is `moe` with the experts `mlp`. The
  interface is that of `moe.Moe`.

  Args:
    d_model:    D.
    router:     recipe of a `hash` router; hash function m has its seed plus m.
    experts:    recipe of the experts `linear`, d_ff being F. Each segment gets a bank of its own for each
      matrix. (The paper does not state whether segments share banks; own banks give its counts.)
    num_hashes: N, a divisor of D and F.
    activation: name of a function, see `core/units/activations.py`.
    dropout_rate: on the hidden activation, in training.
    executor, group_size: see `moe.Moe`.
  Its Aux has the load of the N * K segments, one hash function after the other.
  """

  def __init__(self, d_model: int, *, router: ranges.Named('router'), experts: ranges.Named('experts'),
               num_hashes: ranges.Count = 2, activation: ranges.Activation = 'relu',
               dropout_rate: ranges.Below1 = 0.0, executor: ranges.Spelled('executor') = 'gather',
               group_size: ranges.Count | None = None, rngs):
    d_ff = experts.keywords['d_ff']
    common = errors.divisors(math.gcd(d_model, d_ff))
    if num_hashes not in common:
      raise UserError(f'layer multihash: num_hashes={num_hashes} does not divide both d_model={d_model} and '
                      f'd_ff={d_ff}; nearest: {errors.around(num_hashes, common)}')
    routers = [checked.built(router, d_model, rngs)]
    if contract.offered(routers[0], 'seeded') is None:
      raise UserError(f'layer multihash: {checked.file(routers[0])} is no hash function with a seed; '
                      "nearest: router.name='hash'")
    if num_hashes > 1 and not routers[0].seeded:
      raise UserError(f'layer multihash: {num_hashes} hash functions of kind={routers[0].kind!r} would be '
                      "the same (they do not depend on a seed); nearest: kind='random' without a table")
    routers += [router(d_model, seed=routers[0].seed + m, rngs=rngs) for m in range(1, num_hashes)]

    def bank(width, d_ff):
      return banks.made(experts, width, num_experts=routers[0].num_experts, out=d_ff, d_ff=d_ff, rngs=rngs)
    self.segments = nnx.List([Segment(r, bank(d_model, d_ff // num_hashes), bank(d_ff, d_model // num_hashes),
                                      d_model, group_size) for r in routers])
    self.activation = activation
    self.dropout_rate = dropout_rate
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], Aux, carry) for x [B,T,D]."""
    groups = moe.grouped(self, x, ctx, carry)
    routed = [groups.route(segment.router, f'router_{m}') for m, segment in enumerate(self.segments)]
    assigned = [r.assignment for r in routed]
    inward, outward = zip(*[segment.experts for segment in self.segments])
    h = concatenated(groups.x, assigned, inward, groups.execute)     # [G, S, F]
    h = activations.named(self.activation)(h)
    h = noise.dropout(h, self.dropout_rate, groups.key('hidden'))
    y = concatenated(h, assigned, outward, groups.execute)           # [G, S, D]
    return groups.tokens(y), _together([r.aux for r in routed]), carry


def concatenated(x: jax.Array, assigned: typing.Sequence[contract.Assigned],
                 banks: typing.Sequence[contract.Bank], execute: contract.Executor) -> jax.Array:
  """Returns [G,S,F]: what each bank [.,D] -> [.,F/N] makes of x [G,S,D], side by side.

  Args:
    assigned: the Assignment of each bank.
    execute:  an executor.
  """
  return jnp.concatenate([execute(x, a, bank) for a, bank in zip(assigned, banks)], axis=-1)


def _together(aux):
  """One Aux: loads side by side, numbers averaged over the hash functions, records by their number."""
  metrics = {name: sum(a.metrics[name] for a in aux) / len(aux) for name in aux[0].metrics}
  records = {f'{m}.{name}': value for m, a in enumerate(aux) for name, value in a.records.items()}
  load = jnp.concatenate([a.load for a in aux])
  return contract.Aux(losses={}, load=load, metrics=metrics, records=records)
