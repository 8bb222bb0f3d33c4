"""Balanced assignments: every expert gets exactly K = S/E of the S tokens of a group.

`auction` comes near the largest total score, `greedy_balanced` is the cheap alternative, and
`sinkhorn` relaxes the assignment to a plan of fractions. All work on each group by itself, have
static shapes, always end, and draw nothing. All are compiled once for a shape, also where nothing around
is compiled. Letters: G groups, S tokens, E experts.
"""

import jax
import jax.numpy as jnp

from stmoe.core.units import counting

EPSILON = 1 / 50                 # what every bid adds, as a share of the range of scores
TIE_BREAK = 1e-6                 # largest change of a score that orders ties, as a share of the range
BIDDING_ROUNDS = 100             # as many as the reference; tokens still unowned are placed one by one
EXCHANGE_ROUNDS = 100            # by pairs, and again as many by cycles
LEAST_GAIN = 1 / 1000            # per move of an exchange, as a share of the range of scores


@jax.jit
def auction(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Returns i32[G,S], the expert of each token: balanced, with nearly the largest total score.

  The auction of BASE layers (arXiv:2103.16716, section 3.2, after Bertsekas). In each round every
  expert bids for the K tokens it values most. The bid for a token is by how much more the token is worth
  to the expert than the expert's (K+1)-th token. A token goes to the highest bidder and gets dearer by that
  bid. The auction ends when the K favourites of all experts are all the tokens. Then tokens are exchanged as
  long as that raises the total noticeably, which brings it within S * range / 1000 of the optimum.
  Padding is worth the least to all experts alike, so it takes the places real tokens leave.

  Args:
    scores: f32[G,S,E]; E divides S. Non-finite entries count as the smallest finite one of the group.
    mask:   bool[G,S] real tokens; None = all.
  Differs: the reference does not end if E does not divide S, and repeats tokens where scores are
    tied. Here a tie-break orders equal scores, rounds are limited, and `_place` gives the rest of
    the tokens what room there is. Scores are relative to their range, so neither scale nor shift
    counts (the reference adds at least 1e-4 to a bid); exchanges are ours.

  Both tokens prefer expert 0, the first one by more:

  >>> auction(jnp.array([[[3.0, 0.0], [2.0, 1.0]]])).tolist()
  [[0, 1]]
  """
  def one(scores):
    return _exchange(scores, _place(scores, _bid(scores)))
  return jax.vmap(one)(_normalize(scores, mask))


@jax.jit
def greedy_balanced(scores: jax.Array, mask: jax.Array | None = None,
                    order: jax.Array | None = None) -> jax.Array:
  """Returns i32[G,S]: the experts, one after the other, take their K best of the tokens still there.

  One pass over the experts, valid whatever the scores; the total is lower than `auction`'s (the
  alternative of the StableMoE code, arXiv:2204.08396). Padding is taken after all real tokens.

  Args:
    scores, mask: see `auction`.
    order:  i32[G,E], a permutation: which expert chooses first; None = by expert id.

  Expert 0 chooses first, and likes token 1 more:

  >>> greedy_balanced(jnp.array([[[2.0, 0.0], [3.0, 3.0]]])).tolist()
  [[1, 0]]
  """
  groups, size, experts = scores.shape
  share = size // experts
  scores = _normalize(scores, mask)
  if mask is not None:
    scores = jnp.where(mask.astype(bool)[..., None], scores, -1)
  if order is None:
    order = jnp.broadcast_to(jnp.arange(experts), (groups, experts))

  def of_group(scores, order):
    def take(owner, expert):
      available = jnp.where(owner == experts, scores[:, expert], -2)  # [S]
      return owner.at[jax.lax.top_k(available, share)[1]].set(expert), None
    return jax.lax.scan(take, jnp.full(size, experts, jnp.int32), order.astype(jnp.int32))[0]
  return jax.vmap(of_group)(scores, order)


def _normalize(scores, mask):
  """f32[G,S,E]: scores shifted and scaled to [0,1] in each group, 0 for padding and non-finite scores.

  Every entry gets its own small addition, which orders ties.
  """
  _, size, experts = scores.shape
  scores = scores.astype(jnp.float32) / 2                            # so that the range cannot overflow
  usable = jnp.isfinite(scores)
  if mask is not None:
    usable &= mask.astype(bool)[..., None]
  low = jnp.min(jnp.where(usable, scores, jnp.inf), axis=(1, 2), keepdims=True)    # [G, 1, 1]
  high = jnp.max(jnp.where(usable, scores, -jnp.inf), axis=(1, 2), keepdims=True)
  width = jnp.where(high > low, high - low, 1)
  scores = jnp.where(usable, (scores - jnp.where(usable, low, 0)) / width, 0)
  # Multiples of the golden ratio modulo 1 are spread evenly and never repeat.
  multiples = jnp.arange(size * experts, dtype=jnp.uint32) * jnp.uint32(2654435769)
  return scores + TIE_BREAK * (multiples.astype(jnp.float32) / 2.0 ** 32).reshape(size, experts)


def _bid(scores):
  """i32[S]: owners after the auction of normalised scores f32[S,E]; E = nobody. No expert has over K."""
  size, experts = scores.shape
  if experts == 1:
    return jnp.zeros(size, jnp.int32)
  share, expert, worth = size // experts, jnp.arange(experts)[:, None], scores.T   # worth: [E, S]

  def bids(value):
    # The barrier keeps both outputs alive: XLA sorts whole rows, ten times slower, if one is unused.
    best, _ = jax.lax.optimization_barrier(jax.lax.top_k(value, share + 1))        # [E, K+1]
    next_best = best[:, share:]                                      # [E, 1]
    return jnp.where(value > next_best, value - next_best + EPSILON, 0)            # [E, S], 0 = none

  def winners(offered):
    highest = offered.max(axis=0)                                    # [S]
    first = jnp.min(jnp.where(offered == highest, expert, experts), axis=0)
    return highest, jnp.where(highest > 0, first, experts)

  def contested(state):
    number, *_, offered = state
    return (number < BIDDING_ROUNDS) & jnp.any(jnp.sum(offered > 0, axis=0) != 1)

  def bid_again(state):
    number, price, owner, offered = state
    # A token that was sold stays unless another expert bids: the owner's own bid is the least.
    highest, owner = winners(jnp.where(owner == expert, EPSILON, offered))
    price = price + highest
    # No token is worth more to an owner than its own, so its token is among its next favourites.
    value = jnp.where(owner == expert, worth.max(), worth - price)
    return number + 1, price, owner, bids(value)

  start = 0, jnp.zeros(size), jnp.full(size, experts), bids(worth)
  return winners(jax.lax.while_loop(contested, bid_again, start)[-1])[1]


def _place(scores, owner):
  """i32[S]: `owner` i32[S] (E = nobody, none over K) with everybody placed where there is room.

  In each round the unplaced tokens go to their best expert with room, the better scores first. A round
  fills an expert or places all tokens, so there are at most E rounds.
  """
  size, experts = scores.shape

  def place(owner):
    room = size // experts - jnp.bincount(owner, length=experts)     # [E]
    wish = jnp.argmax(jnp.where(room > 0, scores, -1), axis=1)       # [S]
    wish = jnp.where(owner == experts, wish, experts)
    gain = jnp.take_along_axis(scores, wish[:, None], axis=1, mode='clip')[:, 0]
    order = jnp.argsort(-gain, stable=True)
    rank = counting.rank_in_expert(wish[order][None], experts + 1)[0]
    rank = jnp.zeros_like(rank).at[order].set(rank)
    return jnp.where(rank < jnp.append(room, 0)[wish], wish, owner).astype(jnp.int32)

  return jax.lax.while_loop(lambda owner: jnp.any(owner == experts), place, owner.astype(jnp.int32))


def _exchange(scores, owner):
  """i32[S]: the balanced `owner` i32[S] after exchanges of tokens that raise the total."""
  size, experts = scores.shape
  expert = jnp.arange(experts)

  def gains(table):
    scored = scores[table]                                           # [E, K, E]
    gain = scored - scored[expert, :, expert][..., None]             # if a token moves to the last axis
    gain = jnp.where(jnp.eye(experts, dtype=bool)[:, None], -1e30, gain)
    return gain.max(axis=1), gain.argmax(axis=1)                     # [E, E] twice

  def rounds(find, table):
    """`table` after the exchanges that `find` names: i32[E], from whom each expert gets a token."""
    def exchange(state):
      number, table, place, source = state
      slot = place[expert, jnp.argsort(source)]                      # of the token that each gives away
      table = table.at[expert, slot].set(table[expert, slot][source])
      gain, place = gains(table)
      return number + 1, table, place, find(gain)

    def improves(state):
      number, _, _, source = state
      return (number < EXCHANGE_ROUNDS) & jnp.any(source != expert)

    gain, place = gains(table)
    return jax.lax.while_loop(improves, exchange, (0, table, place, find(gain)))[1]

  table = jnp.argsort(owner, stable=True).reshape(experts, -1)       # [E, K], the tokens of each expert
  table = rounds(_cycle, rounds(_pairs, table))
  return jnp.zeros_like(owner).at[table].set(expert[:, None].astype(jnp.int32))


def _pairs(gain):
  """i32[E]: for each expert its partner in an exchange by pairs, or the expert itself without a partner.

  Two experts exchange that are each other's best partner. gain f32[E,E]: of a token's move from a to b.
  """
  expert, joint = jnp.arange(len(gain)), gain + gain.T
  partner = joint.argmax(axis=1)
  agreed = (partner[partner] == expert) & (joint.max(axis=1) > 2 * LEAST_GAIN)
  return jnp.where(agreed, partner, expert)


def _cycle(gain):
  """i32[E]: from whom each expert on a cycle of moves gets a token; from itself for all other experts.

  The cycle gains over LEAST_GAIN per move. Without any such cycle the total is within S times
  LEAST_GAIN of the optimum. Bellman-Ford: walks that still grow after E moves contain a cycle.
  """
  experts = len(gain)
  expert, gain = jnp.arange(experts), gain - LEAST_GAIN

  def lengthen(state):
    number, total, source, _ = state
    walked = total[:, None] + gain                                   # [E, E]
    longer = walked.max(axis=0) > total + 1e-6
    return (number + 1, jnp.where(longer, walked.max(axis=0), total),
            jnp.where(longer, walked.argmax(axis=0), source), longer)

  start = 0, jnp.zeros(experts), expert, jnp.ones(experts, bool)
  *_, source, longer = jax.lax.while_loop(lambda s: (s[0] <= experts) & jnp.any(s[-1]), lengthen, start)
  back = lambda _, state: (source[state[0]], state[1].at[state[0]].set(True))
  nowhere = jnp.zeros(experts, bool)
  at, _ = jax.lax.fori_loop(0, experts, back, (longer.argmax(), nowhere))
  _, on_cycle = jax.lax.fori_loop(0, experts, back, (at, nowhere))
  return jnp.where(on_cycle & jnp.any(longer), source, expert)


@jax.jit
def sinkhorn(logits: jax.Array, mask: jax.Array | None = None, tolerance: float = 1e-4,
             iterations: int = 1000) -> jax.Array:
  """Returns f32[G,S,E], the plan nearest to softmax(logits) with equal rows and equal columns.

  The largest sum of plan * logits plus the plan's entropy (S-BASE, arXiv:2202.01169). The plan is
  diag(u) exp(logits) diag(v). Rows of real tokens sum to 1/n (n of them), and columns sum to 1/E.
  u and v are renewed in turn until v has converged, that is, changes by at most
  `tolerance` in the mean. v comes last, so columns are exact and rows nearly so.

  Args:
    logits: f32[G,S,E]. Adding a constant to a row changes nothing.
    mask:   bool[G,S] real tokens; rows of padding are 0.
    iterations: limit for groups that converge slowly.
  Differs: Megatron-LM iterates on exp(logits), which overflows at 88; here in the log domain, by group.

  >>> sinkhorn(jnp.array([[[0.0, 0.0], [0.0, 0.0]]])).tolist()
  [[[0.25, 0.25], [0.25, 0.25]]]
  """
  groups, size, experts = logits.shape
  mask = jnp.ones((groups, size), bool) if mask is None else mask.astype(bool)

  def of_group(logits, real):
    logits = jnp.where(real[:, None], logits.astype(jnp.float32), 0)
    log_row = -jnp.log(jnp.maximum(jnp.sum(real), 1).astype(jnp.float32))
    log_column = -jnp.log(jnp.float32(experts))

    def renew(state):
      number, _, log_v, _ = state
      log_u = log_row - jax.nn.logsumexp(logits + log_v, axis=1)     # [S]
      log_u = jnp.where(real, log_u, -jnp.inf)
      new_log_v = log_column - jax.nn.logsumexp(logits + log_u[:, None], axis=0)     # [E]
      return number + 1, log_u, new_log_v, jnp.mean(jnp.abs(jnp.exp(new_log_v) - jnp.exp(log_v)))

    def moves(state):
      number, _, _, change = state
      return (number < iterations) & (change > tolerance)

    start = 0, jnp.zeros(size), jnp.zeros(experts), jnp.float32(jnp.inf)
    _, log_u, log_v, _ = jax.lax.while_loop(moves, renew, start)
    plan = jnp.exp(log_u[:, None] + logits + log_v)
    return jnp.where(real[:, None], plan, 0)                         # [S, E]

  return jax.vmap(of_group)(logits, mask)
