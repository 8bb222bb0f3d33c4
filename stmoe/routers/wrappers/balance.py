"""A balance loss of a named scope: a group of tokens, a sequence, a microbatch, or the global batch
(arXiv:2501.11873)."""

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.routers import wrappers

SCOPES = 'group', 'sequence', 'microbatch', 'global'


class Balance(wrappers.Deciding):
  """A router whose loss `balance` is E sum_e f_e P_e over `scope`, 1 at balance; the others of `inner` stay.

  f is the share of choices, P the mean score, over the real tokens of a scope; of several scopes the mean, by
  their tokens. f counts the k largest logits of a token, before any drop. Scopes but the global one have f
  and P of the same tokens. All of them are of whole arrays, whatever devices these are on.

  Args:
    scope:  'group' (tokens that are routed together), 'sequence', 'microbatch' (all groups of one), or
      'global': f is of all tokens of the step, P of those of the microbatch.
    scores: a key of choices.SCORES, over their sum.
  Losses: balance, and the others of inner.
  State: counts f32[E], of the microbatches before this one in the step; zero between steps. Virtual experts
    count as experts.
  Differs: the paper exchanges counts of all microbatches first. Here f is a running mean over those so far,
    as in Megatron-LM: exact with one microbatch.
  """

  needs = 'no logits whose choices could be counted'

  def __init__(self, d_model: int, *, inner: ranges.Named('router'), scope: ranges.Choice(*SCOPES) = 'global',
               scores: ranges.Choice(*choices.SCORES) = 'softmax', rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    if self.k is None:
      name = type(self.inner).__module__.rpartition('.')[2]
      raise UserError(f"router balance: router {name} has no choices k; nearest: router name='st_moe'")
    self.scope = scope
    self.scores = scores
    own = wrappers.innermost(self.inner)                             # whose logits these are
    self.counts = axes.state(jnp.zeros(own.num_experts + self.num_virtual), 'unmodeled')

  def accumulate(self, aux: contract.Aux) -> None:
    """Adds the choices of a microbatch, its statistic balance_counts f32[E], for the later ones."""
    self.counts[...] += aux.statistics['balance_counts'].value

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]."""
    routed = self.inner.decide(logits, ctx, carry, choose)
    scores = choices.SCORES[self.scores](logits)
    probs = scores / scores.sum(axis=-1, keepdims=True)              # [G, S, E]
    choice = (choose or choices.top)(logits, self.k)                 # [G, S, k]
    chosen = jax.nn.one_hot(choice, logits.shape[-1], dtype=jnp.float32).sum(axis=2)
    counts = jnp.where(ctx.mask[..., None], chosen, 0).sum(axis=(0, 1))            # [E]
    if self.scope in ('group', 'sequence'):
      sequence = balance.sequences(ctx.segments, ctx.positions) if self.scope == 'sequence' else None
      loss = balance.expert_loss(balance.shares(probs, choice, ctx.mask, sequence), ctx.tokens)
    else:
      before = self.counts[...] if self.scope == 'global' else 0.0
      loss = balance.counted_loss(probs, counts + before, ctx.mask, ctx.tokens)
    aux = routed.aux
    return routed.replace(aux=aux.replace(
        losses=aux.losses | dict(balance=loss),
        statistics=aux.statistics | dict(balance_counts=contract.total(counts))))
