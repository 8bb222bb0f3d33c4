"""How shards of one network take tokens, heads of attention too: scores, places, edges (arXiv:2503.02495)."""

import typing

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate as gates
from stmoe.errors import UserError

# How outputs are weighed, (g f32[...], k / E) -> f32[...]. With 'none' nothing trains the gate.
GATES: dict[str, typing.Callable[[jax.Array, float], jax.Array]] = {
    'none': lambda g, share: jnp.ones_like(g), 'multiply': lambda g, share: g,
    'straight': lambda g, share: share + g - jax.lax.stop_gradient(g)}
LABEL = 'router'                     # of a gate's arrays in section `groups` of a configuration
OVER = ('batch', 'experts', 'none')
SELECT = ('data', 'causal')


def weights(d_model: int, num_experts: int, gate: str, rngs: typing.Any) -> tuple[typing.Any, typing.Any]:
  """Returns (W f32[D,E], b f32[E]) of a gate; constants with gate='none', because nothing trains them."""
  if gate == 'none':
    return axes.state(gates.INIT(rngs.params(), (d_model, num_experts)), 'embed', 'unmodeled'), axes.state(
        jnp.zeros(num_experts), 'unmodeled')
  param = lambda init, *shape_and_names: axes.param(init, *shape_and_names, rngs=rngs, label=LABEL)
  return (param(gates.INIT, (d_model, num_experts), 'embed', 'unmodeled'),
          param(jax.nn.initializers.zeros, (num_experts,), 'unmodeled'))


def scores(probs: jax.Array, mask: jax.Array, k: int, over: str = 'batch', capacity: float = 1.0,
           epsilon: float = 1e-8) -> jax.Array:
  """Returns g f32[G,S,E]: the k largest probs of a token over their sum, times `capacity`; 0 elsewhere.

  Args:
    probs: f32[G,S,E]; mask: bool[G,S] real tokens.
    over:  sums are over the 'batch' (the G groups, of each place and expert, times int(capacity G): released
      language model), or the 'experts' of a token (released long-range model); 'none' leaves probs.

  >>> probs = jnp.array([[[0.5, 0.3, 0.2]]])
  >>> scores(probs, jnp.ones((1, 1), bool), 2, over='none').tolist()
  [[[0.5, 0.30000001192092896, 0.0]]]
  >>> scores(probs, jnp.ones((1, 1), bool), 2, over='batch').tolist()
  [[[1.0, 1.0, 0.0]]]
  """
  chosen = jax.nn.one_hot(choices.top(probs, k), probs.shape[-1]).sum(axis=2)      # [G, S, E]
  g = probs * chosen * mask[..., None]
  if over == 'none':
    return g
  axis, whole = (0, int(capacity * g.shape[0])) if over == 'batch' else (-1, capacity)
  return g / (g.sum(axis=axis, keepdims=True) + epsilon) * whole


def selected(g: jax.Array, mask: jax.Array, m: int) -> jax.Array:
  """Returns i32[G,E,m], ascending: the m places of largest g f32[G,S,E] for every expert.

  An expert with fewer positive scores than m is filled with tokens of score 0, the first ones, padding last.

  >>> selected(jnp.array([[[0.5, 0.0], [0.25, 0.0], [1.0, 0.5]]]), jnp.ones((1, 3), bool), 2).tolist()
  [[[0, 2], [0, 2]]]
  """
  ranking = jnp.where(mask[..., None], jax.lax.stop_gradient(g), -1).swapaxes(1, 2)
  return jnp.sort(jax.lax.top_k(ranking, m)[1], axis=-1).astype(jnp.int32)


def edges(at: jax.Array, g: jax.Array) -> assignment.Edges:
  """Returns the expert-major Edges from every expert to its places at i32[G,E,m], weighed by g f32[G,S,E].

  >>> made = edges(jnp.array([[[0, 1], [1, 2]]]), jnp.ones((1, 3, 2)))
  >>> made.token.tolist(), made.expert.tolist()
  ([[0, 1, 1, 2]], [[0, 0, 1, 1]])
  """
  groups, experts, m = at.shape
  flat = lambda a: jnp.broadcast_to(a, at.shape).reshape(groups, experts * m)
  expert = jnp.arange(experts, dtype=jnp.int32)[:, None]
  weight = jnp.take_along_axis(g.swapaxes(1, 2), at, axis=2)         # [G, E, m]
  return assignment.Edges(token=flat(at), expert=flat(expert), weight=flat(weight), num_tokens=g.shape[1],
                          num_experts=experts)


def places(share: float, length: int) -> int:
  """Returns m = int(share * length), at least 1.

  >>> places(0.5, 7), places(0.1, 4)
  (3, 1)
  """
  return max(1, int(share * length))


def leak(who: str, select: str) -> str | None:
  """Returns why tokens cannot be computed one by one with `select`, or None."""
  return None if select == 'causal' else (
      f"{who} with select={select!r} takes tokens of a whole sequence, later ones too; nearest: "
      "select='causal'")


def check(who: str, ctx: contract.Context, select: str, allow_causal: bool) -> None:
  """Raises UserError for a `select` that looks ahead in a causal stack."""
  if ctx.causal and select != 'causal' and not allow_causal:
    raise UserError(f'in a causal stack {leak(who, select)} (or allow_causal=True)')


def check_gate(who: str, select: str, over: str, gate: str) -> None:
  """Raises UserError for outputs of one token that are weighed by the scores of other sequences' tokens."""
  if select == 'causal' and over == 'batch' and gate != 'none':
    raise UserError(f"{who}: over='batch' with gate={gate!r} weighs a token by tokens of other sequences, "
                    "which select='causal' does not know; nearest: over='experts'")
