"""THOR: no router at all; experts are drawn at random (arXiv:2110.04260)."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import metrics
from stmoe.errors import UserError
from stmoe.errors import nearest


def thor(expert: jax.Array, mask: jax.Array, num_experts: int) -> contract.Decision:
  """Returns (Assignment, Aux): every token to the expert drawn for it, with weight 1 and no drops.

  Args:
    expert: i32[G,S] in [0, E).
    mask:   bool[G,S] real tokens; padding goes nowhere.
  """
  edges = assignment.from_choices(expert[..., None], jnp.ones((*expert.shape, 1)), num_experts)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, expert.shape[1])
  return a, contract.Aux(losses={}, load=metrics.load(edges),
                         metrics=dict(drop_frac=metrics.drop_frac(edges, a)))


def sentences(ctx: contract.Context) -> jax.Array:
  """Returns i32[G,S], the number of each token's sentence: of a segment of one row.

  It is `contract.TEXT_NUMBER` where that is given, as it is in decoding. Otherwise a sentence begins where
  its positions do, so a group may hold several rows or a part of a row.
  """
  if contract.TEXT_NUMBER in ctx.given:
    return jnp.broadcast_to(ctx.given[contract.TEXT_NUMBER], ctx.mask.shape)
  first = (ctx.positions == 0) & ctx.mask
  return jnp.maximum(jnp.cumsum(first.reshape(-1)) - 1, 0).reshape(first.shape)


def by_token(ctx: contract.Context) -> tuple[jax.Array, ...]:
  """Returns the numbers i32[G,S] of each token's draw; tokens of equal numbers share one. Here none do."""
  return sentences(ctx), ctx.positions


def by_sentence(ctx: contract.Context) -> tuple[jax.Array, ...]:
  """Returns the numbers i32[G,S] of each token's draw, which all tokens of a sentence share."""
  return (sentences(ctx),)


def by_time_step(ctx: contract.Context) -> tuple[jax.Array, ...]:
  """Returns the numbers i32[G,S] of each token's draw, shared by all at one position of their sentences."""
  return (ctx.positions,)


def by_batch(ctx: contract.Context) -> tuple[jax.Array, ...]:
  """Returns no numbers i32[G,S]: all tokens share one draw, as in training."""
  del ctx
  return ()


def draw(key: jax.Array | None, numbers: tuple[jax.Array, ...], num_experts: int) -> jax.Array:
  """Returns i32[G,S] or i32[], experts drawn uniformly: by the key and a token's numbers i32[G,S] alone.

  So a draw is the same whatever is computed with it. Without a key it is the numbers' sum modulo E.
  """
  if key is None:
    return sum(numbers, start=jnp.int32(0)) % num_experts
  seed = jax.random.bits(key, (2,), jnp.uint32)
  one = jax.random.wrap_key_data(seed, impl='threefry2x32')          # others, mapped, draw by place, too
  pick = lambda *own: jax.random.randint(functools.reduce(jax.random.fold_in, own, one), (), 0, num_experts)
  return jnp.vectorize(pick)(*numbers) if numbers else pick()


# The reference's levels are 'token' (0) and "sentence" (1), but its tensors are time-major,
# so its sentence draws for each time step. The paper's per-sentence dispatch is 'sentence' here.
DISPATCH = {'token': by_token, 'sentence': by_sentence, 'time_step': by_time_step, 'batch': by_batch}


class Thor(nnx.Module):
  """Stochastic experts (arXiv:2110.04260, section 3): uniform draws, weight 1, no parameters.

  In training one expert is drawn for the whole batch, in every layer and pass anew. The key is
  the same on all devices, hence the draw too. Without a key, experts take turns: expert 0 in training,
  sentence n has expert n mod E in evaluation. A text that is decoded keeps its draws, and so do its beams.
  The consistency loss between two passes is the trainer's: `cfg.loss.passes`, `cfg.loss.consistency`.

  Args:
    eval_dispatch: what shares a draw in evaluation: 'token', 'sentence', 'time_step' (what the
      reference does for sentences), 'batch', or the number of the one expert to use, such as '0'.
  Losses: none.
  Differs: evaluation computes the expert that was drawn; the reference computes all and masks.
  """

  draws_at_eval = True               # evaluation uses ctx.key where there is one

  def __init__(self, d_model: int, *, num_experts: ranges.Count, eval_dispatch: ranges.Text = 'sentence',
               rngs):
    if num_experts < 2:
      raise UserError(f'router thor: num_experts={num_experts} leaves nothing to draw; nearest: '
                      'num_experts=2 (or layer=dense)')
    self.fixed = int(eval_dispatch) if str(eval_dispatch).isdecimal() else None
    if self.fixed is None and eval_dispatch not in DISPATCH or (self.fixed or 0) >= num_experts:
      raise UserError(f'router thor: eval_dispatch={eval_dispatch!r} does not exist'
                      f'{nearest(eval_dispatch, DISPATCH)} (there are: {", ".join(DISPATCH)}, and '
                      f'experts 0 to {num_experts - 1})')
    self.num_experts = num_experts
    self.eval_dispatch = str(eval_dispatch)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D], of which only the shape counts."""
    if not ctx.train and self.fixed is not None:
      return contract.Routed(*thor(jnp.full(x.shape[:2], self.fixed), ctx.mask, self.num_experts), carry)
    numbers = (by_batch if ctx.train else DISPATCH[self.eval_dispatch])(ctx)
    expert = jnp.broadcast_to(draw(ctx.key, numbers, self.num_experts), ctx.mask.shape)         # [G, S]
    return contract.Routed(*thor(expert, ctx.mask, self.num_experts), carry)
