"""CompeteSMoE's layer: in some steps all experts run, and the strongest answers win (arXiv:2402.02526).

The router learns from these steps whom to choose in all others, and in evaluation.
"""

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.transport import layouts
from stmoe.errors import UserError
from stmoe.layers import moe

PLACE = 'compete_smoe'               # in the carry: how many competing layers are below
LOSSES = ('distillation', 'diversity', 'competition_balance', 'competition_entropy')
# Whose probabilities the router is taught: weight of the mean over (all experts, winners, its own choices).
TAUGHT = {'all': lambda theta: (1, 0, 0), 'winners': lambda theta: (0, 1, 0),
          'hybrid': lambda theta: (1, theta, 0), 'tribrid': lambda theta: (1, theta, theta)}


class CompeteSMoE(moe.Moe):
  """A sparse layer whose experts compete in the steps of its router's schedule (arXiv:2402.02526).

  In such a step every expert computes every token, a_e = mean over D of softplus(f_e(x)), and the token's k
  largest a_e win: y = sum_I w_e f_e(x), w = a_I / sum a_I. Experts learn through f and through w; the router
  learns only to predict q = softmax(a). Otherwise, and in evaluation, the layer is `moe.Moe`. Which layer of
  the stack it is, it counts in the carry. Also arXiv:2505.13380.

  Args:
    d_model, experts, executor, group_size: see `moe.Moe`.
    router:  recipe of the router, `compete_smoe`, which has the schedule.
    taught:  a key of TAUGHT: over which experts (p - q)^2 is averaged.
    theta: weight of the further means.
    sigmoid: w = sigmoid(a)_I over their sum.
  Losses of a competing step, else 0: distillation; diversity (mean cosine of the outputs of winners, the
    diagonal counted as 0); competition_balance (of q and first winners); competition_entropy (of q taken as
    logits, in the code of language models). Those of the router are 0 in a competing step.
  Differs: outputs are computed once, the code runs those of winners again; all experts are computed with one
    buffer of every token for each, on any executor.
  """

  def __init__(self, d_model: int, *, router: ranges.Named('router'),
               experts: ranges.Named('experts'), executor: ranges.Spelled('executor') = 'gather',
               group_size: ranges.Count | None = None, taught: ranges.Choice(*TAUGHT) = 'all',
               theta: ranges.NonNegative = 0.2, sigmoid: ranges.Flag = False, rngs):
    super().__init__(d_model, router=router, experts=experts, executor=executor, group_size=group_size,
                     rngs=rngs)
    if not hasattr(self.router, 'competes'):
      name = type(self.router).__module__.rpartition('.')[2]
      raise UserError(f'layer compete_smoe: router {name} has no schedule of competitions; nearest: '
                      'router.name=compete_smoe')
    self.taught, self.theta, self.sigmoid = taught, theta, sigmoid

  @property
  def more_rows(self) -> float:
    """Rows that a token computes in training besides its k, on average over steps."""
    return self.router.share() * (self.router.num_experts - self.router.k)

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the number of competing layers below, f32[B,T,1] zeros at the bottom of a stack."""
    return {PLACE: jnp.zeros((*x.shape[:2], 1))}

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    carry = carry | {PLACE: carry[PLACE] + 1}
    if not ctx.train:
      return *self.route(x, ctx), carry
    layer = jnp.max(carry[PLACE]).astype(jnp.int32) - 1
    competes = self.router.competes(ctx.step, layer)
    y, aux = jax.lax.cond(competes, lambda: self.compete(x, ctx), lambda: self.route(x, ctx))
    return y, aux.replace(metrics=aux.metrics | dict(competes=competes.astype(jnp.float32))), carry

  def route(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, contract.Aux]:
    """Returns (y [B,T,D], aux) as the router decides."""
    y, aux, _ = super().__call__(x, ctx, {})
    assert isinstance(aux, contract.Aux)                             # of one router
    return y, aux.replace(losses=aux.losses | dict.fromkeys(LOSSES, jnp.zeros(())))

  def compete(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, contract.Aux]:
    """Returns (y [B,T,D], aux) as the experts' own answers decide."""
    groups = moe.grouped(self, x, ctx, {})
    of_groups = groups.ctx
    with jax.named_scope('route'):
      logits = self.router.logits(groups.x, of_groups.fold('router'))
    with jax.named_scope('experts'):
      rows = groups.x.reshape(1, -1, x.shape[-1])
      rows = jnp.broadcast_to(rows, (self.router.num_experts, *rows.shape[1:]))
      rows = axes.constrain(rows, 'expert', None, None)              # [E, G*S, D]
      outputs = self.experts(layouts.Buckets(rows), ctx.fold('experts').key).x
    outputs = outputs.reshape(-1, *groups.x.shape).astype(jnp.float32)             # [E, G, S, D]
    weights, aux = competition(outputs, logits, of_groups.mask, self.router.k, sigmoid=self.sigmoid,
                               means=TAUGHT[self.taught](self.theta), tokens=ctx.tokens,
                               sequence=balance.sequences(of_groups.segments, of_groups.positions))
    y = jnp.einsum('gse,egsd->gsd', weights, outputs).astype(x.dtype)
    unweighed = {name: jnp.zeros(()) for name in ('balance', 'z', 'entropy')}
    aux = aux.replace(losses=aux.losses | unweighed)
    return groups.tokens(y), aux


def affinity(outputs: jax.Array) -> jax.Array:
  """Returns f32[G,S,E], how strongly each expert answers: mean of softplus over outputs f32[E,G,S,D]."""
  return jnp.moveaxis(jax.nn.softplus(outputs).mean(axis=-1), 0, -1)


def competition(outputs: jax.Array, logits: jax.Array, mask: jax.Array, k: int, *, means: tuple,
                sigmoid: bool = False, tokens: jax.Array | None = None, sequence: jax.Array | None = None,
                choose: contract.Choose | None = None) -> tuple[jax.Array, contract.Aux]:
  """Returns (weights f32[G,S,E], 0 of losers and of padding, Aux) of a competing step.

  Args:
    outputs: f32[E,G,S,D] of all experts for all tokens.
    logits:  f32[G,S,E] of the router, which is taught; mask: bool[G,S]; tokens: see `losses.token_mean`.
    means:   weights of the three means of `TAUGHT`.
    sigmoid: see `CompeteSMoE`.
    sequence: i32[G,S] scope of the entropy loss, see `balance.sequences`.
    choose:  how winners are chosen instead, see `contract.OFFERS`.
  """
  strength = affinity(outputs)                                       # [G, S, E]
  q, p = jax.nn.softmax(strength, axis=-1), jax.nn.softmax(logits, axis=-1)
  choice = (choose or choices.top)(strength, k)                      # [G, S, k]
  gates = choices.values(jax.nn.sigmoid(strength) if sigmoid else strength, choice)
  gates = gates / gates.sum(axis=-1, keepdims=True)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, q.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  weights = jnp.sum(jax.nn.one_hot(choice, q.shape[-1]) * gates[..., None], axis=2)
  mean = lambda values: losses.token_mean(values, mask, tokens)
  shares = balance.shares(jax.nn.softmax(q, axis=-1), choice, mask, sequence)
  return jnp.where(mask[..., None], weights, 0), contract.Aux(
      losses=dict(distillation=mean(distance(p, q, choice, choices.top(p, k), means)),
                  diversity=mean(likeness(outputs, choice)),
                  competition_balance=losses.balance(q, choice[..., :1], mask, tokens),
                  competition_entropy=balance.negative_entropy(shares, tokens)),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(strength, q, edges, a, mask, tokens),
                   active_experts=jnp.float32(len(outputs))))


def distance(p: jax.Array, q: jax.Array, winners: jax.Array, own: jax.Array, means: tuple) -> jax.Array:
  """Returns f32[G,S]: (p - q)^2, its means over experts, winners and own choices weighed by `means`.

  Args:
    p, q: f32[G,S,E] probabilities of the router and of the competition, which gets no gradient.
    winners, own: i32[G,S,k] experts of the competition and of the router.
  """
  square = jnp.square(p - jax.lax.stop_gradient(q))                  # [G, S, E]
  parts = square, choices.values(square, winners), choices.values(square, own)
  return sum(weight * part.mean(axis=-1) for weight, part in zip(means, parts) if weight)


def likeness(outputs: jax.Array, choice: jax.Array) -> jax.Array:
  """Returns f32[G,S]: the mean of cos(f_i, f_j) over all k^2 pairs of winners, where i = j counts as 0.

  Args:
    outputs: f32[E,G,S,D]; choice: i32[G,S,k].
  """
  chosen = jnp.einsum('gske,egsd->gskd', jax.nn.one_hot(choice, outputs.shape[0]), outputs)
  square = jnp.sum(jnp.square(chosen), axis=-1, keepdims=True)
  unit = chosen * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  cosines = jnp.einsum('gskd,gsjd->gskj', unit, unit)                # [G, S, k, k]
  return jnp.where(jnp.eye(choice.shape[-1], dtype=bool), 0, cosines).mean(axis=(-2, -1))
