"""Token rounding: every expert gets whole tiles of rows (SonicMoE, arXiv:2512.14080)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def rounded(probs: jax.Array, choice: jax.Array, mask: jax.Array, tile: int) -> assignment.Edges:
  """Returns Edges in which every expert has a multiple of `tile` tokens of the group, the nearest multiple.

  An expert keeps the tokens of largest probability among those that chose it. If tokens are missing, the
  expert takes those of largest probability that did not choose it. At most half a tile is dropped or added.
  An expert with fewer than tile / 2 tokens loses all of them, so groups must be large.

  Args:
    probs:  f32[G,S,E].
    choice: i32[G,S,k].
    mask:   bool[G,S] real tokens; padding is never added.
    tile:   rows that a kernel multiplies at a time.

  >>> probs = jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]])
  >>> edges = rounded(probs, jnp.argmax(probs, -1, keepdims=True), jnp.ones((1, 4), bool), 2)
  >>> edges.expert.tolist(), edges.token.tolist()
  ([[0, 0, 0, 0, 1, 1]], [[0, 1, 2, 3, 3, 2]])
  """
  groups, size, experts = probs.shape
  chosen = (jax.nn.one_hot(choice, experts).sum(2) > 0) & mask[..., None]          # [G, S, E]
  count, real = chosen.sum(1), mask.sum(1, keepdims=True)                          # [G, E], [G, 1]
  count = jnp.minimum((2 * count + tile) // (2 * tile), real // tile) * tile       # halves go up
  score = jnp.where(mask[..., None], probs + chosen, -1)             # probs < 1 but where they are alone
  order = jnp.argsort(-score, axis=1)                                # [G, S, E] its tokens, best first
  spare = experts * (tile // 2)                                      # the most that is added
  edge = jnp.arange(choice.shape[2] * size + spare, dtype=jnp.int32)               # [N]
  end = jnp.cumsum(count, axis=1)                                    # [G, E]
  expert = (edge[:, None] >= end[:, None]).sum(-1, dtype=jnp.int32)  # [G, N], E beyond the last
  valid = jnp.minimum(expert, experts - 1)
  rank = jnp.minimum(edge - jnp.take_along_axis(end - count, valid, axis=1), size - 1)
  group = jnp.arange(groups)[:, None]
  token = jnp.where(expert < experts, order[group, rank, valid], 0).astype(jnp.int32)
  return assignment.Edges(token=token, expert=expert, weight=probs[group, token, valid], num_tokens=size,
                          num_experts=experts, spare=spare)


class SonicMoE(nnx.Module):
  """Dropless softmax top-k whose training rounds each expert's tokens to whole tiles (arXiv:2512.14080).

  Kernels multiply tiles of rows, and an expert's last tile is mostly padding where experts are many and
  small. Rounding changes the routing; evaluation does not round.

  Args:
    k:            choices per token.
    tile:         rows; that of the grouped matmul (128).
    init_std:     of the router's weights.
    allow_causal: accept that rounding looks at later tokens of the group; the paper trains causal models so.
  Losses: balance, z.
  Differs: weights are the softmax over all experts as it is (unverified); an added token has such a weight
  too.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               tile: ranges.Count = 128, init_std: ranges.NonNegative = 0.02,
               allow_causal: ranges.Flag = False, rngs):
    choices.check_k('sonic_moe', k, num_experts)
    if tile < 1:
      raise UserError(f'router sonic_moe: tile={tile} is no number of rows; nearest: tile=128')
    self.w = gate.weights(d_model, num_experts, rngs=rngs, init=nnx.initializers.normal(init_std))
    self.num_experts, self.k, self.tile = num_experts, k, tile
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in training of a causal stack unless it is allowed."""
    if ctx.train and ctx.causal and not self.allow_causal:
      raise UserError('router sonic_moe rounds by later tokens of the group too, so it leaks them in a '
                      'causal stack; pass allow_causal=True to train with that')
    logits = gate.logits(x, self.w[...])
    probs = jax.nn.softmax(logits, axis=-1)                          # [G, S, E]
    choice = choices.choose(probs, self.k)                           # [G, S, k]
    edges = assignment.kill_padding(
        assignment.from_choices(choice, choices.values(probs, choice), self.num_experts), ctx.mask)
    if ctx.train:
      edges = rounded(probs, choice, ctx.mask, self.tile)
    a = assignment.cap(edges, ctx.mask.shape[1])
    aux = contract.Aux(
        losses=dict(balance=losses.balance(probs, choice, ctx.mask, ctx.tokens),
                    z=losses.z(logits, ctx.mask, ctx.tokens)),
        load=metrics.load(edges), metrics=metrics.routing(logits, probs, edges, a, ctx.mask, ctx.tokens))
    return contract.Routed(a, aux, carry)
