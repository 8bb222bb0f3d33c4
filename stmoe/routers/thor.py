"""THOR: no router at all; experts are drawn at random (arXiv:2110.04260)."""

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


def by_token(ctx: contract.Context) -> jax.Array:
  """Returns i32[G,S], the number of the draw that each token takes: every token has its own draw."""
  return jnp.arange(ctx.mask.size).reshape(ctx.mask.shape)


def by_sentence(ctx: contract.Context) -> jax.Array:
  """Returns i32[G,S], the same number for all tokens of a sentence: of a segment of one row.

  A sentence begins where its positions do, so a group may hold several rows or a part of a row.
  """
  first = (ctx.positions == 0) & ctx.mask
  return jnp.maximum(jnp.cumsum(first.reshape(-1)) - 1, 0).reshape(first.shape)


def by_time_step(ctx: contract.Context) -> jax.Array:
  """Returns i32[G,S], the same number for all tokens at one position of their sentences."""
  return ctx.positions


def by_batch(ctx: contract.Context) -> jax.Array:
  """Returns i32[G,S], one number for all tokens, as in training."""
  return jnp.zeros(ctx.mask.shape, jnp.int32)


# The reference's levels are 'token' (0) and "sentence" (1), but its tensors are time-major,
# so its sentence draws for each time step. The paper's per-sentence dispatch is 'sentence' here.
DISPATCH = {'token': by_token, 'sentence': by_sentence, 'time_step': by_time_step, 'batch': by_batch}
NUMBERED = ('token', 'sentence')     # a draw then depends on what else is in the batch


class Thor(nnx.Module):
  """Stochastic experts (arXiv:2110.04260, section 3): uniform draws, weight 1, no parameters.

  In training one expert is drawn for the whole batch, in every layer and pass anew. The key is
  the same on all devices, hence the draw too. Without a key, draw number n is expert n mod E:
  expert 0 in training, sentences in turn in evaluation.
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

  @property
  def undecodable(self) -> str | None:
    """Why tokens cannot be routed one by one, or None."""
    if self.eval_dispatch not in NUMBERED:
      return None
    return (f'eval_dispatch={self.eval_dispatch!r} numbers the tokens of a batch; nearest: '
            "eval_dispatch='time_step' (or '0', the first expert)")

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D], of which only the shape counts."""
    if not ctx.train and self.fixed is not None:
      return contract.Routed(*thor(jnp.full(x.shape[:2], self.fixed), ctx.mask, self.num_experts), carry)
    number = (by_batch if ctx.train else DISPATCH[self.eval_dispatch])(ctx)        # [G, S]
    expert = number % self.num_experts
    if ctx.key is not None:
      drawn = jax.random.randint(ctx.key, (ctx.mask.size,), 0, self.num_experts)   # [G*S]
      expert = drawn[number]                                         # [G, S]
    return contract.Routed(*thor(expert, ctx.mask, self.num_experts), carry)
