"""Union of Experts in attention: heads are experts, each of which sees the tokens selected for it
(arXiv:2503.02495)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.attention import recall
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate as gates
from stmoe.core import metrics
from stmoe.core import noise
from stmoe.core.units import shards
from stmoe.parts import cache as caches
from stmoe.parts import rotary


class Heads(nnx.Module):
  """The projections of H heads, arrays [H,...]; a part of the tokens passes each."""

  def __init__(self, d_model: int, num_heads: int, width: int, use_bias: bool, init_scale: float,
               share: float, rngs: nnx.Rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'normal', batch_axis=(0,))
    # The sum over heads is part of the fan.
    outward = nnx.initializers.variance_scaling(init_scale / num_heads, 'fan_in', 'normal', batch_axis=(0,))
    inward = lambda: axes.param(init, (num_heads, d_model, width), 'heads', 'embed', 'kv', rngs=rngs)
    self.wq, self.wk, self.wv = inward(), inward(), inward()
    self.wo = axes.param(outward, (num_heads, width, d_model), 'heads', 'kv', 'embed', rngs=rngs)
    bias = lambda wide, name: axes.param(nnx.initializers.zeros, (num_heads, wide), 'heads', name,
                                         rngs=rngs) if use_bias else None
    self.bq, self.bk, self.bv = (bias(width, 'kv') for _ in range(3))
    self.bo = bias(d_model, 'embed')
    self.share_of_rows = share

  def project(self, x: jax.Array, name: str) -> jax.Array:
    """Returns [B,H,M,P] of x [B,H,M,D], or of x [B,M,D] for all heads; name: 'q', 'k' or 'v'."""
    w, b = getattr(self, f'w{name}')[...], getattr(self, f'b{name}')
    y = jnp.einsum('bhmd,hdp->bhmp' if x.ndim == 4 else 'bmd,hdp->bhmp', x, w.astype(x.dtype))
    return y if b is None else y + b[...].astype(x.dtype)[:, None]

  def outward(self, y: jax.Array) -> jax.Array:
    """Returns f32[B,H,M,D] of y [B,H,M,P]."""
    y = jnp.einsum('bhmp,hpd->bhmd', y, self.wo[...].astype(y.dtype), preferred_element_type=jnp.float32)
    return y if self.bo is None else y + self.bo[...][:, None]


class UnionOfExperts(nnx.Module):
  """sum_h g_h o_h: head h attends among the tokens that are selected for it, and adds to these alone.

  Args:
    d_model, num_heads: D and H.
    head_dim:   width of the part of queries and keys that rotary positions turn; it comes first.
    nope_dim:   width of the part that rotary positions do not turn; P = head_dim + nope_dim.
    k:          heads that a token scores above 0; None = H / 2.
    select:     'data': head h takes its m best tokens of a row, chosen among later ones, too; 'causal': the
      first m that score it above 0. In decoding no one is left out.
    share:      m / T, m rounded down.
    positions:  'compacted': 0, 1, ... in the head's own list (released language model), or 'true'.
    rotary_base: of compacted positions.
    over, capacity, epsilon, gate, allow_causal: see `routers/union_of_experts.py`.
    dropout_rate: on values, in training, with one mask for all queries.
    init_scale: variance scale s of sqrt(s / fan_in).
    use_bias:   with biases of all projections, initially 0; that of the output is added by every head.
  Differs: m of the released code is the largest number of positive scores of a batch. A memory of earlier
    rows is not built. Of packed rows the m tokens are those of a row. 'causal' is ours.
  """

  def __init__(self, d_model: int, *, num_heads, head_dim, nope_dim: ranges.Natural = 0,
               k: ranges.Count | None = None, select: ranges.Choice(*shards.SELECT) = 'data',
               share: ranges.PartOf1 = 0.5, positions: ranges.Choice('compacted', 'true') = 'compacted',
               rotary_base: ranges.Above1 = 1e4, over: ranges.Choice(*shards.OVER) = 'experts',
               gate: ranges.Choice(*shards.GATES) = 'none', capacity: ranges.Positive = 1.0,
               epsilon: ranges.Positive = 1e-8, allow_causal: ranges.Flag = False,
               use_bias: ranges.Flag = False, dropout_rate=0.0, init_scale=1.0, rngs):
    self.k = k or max(1, num_heads // 2)
    choices.check_k('of attention union_of_experts', self.k, num_heads)
    shards.check_gate('attention union_of_experts', select, over, gate)
    self.heads = Heads(d_model, num_heads, head_dim + nope_dim, use_bias, init_scale, share, rngs)
    self.router_w, self.router_b = shards.weights(d_model, num_heads, gate, rngs)
    self.num_heads, self.head_dim, self.width = num_heads, head_dim, head_dim + nope_dim
    self.select, self.share, self.positions, self.rotary_base = select, share, positions, rotary_base
    self.over, self.gate, self.capacity, self.epsilon = over, gate, capacity, epsilon
    self.allow_causal, self.dropout_rate = allow_causal, dropout_rate
    self.undecodable = shards.leak('union_of_experts', select)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], Aux, carry) for x [B,T,D].

    A cache in `carry` is extended at visible.slot. Raises UserError for a selection that leaks.
    """
    shards.check('attention union_of_experts', ctx, self.select, self.allow_causal)
    with jax.named_scope('route'):
      logits, g = self.scores(x, ctx.mask)
    if ctx.alone:
      return self._all(x, g, logits, ctx, carry)
    at, live = self.places(g, ctx.mask)                              # [B, H, m]
    key = ctx.key if ctx.train else None
    return self.attend(x, g, at, live, ctx.visible, key), self._report(logits, g, at, live, ctx), carry

  def scores(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (logits, g), f32[B,T,H] both, of x [B,T,D]: how tokens score heads; see `shards.scores`."""
    logits = gates.logits(x, self.router_w[...]) + self.router_b[...]
    probs = jax.nn.softmax(logits, axis=-1)
    return logits, shards.scores(probs, mask, self.k, self.over, self.capacity, self.epsilon)

  def places(self, g: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (places i32[B,H,m], ascending, live bool[B,H,m]) of the tokens that every head takes.

    Args:
      g: f32[B,T,H]; mask: bool[B,T] real tokens.
    """
    eligible, length = self._eligible(g, mask), g.shape[1]           # [B, T, H]
    if self.select == 'causal':                                      # earlier tokens rank higher
      g = eligible * jnp.arange(length, 0, -1.0)[:, None]
    at = shards.selected(g, mask, shards.places(self.share, length))
    return at, jnp.take_along_axis(eligible.swapaxes(1, 2), at, axis=2)

  def attend(self, x: jax.Array, g: jax.Array, at: jax.Array, live: jax.Array, seen: typing.Any,
             key: jax.Array | None = None) -> jax.Array:
    """Returns y [B,T,D]: every head's attention among its tokens, added up at their places.

    Args:
      x, g: [B,T,D] and f32[B,T,H]; at, live: of `places`; seen: a `visible.Visible`; key: of dropout.
    """
    row = jnp.arange(len(x))[:, None, None]
    rows = x[row, at]                                                # [B, H, m, D]
    q, k, v = (self.heads.project(rows, name) for name in 'qkv')     # [B, H, m, P]
    rank = jnp.cumsum(live, axis=-1) - 1                             # [B, H, m]
    q, k = (self._turned(a, rank, seen.turn, (row, at)) for a in (q, k))
    pairs = (at[..., :, None], at[..., None, :])                     # [B, H, m, m]
    mask = seen.mask[row[..., None] if len(seen.mask) > 1 else 0, 0, *pairs] & live[:, :, None]
    head = jnp.arange(self.num_heads)[:, None, None]
    bias = None if seen.bias is None else seen.bias[0, head, *pairs]
    v = noise.dropout(v, self.dropout_rate, key, broadcast_dims=(-1,))
    o = self.heads.outward(self._mixed(q, k, v, mask, bias))         # [B, H, m, D]
    weight = jnp.take_along_axis(self._weights(g), at, axis=2)
    o = jnp.where(live, weight, 0)[..., None] * o
    return jnp.zeros(x.shape, jnp.float32).at[row, at].add(o).astype(x.dtype)

  def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
    """Returns an empty cache of `length` places: k, turned already, and v [B,H,K,P], chosen bool[B,H,K]."""
    chosen = jnp.zeros((batch, self.num_heads, length), bool)
    return recall.empty(batch, self.num_heads, length, self.width, dtype) | dict(chosen=chosen)

  def _all(self, x, g, logits, ctx, carry):
    """Every head computes all tokens and sees those that chose it: `attend` with room for all."""
    seen, cache = ctx.visible, carry.get(contract.CACHE)
    chosen = self._eligible(g, ctx.mask)                             # [B, T, H]
    before = 0 if cache is None else cache['chosen'].sum(axis=2, keepdims=True)      # [B, H, 1]
    rank = before + jnp.cumsum(chosen, axis=1).swapaxes(1, 2) - 1    # [B, H, T]
    at = (jnp.arange(len(x))[:, None, None], jnp.arange(x.shape[1])[None, None])
    q, k, v = (self.heads.project(x, name) for name in 'qkv')        # [B, H, T, P]
    q, k = (self._turned(a, rank, seen.turn, at) for a in (q, k))
    known = dict(k=k, v=v, chosen=chosen.swapaxes(1, 2))
    if cache is not None:
      known = caches.extended(cache, known, seen.slot, recall.PLACES)
      carry = contract.joined(carry, known)
    mask = seen.mask & known['chosen'][:, :, None]                   # [B, H, T, K]
    y = self._mixed(q, known['k'], known['v'], mask, seen.bias)
    weight = jnp.where(chosen.swapaxes(1, 2), self._weights(g), 0)   # [B, H, T]
    y = jnp.sum(weight[..., None] * self.heads.outward(y), axis=1).astype(x.dtype)
    every = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), weight.shape)
    return y, self._report(logits, g, every, chosen.swapaxes(1, 2), ctx), carry

  def _eligible(self, g, mask):
    """bool[B,T,H]: tokens that a head may take, of scores g f32[B,T,H] and mask bool[B,T]."""
    return mask[..., None] & ((g > 0) | (self.select == 'data'))

  def _weights(self, g):
    """What outputs are weighed by, f32[B,H,T], of scores g f32[B,T,H]."""
    return shards.GATES[self.gate](g, self.k / self.num_heads).swapaxes(1, 2)

  def _turned(self, y, rank, turn, at):
    """y [B,H,M,P] turned by the ranks i32[B,H,M], or by the true positions of tokens (row, place) `at`."""
    if turn is None:
      return y
    if self.positions == 'compacted':
      rows = rank.reshape(len(rank), -1)
      turn = tuple(a.reshape(*rank.shape, -1) for a in rotary.table(rows, self.head_dim, self.rotary_base))
    else:
      turn = tuple(a[at[0] if len(a) > 1 else 0, at[1], 0] for a in turn)            # [B, H, M, P/2]
    return rotary.rotate(y, turn)

  def _mixed(self, q, k, v, mask, bias):
    """[B,H,M,P], the values v [B,H,K,P] that queries see; a query that sees none gets their mean."""
    logits = jnp.einsum('bhmp,bhkp->bhmk', q, k, preferred_element_type=jnp.float32) * self.width ** -0.5
    logits = logits if bias is None else logits + bias
    probs = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1).astype(v.dtype)
    return jnp.einsum('bhmk,bhkp->bhmp', probs, v)

  def _report(self, logits, g, at, live, ctx):
    """The Aux of what heads take: tokens at places `at` where `live`."""
    wanted = shards.edges(at, jax.lax.stop_gradient(g))
    wanted = assignment.kill(wanted, live.reshape(len(at), -1))
    chosen = jnp.sum(g > 0, dtype=jnp.float32)
    numbers = metrics.routing(logits, jax.nn.softmax(logits, axis=-1), wanted,
                              assignment.cap(wanted, g.shape[1]), ctx.mask, ctx.tokens)
    live, load = assignment.live(wanted), metrics.load(wanted)
    met = jnp.sum(live & (wanted.weight > 0), dtype=jnp.float32)
    unmet = lambda number: contract.mean(number - met, number)
    # What is chosen is not the load: heads fill up, and leave out what they have no room for.
    shares = dict(drop_frac=unmet(chosen), filled_frac=unmet(load.sum()),
                  router_conf=contract.mean(jnp.sum(jnp.where(live, wanted.weight, 0)), load.sum()))
    return contract.Aux(losses={}, load=load, statistics=shares,
                        metrics=numbers | {name: share.value for name, share in shares.items()})
