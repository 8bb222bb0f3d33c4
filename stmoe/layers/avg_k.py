"""Avg-K: a feed-forward layer as a memory in blocks, chosen by the mean of their keys (arXiv:2305.13999).

act(x K^T) V reads a memory: keys are the columns of the first matrix, values the rows of the second. A sparse
layer is a large memory in B blocks of g cells, of which a token reads k: many narrow experts without a router
of their own.
"""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.units import activations
from stmoe.errors import UserError
from stmoe.experts import glu
from stmoe.experts import mlp
from stmoe.layers import moe


def mean_keys(keys: jax.Array, values: jax.Array | None = None, normalize: bool = False) -> jax.Array:
  """Returns [B,D], the gate: e_j = (1/g) sum_i K_ji, computed from the keys and no parameter of its own.

  Args:
    keys:      [B,D,g] first matrices of the blocks.
    values:    [B,g,D] second matrices: cells then weigh by the lengths of their values, over their sum.
    normalize: every e_j is divided by its length.
  """
  if values is None:
    gate = keys.mean(axis=-1)                                        # [B, D]
  else:
    length = jnp.linalg.norm(values, axis=-1)                        # [B, g]
    gate = jnp.einsum('bdg,bg->bd', keys, length / length.sum(axis=-1, keepdims=True))
  return unit(gate) if normalize else gate


def unit(x: jax.Array) -> jax.Array:
  """Returns vectors x [...,D] over their length; 0 stays 0, with a finite gradient.

  >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def refreshed(gate: jax.Array, key: jax.Array, momentum: float) -> jax.Array:
  """Returns momentum * gate + (1 - momentum) * key, all [B,D]: a gate that follows the mean keys."""
  return momentum * gate + (1 - momentum) * key


def scores(x: jax.Array, gate: jax.Array, normalize: bool = False) -> jax.Array:
  """Returns [G,S,B], s_tj = x_t e_j, for x [G,S,D] and a gate [B,D]; normalize: of x over its length."""
  return jnp.einsum('gsd,bd->gsb', unit(x) if normalize else x, gate, precision='highest')


def avg_k(scores: jax.Array, mask: jax.Array, k: int, capacity: int, *, gated: bool = False,
          tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token t to the k blocks of largest score, each with weight 1.

  No gradient passes the selection: the gate moves with the keys of blocks that were read.

  Args:
    scores: f32[G,S,B]; mask: bool[G,S] real tokens.
    gated:  weights are the chosen blocks' part of the softmax over all scores.
    tokens: divisor of the losses, see `losses.token_mean`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(scores, axis=-1)                            # [G, S, B]
  choice = (choose or choices.top)(scores, k)                        # [G, S, k]
  weight = choices.values(probs, choice) if gated else jnp.ones(choice.shape, scores.dtype)
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, scores.shape[-1]), mask)
  a = assignment.cap(edges, capacity)
  return a, contract.Aux(losses=dict(balance=losses.balance(probs, choice, mask, tokens)),
                         load=metrics.load(edges),
                         metrics=metrics.routing(scores, probs, edges, a, mask, tokens))


def _into(x, w, b):
  """[G,S,B,g]: the products of x [G,S,D] with all cells of w [B,D,g], plus b [B,g] or None."""
  h = jnp.einsum('gsd,bdf->gsbf', x, w[...], precision='highest')
  return h if b is None else h + b[...]


def _hidden(x, bank):
  """[G,S,B,g]: what all cells of all blocks would be for x [G,S,D]."""
  activation, h = activations.named(bank.activation), _into(x, bank.wi, bank.bi)
  return activations.gated(h, _into(x, bank.wg, bank.bg), activation, bank.limit) if hasattr(
      bank, 'wg') else activation(h)


# What chooses blocks: of x f32[G,S,D] and the bank -> f32[G,S,B]. The last three compute all cells first.
MEANS = {'key': lambda bank: bank.wi, 'up': lambda bank: bank.wg}
ALL = {
    'up_abs': lambda x, bank: jnp.abs(_into(x, bank.wg, bank.bg)),
    'hidden': _hidden,
    'hidden_abs': lambda x, bank: jnp.abs(_hidden(x, bank)),
}


def keys_of(bank: typing.Any, score: str, weighted: bool, normalize: bool) -> jax.Array:
  """Returns the `mean_keys` [B,D] of a bank as it is, of the matrices that `score` names in MEANS."""
  return mean_keys(MEANS[score](bank)[...], bank.wo[...] if weighted else None, normalize)


class Blocks(nnx.Module):
  """The router of an `AvgK`: it reads the bank of its layer, and has no arrays of its own."""

  def __init__(self, layer: 'AvgK'):
    self.bank = layer.experts
    self.gate = layer.gate
    self.num_experts = self.bank.wi.shape[-3]
    self.k = layer.k
    self.score = layer.score
    self.normalize = layer.normalize
    self.weighted = layer.weighted
    self.gated = layer.gated
    self.normalize_gates = False if layer.gated else None
    self.gates_sum = None if layer.gated else layer.k
    self.capacity_factor = layer.capacity_factor

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,B] for x [G,S,D]."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.score in ALL:
      return jax.lax.stop_gradient(ALL[self.score](x, self.bank).mean(axis=-1))
    if self.gate is not None:
      return scores(x, self.gate[...], self.normalize)
    return scores(x, keys_of(self.bank, self.score, self.weighted, self.normalize), self.normalize)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,B]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor)
    return contract.Routed(*avg_k(logits, ctx.mask, self.k, capacity, gated=self.gated, tokens=ctx.tokens,
                                  choose=choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)


class AvgK(nnx.Module):
  """sum over the k best blocks j of act(x K_j^T) V_j, not weighted (Avg-K, arXiv:2305.13999).

  Args:
    d_model:    D.
    d_ff:       g, cells of a block.
    num_blocks: B.
    k: blocks that a token reads.
    activation, gated_cells, init_scale: of the cells: act(x K^T), times x U^T if gated (SwiGLU: 'silu').
      Values begin as those of a dense layer of k g cells, N(0, init_scale / (k g)).
    dropout_rate, use_bias, limit: of the cells, see `dense.Dense`. Mean keys have no bias.
    score:      what chooses: the mean 'key', which is the mean of pre-activations; 'hidden', the mean of what
      cells hold after the activation (VanillaM with blocks, which saves nothing); of gated cells also 'up',
      the mean of the other pre-activations. 'up_abs' and 'hidden_abs' take absolute values (EMoE,
      arXiv:2310.10908).
    momentum:   the gate is an array that begins as the mean keys and follows them after every step by
      `refreshed` (EMoE); None = the mean keys as they are (Avg-K).
    normalize:  gate and tokens over their lengths.
    weighted: cells weigh by the lengths of their values.
    gated:      outputs are weighted by a softmax of the scores, which then have a gradient (Avg-K + gate).
    capacity_factor: (train, eval) slots per token; None = nothing is dropped.
    executor, group_size: see `moe.Moe`.
  Losses: balance, which the paper does without.
  State: gate f32[B,D], with momentum.
  Differs: with momentum the gate follows keys of before the step, in EMoE those of after it. EMoE's noise in
    training, its priority of a batch's tokens and its learned gate are not built.
  """

  def __init__(self, d_model: int, *, d_ff: ranges.Count, num_blocks: ranges.Count, k: ranges.Count,
               activation: ranges.Activation = 'relu', gated_cells: ranges.Flag = False,
               init_scale: ranges.Positive = 1.0, dropout_rate: ranges.Below1 = 0.0,
               use_bias: ranges.Flag = False, limit: ranges.Positive | None = None,
               score: ranges.Choice(*MEANS, *ALL) = 'key', momentum: ranges.Below1 | None = None,
               normalize: ranges.Flag = False,
               weighted: ranges.Flag = False, gated: ranges.Flag = False,
               capacity_factor: ranges.Factors = (None, None),
               executor: ranges.Spelled('executor') = 'blocks', group_size: ranges.Count | None = None, rngs):
    choices.check_k('of layer avg_k', k, num_blocks)
    if score.startswith('up') and not gated_cells:
      raise UserError(f"layer avg_k: score={score!r} is of gated cells; nearest: score='key' or "
                      'gated_cells=True')
    if score in ALL and (momentum is not None or normalize or weighted):
      raise UserError(f'layer avg_k: score={score!r} has no gate that momentum, normalize or weighted could '
                      "be of; nearest: score='key'")
    if limit is not None and not gated_cells:
      raise UserError(f'layer avg_k: limit={limit} is of gated cells; nearest: gated_cells=True')
    make = functools.partial(glu.Glu, limit=limit) if gated_cells else mlp.Mlp
    self.experts = make(d_model, num_experts=num_blocks, d_ff=d_ff, activation=activation,
                        dropout_rate=dropout_rate, init_scale=init_scale, use_bias=use_bias, rngs=rngs)
    self.experts.wo[...] *= k ** -0.5                                # k blocks add up
    self.d_model = d_model
    self.k = k
    self.score = score
    self.momentum = momentum
    self.normalize = normalize
    self.weighted = weighted
    self.gated = gated
    self.capacity_factor = tuple(capacity_factor)
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)
    self.gate = None if momentum is None else axes.state(self.keys(), 'unmodeled', 'embed')

  def keys(self) -> jax.Array:
    """Returns the mean keys [B,D] of the blocks as they are."""
    return keys_of(self.experts, self.score, self.weighted, self.normalize)

  @property
  def router(self) -> contract.Router:
    """The router: made anew of the bank, which it shares; or what was put around it."""
    return getattr(self, 'around', None) or Blocks(self)

  @router.setter
  def router(self, around: contract.Router) -> None:
    self.around = around

  @property
  def computed(self) -> dict[tuple, tuple]:
    """Shapes of the matrices that score a token; see `contract.OFFERS`."""
    blocks, width, cells = self.experts.wi.shape[-3:]
    if self.score in ALL:
      matrices = 1 + (hasattr(self.experts, 'wg') and self.score != 'up_abs')
      return {('router', self.score): (width, blocks * cells * matrices)}
    return {} if self.gate is not None else {('router', self.score): (width, blocks)}

  def commit(self, aux: contract.Aux) -> None:
    """Lets the gate follow the mean keys; aux of one optimizer step is not looked at."""
    if self.gate is not None and self.momentum is not None:
      self.gate[...] = refreshed(self.gate[...], self.keys(), self.momentum)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    groups = moe.grouped(self, x, ctx, carry)
    routed = groups.route(self.router)
    y = groups.execute(groups.x, routed.assignment, self.experts, groups.key('experts'))
    return groups.answer(y, routed)
