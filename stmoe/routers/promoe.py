"""ProMoE's router: experts of prototypes, and one expert for images without a class (arXiv:2510.24711)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core import metrics

GATES: dict[str, typing.Callable[[jax.Array], jax.Array]] = dict(
    identity=lambda cosines: cosines, sigmoid=jax.nn.sigmoid, softmax=jax.nn.softmax)


def unit(x: jax.Array) -> jax.Array:
  """Returns vectors x [...,D] over their length, which counts as 1e-12 at least."""
  squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def cosines(x: jax.Array, prototypes: jax.Array) -> jax.Array:
  """Returns f32[G,S,P], cos(h_t, mu_e) of tokens x [G,S,D] and prototypes f32[P,D]."""
  return jnp.einsum('gsd,pd->gsp', unit(x.astype(jnp.float32)), unit(prototypes), precision='highest')


def conditional(ctx: contract.Context) -> jax.Array:
  """Returns bool[G,S], real tokens of images with a class: all where nothing is given as `label`."""
  return ctx.mask & (ctx.given['label'] >= 0) if 'label' in ctx.given else ctx.mask


def contrastive(prototypes: jax.Array, x: jax.Array, taken: jax.Array, temperature: float) -> jax.Array:
  """Returns f32[G], the routing contrastive loss: a prototype should be most like the mean of its own tokens.

  C_ij = cos(mu_i, m_j) / tau over the experts that have tokens; the mean of -log softmax_j(C_i)_i. The
  loss is 0 where fewer than two experts have any.

  Args:
    prototypes: f32[P,D]; x: [G,S,D], with gradient.
    taken:      bool[G,S,P], which tokens the mean m_e of an expert is of.
  """
  taken = taken.astype(jnp.float32)
  count = jnp.sum(taken, axis=1)                                     # [G, P]
  means = jnp.einsum('gsp,gsd->gpd', taken, x.astype(jnp.float32), precision='highest')
  used, means = count > 0, means / jnp.maximum(count, 1)[..., None]
  like = jnp.einsum('id,gjd->gij', unit(prototypes), unit(means), precision='highest') / temperature
  several = jnp.sum(used, axis=-1) > 1                               # [G]
  log_probs = jax.nn.log_softmax(jnp.where(used[:, None], like, -1e30), axis=-1)   # [G, P, P]
  own = jnp.where(used, -jnp.diagonal(log_probs, axis1=1, axis2=2), 0)
  return jnp.where(several, jnp.sum(own, axis=-1) / jnp.maximum(jnp.sum(used, axis=-1), 1), 0)


def promoe(scores: jax.Array, mask: jax.Array, to_classes: jax.Array, k: int, gate: str, unconditional: bool,
           tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): a token to its k nearest prototypes, or wholly to the last expert.

  Args:
    scores:        f32[G,S,P] of `cosines`; the gate is GATES[gate] of the chosen ones, not divided by a sum.
    mask:          bool[G,S] real tokens; to_classes: bool[G,S] of `conditional`.
    unconditional: whether expert P has the other tokens, with weight 1; else all go to prototypes.
    tokens:        see `losses.token_mean`.
  """
  values, last = GATES[gate](scores), scores.shape[-1]
  choice = choices.top(scores, k)                                    # [G, S, k]
  weight, experts = choices.values(values, choice), last
  if unconditional:
    first, experts = jnp.arange(choice.shape[-1]) == 0, last + 1
    choice = jnp.where(to_classes[..., None], choice, jnp.where(first, last, experts))
    weight = jnp.where(to_classes[..., None], weight, first.astype(jnp.float32))
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, experts), mask)
  a, probs = assignment.cap(edges, mask.shape[1]), jax.nn.softmax(scores, axis=-1)
  chosen = jnp.where(choice < last, choice, -1)                      # -1 counts for nobody
  balance = losses.balance(probs, chosen, mask & to_classes, tokens) / k           # 1 at balance
  return a, contract.Aux(losses=dict(balance=balance), load=metrics.load(edges),
                         metrics=metrics.routing(scores, probs, edges, a, mask, tokens))


class Promoe(nnx.Module):
  """Token choice by cosine with learned prototypes mu_e, in two steps (ProMoE, arXiv:2510.24711).

  Tokens of images without a class (given as `label`, -1) go to the last expert; where no label is given, all
  tokens have a class. Gates are no probabilities: a cosine may be negative.

  Args:
    num_experts:   E, with the last expert: prototypes are E - 1.
    k:             choices per token (paper: 1).
    gate:          'identity', the cosine itself (paper), 'sigmoid' or 'softmax' over prototypes.
    unconditional: whether the last expert is that of images without a class; else it has a prototype, too.
    temperature:   tau of the contrastive loss.
    means:         the tokens of an expert in that loss: of 'all' choices, or of 'first' choices.
  Losses: contrastive (paper: weight 1, summed over layers), balance (E sum f P on softmax(cosines)).
  Differs: the loss is of a group of tokens, in the paper of the batch of a device; the layer's `group_size`
    says of how many. So it is the same on any number of devices.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 1,
               gate: ranges.Choice(*GATES) = 'identity', unconditional: ranges.Flag = True,
               temperature: ranges.Positive = 0.07, means: ranges.Choice('all', 'first') = 'all', rngs):
    prototypes = num_experts - unconditional
    choices.check_k('promoe', k, prototypes)
    init = nnx.initializers.normal(0.02)
    self.prototypes = axes.param(init, (prototypes, d_model), 'unmodeled', 'embed', rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.gate = gate
    self.unconditional = unconditional
    self.temperature = temperature
    self.means = means

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    scores = cosines(x, self.prototypes[...])                        # [G, S, P]
    to_classes = conditional(ctx) if self.unconditional else ctx.mask
    a, aux = promoe(scores, ctx.mask, to_classes, self.k, self.gate, self.unconditional, ctx.tokens)
    counted = choices.top(scores, self.k if self.means == 'all' else 1)
    taken = jax.nn.one_hot(counted, scores.shape[-1], dtype=bool).any(axis=2) & to_classes[..., None]
    each = contrastive(self.prototypes[...], x, taken, self.temperature)           # [G]
    loss = losses.token_mean(each, ctx.mask, ctx.tokens)
    return contract.Routed(a, aux.replace(losses=aux.losses | dict(contrastive=loss)), carry)
