"""The assignment of tokens to experts: an edge list per group, and how the list is made.

A router decides once, here; executors (`core/execute`) only carry it out. Letters:
G groups, S tokens per group, E experts, Z virtual experts, C capacity, N edges per
group, k choices per token.

Invariants, each with a property test:
  1. Order is priority: an edge's rank among the edges of its expert is its slot. An edge of
     rank >= C is dropped. Lists are choice-major, so first choices precede second choices.
  2. (expert, slot) is unique among the live edges of a group, and slots have no holes.
  3. All noise, masking and normalisation happened before; executors agree exactly.
  4. Expert ids >= E never reach a matmul.
  5. Dead edges may hold any weight, even NaN.
  6. Padding is killed before `cap`, so it never takes a slot.
"""

import typing

from flax import struct
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe.core.units import counting

if typing.TYPE_CHECKING:
  from stmoe.core import contract                                    # imports this module


class Edges(struct.PyTreeNode, kw_only=True):
  """Edges wanted by a router, before capacity.

  token:  i32[G,N] in [0,S).
  expert: i32[G,N]; [0,E) an expert, [E,E+Z) a virtual expert, E+Z a dead edge.
  weight: f32[G,N] combine weight; the only field that carries gradient.
  choices: k when edge n is choice n // S of token n % S, else None. A hint for speed.
  spare:  edges of a group that are room in the list, which no expert computes on average; see `expecting`.
  """
  token: jax.Array
  expert: jax.Array
  weight: jax.Array
  num_tokens: int = struct.field(pytree_node=False)
  num_experts: int = struct.field(pytree_node=False)
  num_virtual: int = struct.field(pytree_node=False, default=0)
  choices: int | None = struct.field(pytree_node=False, default=None)
  spare: float = struct.field(pytree_node=False, default=0)

  @property
  def dead(self) -> int:
    """The expert id of a dead edge: E + Z."""
    return self.num_experts + self.num_virtual

  @property
  def rows_per_group(self) -> float:
    """N less the spare edges, and less the share Z / (E + Z) of virtual experts under balance.

    This is how many rows experts compute for a group when nothing else is dead.
    """
    rows = self.token.shape[1] - self.spare
    return rows * self.num_experts / self.dead if self.num_virtual else rows


class Assignment(Edges, kw_only=True):
  """Edges with their places: what an executor runs. Made by `cap`.

  slot: i32[G,N] place in the expert's buffer, < C on live edges and C on all other edges.
  """
  slot: jax.Array
  capacity: int = struct.field(pytree_node=False)

  def masks(self) -> tuple[jax.Array, jax.Array]:
    """Returns dispatch and combine [G,S,E,C]; see `masks` below."""
    return masks(self)


Kind = typing.TypeVar('Kind', bound=Edges)


@struct.dataclass
class SoftAssignment:
  """Slots that are mixtures of all tokens: the representation that is no list of edges.

  The rows of expert e are sum_s dispatch[s,e,c] x_s, a token's output sum_ec combine[s,e,c] y_ec
  (Soft MoE, arXiv:2308.00951). Only the `einsum` executor runs it.

  dispatch, combine: f32[G,S,E,C]; both carry gradient.

  >>> a = SoftAssignment(jnp.ones((1, 4, 2, 1)), jnp.ones((1, 4, 2, 1)))
  >>> a.num_tokens, a.num_experts, a.capacity, a.rows_per_group
  (4, 2, 1, 2)
  """
  dispatch: jax.Array
  combine: jax.Array

  @property
  def num_tokens(self) -> int:
    """S."""
    return self.dispatch.shape[1]

  @property
  def num_experts(self) -> int:
    """E."""
    return self.dispatch.shape[2]

  @property
  def capacity(self) -> int:
    """C, slots per expert."""
    return self.dispatch.shape[3]

  @property
  def rows_per_group(self) -> int:
    """E*C, the rows that experts compute for a group."""
    return self.num_experts * self.capacity

  @property
  def expert(self) -> typing.NoReturn:
    """Raises UserError: an executor of edges was given mixtures."""
    raise errors.UserError('this router mixes all tokens into every slot, it lists no edges; '
                           "nearest: executor='einsum'")

  def masks(self) -> tuple[jax.Array, jax.Array]:
    """Returns dispatch and combine f32[G,S,E,C]."""
    return self.dispatch, self.combine


def capacity(tokens: int, experts: int, factor: float | None, minimum: int = 4,
             whole: typing.Callable[[float], int] = round) -> int:
  """Returns C, the slots of one expert in a group of S tokens.

  min(S, max(whole(factor * S / E), minimum, 1)); S (nothing dropped) when factor is None.
  `factor` counts total slots per token: top-2 with 1.25 has 1.25 slots a token.

  Args:
    whole: makes a whole number: `round` to the nearest, halves to even, or `math.ceil`.

  >>> capacity(512, 8, 1.25), capacity(512, 8, None), capacity(16, 8, 1.0), capacity(16, 64, 1.0, 0)
  (80, 512, 4, 1)
  """
  if factor is None:
    return tokens
  return min(tokens, max(whole(factor * tokens / experts), minimum, 1))


def slots(ctx: 'contract.Context', num_experts: int, factors: typing.Sequence[float | None],
          minimum: int = 4, whole: typing.Callable[[float], int] = round) -> int:
  """Returns C of the groups of `ctx`, whose mask is bool[G,S]: see `capacity`.

  Args:
    factors: of training and of evaluation.
  """
  return capacity(ctx.mask.shape[1], num_experts, factors[0 if ctx.train else 1], minimum, whole)


def from_top_k(probs: jax.Array, k: int) -> Edges:
  """Returns the edges from every token to its k largest entries; these entries are the weights.

  Args:
    probs: f32[G,S,E].
    k:     choices per token; ties go to the lower expert id.
  Returns:
    Edges with N = k*S, choice-major.

  >>> edges = from_top_k(jnp.array([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]]), 2)
  >>> edges.token.tolist(), edges.expert.tolist(), edges.weight.tolist()
  ([[0, 1, 0, 1]], [[0, 2, 1, 0]], [[0.5, 0.75, 0.25, 0.125]])
  """
  weight, expert = jax.lax.top_k(probs, k)                           # [G, S, k]
  return from_choices(expert, weight, probs.shape[-1])


def from_choices(expert: jax.Array, weight: jax.Array, num_experts: int, num_virtual: int = 0) -> Edges:
  """Returns choice-major edges of token choices: expert i32[G,S,k], weight f32[G,S,k].

  >>> from_choices(jnp.array([[[0, 1], [2, 1]]]), jnp.ones((1, 2, 2)), 3).expert.tolist()
  [[0, 2, 1, 1]]
  """
  groups, size, k = expert.shape
  token = jnp.broadcast_to(jnp.tile(jnp.arange(size, dtype=jnp.int32), k), (groups, k * size))
  return Edges(token=token, expert=flat(expert).astype(jnp.int32), weight=flat(weight),
               num_tokens=size, num_experts=num_experts, num_virtual=num_virtual, choices=k)


def flat(values: jax.Array) -> jax.Array:
  """Returns [G,k*S] of what values [G,S,k] say of tokens' choices, in the order of `from_choices`.

  >>> flat(jnp.array([[[1, 2], [3, 4]]])).tolist()
  [[1, 3, 2, 4]]
  """
  return values.swapaxes(1, 2).reshape(len(values), -1)


def from_experts_choice(probs: jax.Array, capacity: int) -> Edges:
  """Returns the edges from every expert to its `capacity` best tokens, weighted by probs.

  Args:
    probs: f32[G,S,E].
  Returns:
    Edges with N = E*C, expert-major; ties go to the lower token.

  >>> edges = from_experts_choice(jnp.array([[[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]]]), 2)
  >>> edges.token.tolist(), edges.expert.tolist(), edges.weight.tolist()
  ([[0, 1, 2, 1]], [[0, 0, 1, 1]], [[0.5, 0.25, 0.875, 0.75]])
  """
  groups, size, experts = probs.shape
  weight, token = jax.lax.top_k(probs.swapaxes(1, 2), capacity)      # [G, E, C]
  expert = jnp.broadcast_to(jnp.arange(experts, dtype=jnp.int32)[:, None], (groups, experts, capacity))
  listed = lambda a: a.reshape(groups, experts * capacity)
  return Edges(token=listed(token).astype(jnp.int32), expert=listed(expert), weight=listed(weight),
               num_tokens=size, num_experts=experts)


def kill(edges: Kind, live: jax.Array) -> Kind:
  """Returns `edges` with the edges dead where live (bool[G,N]) is False.

  >>> edges = from_choices(jnp.array([[[0], [1]]]), jnp.ones((1, 2, 1)), 2)
  >>> kill(edges, jnp.array([[True, False]])).expert.tolist()
  [[0, 2]]
  """
  return edges.replace(expert=jnp.where(live, edges.expert, edges.dead))


def kill_padding(edges: Kind, mask: jax.Array) -> Kind:
  """Returns `edges` with the edges of padding tokens dead; mask is bool[G,S], True = real.

  >>> edges = from_choices(jnp.array([[[0, 1], [1, 0]]]), jnp.ones((1, 2, 2)), 2)
  >>> kill_padding(edges, jnp.array([[True, False]])).expert.tolist()
  [[0, 2, 1, 2]]
  """
  return kill(edges, jnp.take_along_axis(mask, edges.token, axis=1))


def expecting(edges: Kind, rows: float) -> Kind:
  """Returns `edges` whose router says how many rows real experts compute for a group on average.

  Cost is counted by that number where a token's number of experts varies. The metric `active_experts` says
  what the number was.

  Args:
    edges: Edges or Assignment [G,N].

  >>> edges = from_choices(jnp.zeros((1, 8, 4), int), jnp.ones((1, 8, 4)), 4)
  >>> edges.rows_per_group, expecting(edges, 16).rows_per_group
  (32, 16.0)
  """
  share = edges.num_experts / edges.dead                             # of real experts, under balance
  return edges.replace(spare=edges.token.shape[1] - rows / share)


def strongest(edges: Kind, rank: jax.Array, capacity: int) -> Kind:
  """Returns `edges` with those beyond the `capacity` of largest `rank` f32[G,N] of their expert dead.

  Ties in order. Unlike the priority of `cap`, `rank` is of edges; slots stay in the order of the list.

  >>> edges = from_choices(jnp.array([[[0], [0], [1]]]), jnp.ones((1, 3, 1)), 2)
  >>> strongest(edges, jnp.array([[0.1, 0.2, 0.0]]), 1).expert.tolist()
  [[2, 0, 1]]
  """
  order = jnp.argsort(-jax.lax.stop_gradient(rank), axis=-1, stable=True)          # [G, N]
  return kill(edges, counting.rank_in_expert(edges.expert, edges.dead + 1, order) < capacity)


def cap(edges: Edges, capacity: int | tuple[int, ...], priority: jax.Array | None = None) -> Assignment:
  """Returns the Assignment that keeps the first `capacity` edges of each expert, and all of virtual experts.

  Args:
    edges:    Edges; padding already killed.
    capacity: C, slots per expert and group; or a tuple with the slots of each of the E + Z experts, so
      that virtual experts have limits as well. C is then the largest number of the first E.
    priority: f32[G,S] or None. If given, tokens of larger priority come first within
      each choice level (batch-prioritised routing, arXiv:2106.05974); ties in order.
      Slots are written back to the original places, so the list never moves.

  Three tokens want expert 0, which has two slots; the slot of a dead edge is C:

  >>> edges = from_choices(jnp.array([[[0], [0], [0]]]), jnp.ones((1, 3, 1)), 2)
  >>> cap(edges, 2).slot.tolist(), cap(edges, 2).expert.tolist()
  ([[0, 1, 2]], [[0, 0, 2]])
  >>> cap(edges, 2, priority=jnp.array([[0.1, 0.2, 0.3]])).slot.tolist()
  [[2, 1, 0]]
  >>> cap(edges, (1, 2)).slot.tolist()
  [[0, 2, 2]]
  """
  order = None if priority is None else _priority_order(edges, priority)
  rank = counting.rank_in_expert(edges.expert, edges.dead + 1, order)              # [G, N]
  real = edges.expert < edges.num_experts
  virtual = ~real & (edges.expert < edges.dead)
  if isinstance(capacity, tuple):
    if len(capacity) != edges.dead:
      raise ValueError(f'{len(capacity)} capacities for {edges.dead} experts')
    within = rank < jnp.array([*capacity, 0])[edges.expert]          # [G, N]
    virtual, capacity = virtual & within, max(capacity[:edges.num_experts])
  else:
    within = rank < capacity
  live = real & within
  return Assignment(
      token=edges.token, weight=edges.weight,
      expert=jnp.where(live | virtual, edges.expert, edges.dead),
      slot=jnp.where(live, rank, capacity).astype(jnp.int32),
      num_tokens=edges.num_tokens, num_experts=edges.num_experts,
      num_virtual=edges.num_virtual, choices=edges.choices, spare=edges.spare, capacity=capacity)


def _priority_order(edges, priority):
  """i32[G,N] permutation: choice levels in order, tokens by falling priority inside each."""
  groups, num = edges.token.shape
  levels = edges.choices or 1
  score = jnp.take_along_axis(priority, edges.token, axis=1).reshape(groups, levels, num // levels)
  order = jnp.argsort(-score, axis=-1, stable=True)                  # [G, k, N/k]
  return (order + jnp.arange(levels)[:, None] * (num // levels)).reshape(groups, num)


def merge(edges: Kind) -> Kind:
  """Returns `edges` in which no token has an expert twice: the first of such edges has the sum of weights.

  The other edges of the expert are dead. This is for edges that lead to fewer experts than they were made
  for (`routers/wrappers/remap.py`). Takes [G,S,E] entries.

  Args:
    edges: Edges or Assignment [G,N]; virtual experts count as experts.

  >>> edges = from_choices(jnp.array([[[1, 1], [0, 1]]]), jnp.array([[[0.5, 0.25], [0.5, 0.25]]]), 2)
  >>> merge(edges).expert.tolist(), merge(edges).weight.tolist()
  ([[1, 0, 2, 1]], [[0.75, 0.5, 0.75, 0.25]])
  """
  groups, number = edges.token.shape
  at = (jnp.arange(groups)[:, None], edges.token, edges.expert)      # dead edges are out of bounds
  shape, edge = (groups, edges.num_tokens, edges.dead), jnp.arange(number)
  weight = jnp.zeros(shape, edges.weight.dtype).at[at].add(edges.weight, mode='drop')
  first = jnp.full(shape, number).at[at].min(edge, mode='drop')      # [G, S, E+Z]
  read: dict[str, typing.Any] = dict(mode='fill', fill_value=0)
  kept = kill(edges, first.at[at].get(**read) == edge)
  return kept.replace(weight=weight.at[at].get(**read))


def live(a: Edges) -> jax.Array:
  """Returns bool[G,N]: edges that reach a real expert.

  >>> live(cap(from_choices(jnp.array([[[0], [0]]]), jnp.ones((1, 2, 1)), 2), 1)).tolist()
  [[True, False]]
  """
  return a.expert < a.num_experts


def reaching(a: Edges) -> jax.Array:
  """Returns bool[G,N]: edges that reach an expert, a real or a virtual one.

  >>> reaching(from_choices(jnp.array([[[0], [1], [2]]]), jnp.ones((1, 3, 1)), 1, num_virtual=1)).tolist()
  [[True, True, False]]
  """
  return a.expert < a.dead


def masks(a: Assignment) -> tuple[jax.Array, jax.Array]:
  """Returns dispatch bool[G,S,E,C] and combine f32[G,S,E,C], the dense form of `a`.

  >>> edges = from_choices(jnp.array([[[1], [0]]]), jnp.array([[[0.5], [0.25]]]), 2)
  >>> masks(cap(edges, 1))[1].tolist()
  [[[[0.0], [0.5]], [[0.25], [0.0]]]]
  """
  groups = a.token.shape[0]
  shape = (groups, a.num_tokens, a.num_experts, a.capacity)
  at = (jnp.arange(groups)[:, None], a.token, a.expert, a.slot)
  weight = jnp.where(live(a), a.weight, 0)                           # dead weights may be NaN
  dispatch = jnp.zeros(shape, bool).at[at].set(True, mode='drop')
  combine = jnp.zeros(shape, a.weight.dtype).at[at].add(weight, mode='drop')
  return dispatch, combine
