"""Read-ME: experts are masks of one network, and one small network on the text chooses for all layers.

(arXiv:2410.19123; the number is unverified). A token's expert is known before the first layer runs. The
router learns which expert has the units that are largest in each layer.
"""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import checked
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.transport import layouts
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.experts import read_me as experts
from stmoe.layers import moe
from stmoe.parts import linear
from stmoe.parts import norm as norms
from stmoe.parts import rotary

LEVELS = 5                               # units count by how many thresholds they are above
SHARPNESS, HARD, SMOOTHING = 10.0, 0.75, 0.5             # of the loss
LOGITS, KNOWN = 'read_me_logits', 'read_me_known'        # names in the carry


def private(mask: jax.Array) -> jax.Array:
  """Returns f32[E,F], the units of masks f32[E,F] that not all experts have."""
  return mask - jnp.min(mask, axis=0)


def distances(hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[...,E], how much of the largest activations the private units of each expert hold.

  A unit weighs 1 / (3 N) for each of five ranks that it is strictly above. Ranks are N - 1, 4 N / 5, 3 N / 5,
  2 N / 5 and N / 5, in falling order from 0. N is the number of private units of the first expert.

  Args:
    hidden: f32[...,F] activations with their signs; mask: f32[E,F] private units.
  """
  number = jnp.sum(mask[0]).astype(jnp.int32)                        # N
  levels = jnp.arange(1, LEVELS)[::-1] * number // LEVELS
  ranks = jnp.maximum(jnp.concatenate([number[None] - 1, levels]), 0)
  borders = jnp.take(-jnp.sort(-hidden, axis=-1), ranks, axis=-1)    # [..., 5]
  above = jnp.sum(hidden[..., None, :] > borders[..., None], axis=-2, dtype=jnp.float32)
  return above @ mask.T / (3 * jnp.maximum(number, 1))


def centred(distance: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[...,E], ten times a distance f32[...,E] less its one mean over real tokens and experts.

  The mean is one number: `router_loss` is the same without it, hence the same in microbatches.
  """
  count = jnp.maximum(jnp.sum(mask), 1) * distance.shape[-1]
  return SHARPNESS * (distance - jnp.sum(jnp.where(mask[..., None], distance, 0)) / count)


def router_loss(logits: jax.Array, distance: jax.Array, hard: float = HARD,
                smoothing: float = SMOOTHING) -> jax.Array:
  """Returns f32[...], the cross entropy of what distances say: of the largest, and of their softmax.

  Args:
    logits:    f32[...,E] of the router; distance: f32[...,E] of `centred`.
    hard:      weight of the largest; the softmax has the rest of 1.
    smoothing: part of the largest one's weight that all experts share.
  """
  logs = jax.nn.log_softmax(logits, axis=-1)
  label = jax.nn.one_hot(jnp.argmax(distance, axis=-1), logs.shape[-1])
  smooth = (1 - smoothing) * label + smoothing / logs.shape[-1]
  target = hard * smooth + (1 - hard) * jax.nn.softmax(distance, axis=-1)
  return -jnp.sum(target * logs, axis=-1)


class Linear(nnx.Module):
  """x w + b of x [...,in]."""

  def __init__(self, fan_in: int, fan_out: int, *, rngs):
    init, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
    self.w = axes.param(init, (fan_in, fan_out), 'unmodeled', 'unmodeled', rngs=rngs)
    self.b = axes.param(zeros, (fan_out,), 'unmodeled', rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [...,out]."""
    return linear.apply(x, self.w, self.b)


class Block(nnx.Module):
  """x + o(attention(rms x)), then x + W2 act(W1 rms x); without heads the second alone."""

  def __init__(self, width: int, heads: int, activation: str, epsilon: float, *, rngs):
    names = ('q', 'k', 'v', 'o') if heads else ()
    self.attention = nnx.Dict({name: Linear(width, width, rngs=rngs) for name in names})
    self.attention_norm = norms.RMSNorm(width, epsilon=epsilon, rngs=rngs) if heads else None
    self.norm = norms.RMSNorm(width, epsilon=epsilon, rngs=rngs)
    self.activation = activation
    self.first, self.second = Linear(width, width, rngs=rngs), Linear(width, width, rngs=rngs)
    self.heads = heads

  def __call__(self, x: jax.Array, turn: tuple, seen: jax.Array, divisor: float) -> jax.Array:
    """Returns [G,S,W] for x [G,S,W]; turn: of `rotary.table`; seen: bool[G,S,S] what a token attends to."""
    if self.attention_norm is not None:
      y, own = self.attention_norm(x), self.attention
      q, k, v = (own[name](y).reshape(*x.shape[:2], self.heads, -1) for name in 'qkv')     # [G, S, H, P]
      q, k = rotary.rotate(q, turn), rotary.rotate(k, turn)
      scores = jnp.einsum('gshp,gthp->ghst', q, k, precision='highest') / divisor
      weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
      y = jnp.einsum('ghst,gthp->gshp', weights, v, precision='highest').reshape(x.shape)
      x = x + own['o'](y)
    return x + self.second(activations.named(self.activation)(self.first(self.norm(x))))


class Net(nnx.Module):
  """A small causal network from token ids to logits of experts."""

  def __init__(self, vocab_size: int, width: int, heads: int, depth: int, num_experts: int, divisor: float, *,
               activation: str = 'silu', base: float = 10000.0, epsilon: float = 1e-6, rngs):
    init = nnx.initializers.normal(0.02)
    self.embed = axes.param(init, (vocab_size, width), 'unmodeled', 'unmodeled', rngs=rngs)
    self.blocks = nnx.List([Block(width, heads, activation, epsilon, rngs=rngs) for _ in range(depth)])
    self.norm = norms.RMSNorm(width, epsilon=epsilon, rngs=rngs)
    self.out = Linear(width, num_experts, rngs=rngs)
    self.heads = heads
    self.divisor = divisor
    self.base = base

  def __call__(self, ids: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    """Returns f32[G,S,E] for ids, positions and segments i32[G,S]; tokens see what is before them."""
    x = self.embed[...][ids]                                         # [G, S, W]
    sequence = balance.sequences(segments, positions)
    same = sequence[:, :, None] == sequence[:, None]                 # [G, S, S]
    seen = same & (positions[:, :, None] >= positions[:, None])
    turn = rotary.table(positions, x.shape[-1] // max(self.heads, 1), self.base)
    for block in self.blocks:
      x = block(x, turn, seen, self.divisor)
    return self.out(self.norm(x))


class PreGate(nnx.Module):
  """The router of a `ReadMe`: the layers of a stack have one net, which runs in the lowest of them."""

  k, normalize_gates, needs_loss = 1, False, ('pregate',)

  def __init__(self, net: Net, num_experts: int):
    self.net = net
    self.ties = 'read_me', ('net',)
    self.num_experts = num_experts
    reason = 'its router attends to the text before a token; nearest: heads=0'
    self.undecodable = reason if net.heads else None

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D], which is not looked at."""
    logits = jax.lax.cond(carry[KNOWN].all(), lambda: carry[LOGITS],
                          lambda: self.net(ctx.ids, ctx.positions, ctx.segments))
    probs = jax.nn.softmax(logits, axis=-1)
    choice = choices.top(logits, 1)                                  # [G, S, 1]
    edges = assignment.from_choices(choice, jnp.ones(choice.shape), self.num_experts)
    edges = assignment.kill_padding(edges, ctx.mask)
    a = assignment.cap(edges, edges.num_tokens)
    aux = contract.Aux(losses={}, load=metrics.load(edges),
                       metrics=metrics.routing(logits, probs, edges, a, ctx.mask, ctx.tokens))
    return contract.Routed(a, aux, carry | {LOGITS: logits, KNOWN: jnp.ones_like(carry[KNOWN])})


class ReadMe(nnx.Module):
  """A network of which a token passes the units of one expert, the same expert in all layers of the stack.

  `stmoe factorise RUN read_me` makes such layers of dense ones. Training alternates: groups of the router and
  of the rest take turns (`train/groups.py`).

  Args:
    d_model, d_ff: D and F.
    num_experts: E.
    vocab_size:  of the ids that the router reads.
    width, heads, depth: of the router; heads=0: without attention, a token's id alone decides.
    divisor:     of the router's attention scores, not the root of a head's width.
    activation, gated, use_bias, share, dropout_rate, init_scale: see `experts/read_me.py`.
    executor, group_size: see `moe.Moe`; a group holds whole rows.
  Losses: pregate; the router is scored against every layer, summed over layers.
  Differs: the router's sizes are not known (u), nor its form without attention (u).
  """

  def __init__(self, d_model: int, *, d_ff: ranges.Count, num_experts: ranges.Count = 7,
               vocab_size: ranges.Count, width: ranges.Count = 64, heads: ranges.Natural = 4,
               depth: ranges.Count = 2, divisor: ranges.Positive = 1.0,
               activation: ranges.Activation = 'silu', gated: ranges.Flag = True,
               use_bias: ranges.Flag = False, share: ranges.PartOf1 = 0.5,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               executor: ranges.Spelled('executor') = 'gather', group_size: ranges.Count | None = None, rngs):
    if heads and width % (2 * heads):
      raise UserError(f'layer read_me: width={width} of heads={heads}, which turn pairs; nearest: width='
                      f'{max(width // (2 * heads), 1) * 2 * heads}')
    self.experts = experts.ReadMe(d_model, num_experts=num_experts, d_ff=d_ff, activation=activation,
                                  gated=gated, use_bias=use_bias, share=share, dropout_rate=dropout_rate,
                                  init_scale=init_scale, rngs=rngs)
    net = Net(vocab_size, width, heads, depth, num_experts, divisor, rngs=rngs)
    self.router = PreGate(net, num_experts)
    self.d_model = d_model
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns what is known of a token's expert at the bottom, nothing: logits f32[B,T,E] of zeros."""
    return {LOGITS: jnp.zeros((*x.shape[:2], self.router.num_experts)), KNOWN: jnp.zeros(x.shape[:2], bool)}

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    batch, length, _ = x.shape
    groups, size, execute = moe.grouping(self, ctx, batch, length)
    regroup = lambda a: a.reshape(groups, size, *a.shape[2:])
    ungroup = lambda a: a.reshape(batch, length, *a.shape[2:])
    grouped, inside = axes.constrain(regroup(x), 'group', None, None), ctx.fold('router').group(groups, size)
    with jax.named_scope('route'):
      routed = checked.route(self.router, grouped, inside, jax.tree.map(regroup, carry))
    y = execute(grouped, routed.assignment, self.experts, ctx.fold('experts').key if ctx.train else None)
    carry = jax.tree.map(ungroup, routed.carry)
    y = axes.constrain(ungroup(y), 'batch', 'length', None)          # [B, T, D]
    return y, routed.aux.replace(losses=self._losses(x, ctx, carry[LOGITS]) if ctx.train else {}), carry

  def _losses(self, x: jax.Array, ctx: contract.Context, logits: jax.Array) -> dict[str, typing.Any]:
    """dict of losses of the router's logits [B,T,E] for x [B,T,D], from which no gradient comes."""
    rows = jax.lax.stop_gradient(x.astype(jnp.float32)).reshape(1, -1, x.shape[-1])
    hidden = self.experts.hidden(layouts.Buckets(rows)).x.reshape(*x.shape[:2], -1)          # [B, T, F]
    distance = centred(distances(hidden, private(self.experts.mask[...])), ctx.mask)
    each = router_loss(logits, jax.lax.stop_gradient(distance))      # [B, T]
    return dict(pregate=losses.token_mean(each, ctx.mask, ctx.tokens))
