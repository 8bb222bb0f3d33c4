"""ProMoE's expert choice: every prototype takes its best tokens of an image (arXiv:2510.24711)."""

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
from stmoe.core.units import probabilities
from stmoe.errors import UserError
from stmoe.routers import promoe


def places(tokens: int, prototypes: int, k: float) -> int:
  """Returns c, the tokens that a prototype takes of an image of N tokens: N k / P, at least 1, at most N.

  >>> places(8, 4, 1), places(8, 4, 2), places(8, 16, 1)
  (2, 4, 1)
  """
  return max(1, min(int(tokens / prototypes * k), tokens))


def expert_choice(scores: jax.Array, mask: jax.Array, to_classes: jax.Array, capacity: int, gate: str,
                  unconditional: bool, tokens: jax.Array | None = None) -> tuple:
  """Returns (Assignment, Aux, taken bool[G,S,P]): a prototype to its c best tokens among those with a class.

  Args:
    scores: f32[G,S,P] of `promoe.cosines`; a softmax is over the tokens that may be taken.
    mask:   bool[G,S] real tokens; to_classes: bool[G,S] of `promoe.conditional`.
    capacity: c; gate, unconditional, tokens: see `promoe.promoe`.
  """
  groups, size, last = scores.shape
  free = to_classes[..., None]                                       # [G, S, 1]
  if gate == 'softmax':
    spread = lambda a: probabilities.softmax_of(a.swapaxes(1, 2), to_classes[:, None]).swapaxes(1, 2)
    values = spread(scores)
  else:
    values = promoe.GATES[gate](scores)
  best = assignment.from_experts_choice(jax.lax.stop_gradient(jnp.where(free, scores, -2)), capacity)
  at = (jnp.arange(groups)[:, None], best.token, best.expert)        # [G, P*c]
  edges = assignment.kill_padding(best.replace(weight=values[at]), to_classes)
  taken = jnp.zeros(scores.shape, bool).at[at].set(edges.expert < last)
  if unconditional:
    edges = _with_last(edges, mask & ~to_classes, capacity)
  a, probs = assignment.cap(edges, size), jax.nn.softmax(scores, axis=-1)
  numbers = metrics.routing(scores, probs, edges, a, mask, tokens)
  return a, contract.Aux(losses={}, load=metrics.load(edges), metrics=numbers), taken


def _with_last(edges, others, capacity):
  """Edges [G,P*c+S] with those of the tokens `others` bool[G,S] to one more expert, weight 1."""
  groups, size = others.shape
  token = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), others.shape)
  last, dead = edges.num_experts, edges.num_experts + 1
  expert = jnp.where(edges.expert == edges.dead, dead, edges.expert)
  joined = lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], axis=1)
  whole = edges.replace(token=joined(edges.token, token), num_experts=last + 1,
                        expert=joined(expert, jnp.where(others, last, dead)),
                        weight=joined(edges.weight, jnp.ones_like(others)))
  return assignment.expecting(whole, last * capacity)                # an image has one kind of edges


class PromoeExpertChoice(nnx.Module):
  """Prototypes choose: each takes the c = N k / P tokens of an image that are nearest (arXiv:2510.24711).

  A group is an image. Images without a class (given as `label`, -1) go wholly to the last expert; where no
  label is given, all images have a class. A token may be taken by several experts or by none.

  Args:
    num_experts:   E, with the last expert: prototypes are E - 1 = P.
    k:             average experts of a token.
    gate:          'identity', the cosine itself (paper), 'sigmoid' or 'softmax' over the tokens.
    unconditional: whether the last expert is that of images without a class; else it has a prototype, too.
    temperature:   tau of the contrastive loss.
    allow_causal:  accept a stack in which a token must not depend on later tokens.
  Losses: contrastive, of every image.
  Differs: the loss is a sum over images with a class, divided by the number of all images: so parts of a
    batch add up. The paper's is the mean over images with a class: 1 / 0.9 of ours, with a tenth hidden.
  """

  undecodable = "experts choose among the tokens of an image, later ones too; nearest: router name='promoe'"

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Positive = 1.0,
               gate: ranges.Choice(*promoe.GATES) = 'identity', unconditional: ranges.Flag = True,
               temperature: ranges.Positive = 0.07, allow_causal: ranges.Flag = False, rngs):
    prototypes = num_experts - unconditional
    choices.check_k('promoe_expert_choice', 1, prototypes)
    init = nnx.initializers.normal(0.02)
    self.prototypes = axes.param(init, (prototypes, d_model), 'unmodeled', 'embed', rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.gate = gate
    self.unconditional = unconditional
    self.temperature = temperature
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in a causal stack."""
    if ctx.causal and not self.allow_causal:
      raise UserError('router promoe_expert_choice lets later tokens decide in a causal stack; nearest: '
                      "router name='promoe' (or allow_causal=True)")
    scores = promoe.cosines(x, self.prototypes[...])                 # [G, S, P]
    to_classes = promoe.conditional(ctx) if self.unconditional else ctx.mask
    capacity = places(scores.shape[1], scores.shape[2], self.k)
    a, aux, taken = expert_choice(scores, ctx.mask, to_classes, capacity, self.gate, self.unconditional,
                                  ctx.tokens)
    each = promoe.contrastive(self.prototypes[...], x, taken, self.temperature)    # [G]
    loss = losses.token_mean(each, ctx.mask, ctx.tokens)
    return contract.Routed(a, aux.replace(losses=dict(contrastive=loss)), carry)
