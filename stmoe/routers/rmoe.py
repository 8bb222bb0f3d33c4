"""Layerwise recurrent router: a small recurrent cell along depth decides from what lower layers decided
(RMoE, arXiv:2408.06793)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.units import recurrent


def rmoe(logits: jax.Array, mask: jax.Array, k: int, *, normalize_single: bool = False,
         tokens: jax.Array | None = None) -> tuple[contract.Decision, jax.Array, jax.Array]:
  """Returns ((Assignment, Aux), probs f32[G,S,E], choice i32[G,S,k]): top-k; the balance loss is not in yet.

  The gates of a token are its k largest probabilities over their sum. A single one stays a probability, else
  the router would learn from the balance loss alone.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    normalize_single: a single gate is 1, as in the released code.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = choices.top(probs, k)                                     # [G, S, k]
  gates = choices.values(probs, choice)
  gates = jnp.ones_like(gates) if normalize_single and k == 1 else choices.normalize(gates)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  aux = contract.Aux(losses=dict(z=losses.z(logits, mask, tokens)), load=metrics.load(edges),
                     metrics=metrics.routing(logits, probs, edges, a, mask, tokens))
  return (a, aux), probs, choice


class Recurrence(nnx.Module):
  """The cell that all layers of a stack have in common; its state is 0 below the first sparse layer."""

  def __init__(self, cell: str, width: int, *, rngs):
    gates = recurrent.CELLS[cell].gates
    lecun, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
    matrix = lambda: axes.param(lecun, (width, gates * width), 'unmodeled', 'unmodeled', rngs=rngs)
    bias = lambda: axes.param(zeros, (gates * width,), 'unmodeled', rngs=rngs)
    self.w, self.v, self.b, self.c = matrix(), matrix(), bias(), bias()
    self.cell = cell

  def __call__(self, z: jax.Array, state: jax.Array) -> jax.Array:
    """Returns the next state f32[G,S,P] (2P of an lstm) for z f32[G,S,P]."""
    weights = recurrent.Weights(self.w[...], self.v[...], self.b[...], self.c[...])
    return recurrent.CELLS[self.cell].step(z, state, weights)


class RMoE(nnx.Module):
  """z = x A, h = cell(z, h of the layer below), logits h G; A [D,P] and G [P,E] a layer (arXiv:2408.06793).

  Args:
    k:       choices per token.
    width:   P of the recurrence.
    cell:    'gru' (the paper's), 'rnn', 'lstm', or 'none': h = z, as many matrices but for the cell's.
    passing: 'on'; 'off': every layer begins at 0 (same parameters); 'stopped': no gradient into lower layers.
    pooled:  balance is counted over all layers together (see `balance.layers`); else in each.
    normalize_single: see `rmoe`.
  Losses: balance, z.
  Differs: the recurrence is float32, the released one has the type of activations. A balance loss is of a
    routing group, the released one of a whole batch. With k = 1 the released gate is always 1.
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               width: ranges.Count = 128, cell: ranges.Choice(*recurrent.CELLS, 'none') = 'gru',
               passing: ranges.Choice('on', 'off', 'stopped') = 'on', pooled: ranges.Flag = True,
               normalize_single: ranges.Flag = False, rngs):
    choices.check_k('rmoe', k, num_experts)
    lecun = nnx.initializers.lecun_normal()
    self.a = axes.param(lecun, (d_model, width), 'embed', 'unmodeled', rngs=rngs)
    self.w = axes.param(lecun, (width, num_experts), 'unmodeled', 'unmodeled', rngs=rngs)
    self.recurrence = None if cell == 'none' else Recurrence(cell, width, rngs=rngs)
    self.ties = None if cell == 'none' else ('rmoe', ('recurrence',))
    self.cell = cell
    self.num_experts = num_experts
    self.k = k
    self.width = width
    self.passing = passing
    self.pooled = pooled
    self.normalize_single = normalize_single

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the state at the bottom of a stack, f32 zeros [B,T,.]: of the cell and of the balance loss."""
    zeros = lambda *width: jnp.zeros((*x.shape[:2], *width), jnp.float32)
    carry = {} if self.cell == 'none' else {'rmoe': zeros(recurrent.CELLS[self.cell].widths * self.width)}
    if self.pooled:
      carry |= {'rmoe_probs': zeros(self.num_experts), 'rmoe_chosen': zeros(self.num_experts),
                'rmoe_layers': zeros()}
    return carry

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    h, carry = self._state(gate.logits(x, self.a[...]), carry)       # z = x A  [G, S, P]
    (a, aux), probs, choice = rmoe(gate.logits(h, self.w[...]), ctx.mask, self.k, tokens=ctx.tokens,
                                   normalize_single=self.normalize_single)
    if self.pooled:
      chosen = jax.nn.one_hot(choice, self.num_experts, dtype=jnp.float32).sum(axis=2)       # [G, S, E]
      layer = dict(rmoe_probs=probs, rmoe_chosen=chosen, rmoe_layers=jnp.ones(ctx.mask.shape))
      sums = {name: carry[name] + of_layer for name, of_layer in layer.items()}
      of = lambda sums: balance.layers(sums['rmoe_probs'], sums['rmoe_chosen'], sums['rmoe_layers'], ctx.mask)
      loss, carry = losses.token_mean(of(sums) - of(carry), ctx.mask, ctx.tokens), carry | sums
    else:
      loss = losses.balance(probs, choice, ctx.mask, ctx.tokens)
    return contract.Routed(a, aux.replace(losses=aux.losses | dict(balance=loss)), carry)

  def _state(self, z, carry):
    """(what the logits are made of f32[G,S,P], carry with the new state)."""
    if self.cell == 'none':
      return z, carry
    below = carry['rmoe']
    below = dict(on=below, off=jnp.zeros_like(below), stopped=jax.lax.stop_gradient(below))[self.passing]
    state = self.recurrence(z, below)
    return state[..., :self.width], carry | {'rmoe': state}
