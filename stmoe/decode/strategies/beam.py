"""Beam search with T5's length penalty (Wu et al., 2016, arXiv:1609.08144; as t5x has it)."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe.errors import UserError

NEVER = -1e9                                                         # log-probability of what does not exist


def penalty(length, alpha):
  """Returns ((5 + length) / 6)^alpha, by which log-probabilities of `length` tokens are divided.

  >>> penalty(1, 0.6), penalty(7, 1.0)
  (1.0, 2.0)
  """
  return ((5 + length) / 6) ** alpha


class Beam:
  """The finished text of the largest log-probability over `penalty` among texts that the search meets.

  K beams live in each row. The best continuations of all beams are found, 2K with one id that ends a text.
  Continuations that end and are among the K best join the finished texts, of which the K best by score are
  kept. The K best of the other continuations live on.
  A row is done when not even its best beam, at the penalty of the full length, could beat its worst
  finished text. EOS counts as a token. A row in which nothing has ended gives its best beam.

  Args:
    beams:          K. With 1 and length_penalty 0 this is greedy decoding.
    length_penalty: alpha; T5 has 4 beams and 0.6.
    eos_id:         the id that ends a text, or several.
  Differs: t5x lets any ending among the 2K best finish, so its single beam is not greedy.
  """

  def __init__(self, *, beams: ranges.Count = 4, length_penalty: ranges.NonNegative = 0.6,
               eos_id=1):
    if beams < 1:
      raise UserError(f'decode.beams={beams}: at least one; nearest: 1')
    if length_penalty < 0:
      raise UserError(f'decode.length_penalty={length_penalty}: not negative; nearest: 0.0')
    self.beams = beams
    self.length_penalty = length_penalty
    self.eos_id = eos_id

  def check(self, model):
    """Accepts every model."""

  def __call__(self, model, batch, length, key):
    """Returns i32[B,length]; only routers draw from `key`: all beams of a row have its draws."""
    return self.search(model, batch, length, key)[0]

  def search(self, model, batch, length, key):
    """Returns (ids i32[B,length] of the best text of each row, its log-probability over penalty f32[B])."""
    logits, cache = model.begin(batch, length, key)
    rows = len(logits)
    home = jnp.repeat(jnp.arange(rows) * self.beams, self.beams)     # [B*K] first beam of a beam's row
    cache = cache.take(home // self.beams)
    ids = jnp.zeros((rows, self.beams, length), jnp.int32)
    alive = jnp.tile(jnp.array([0.0] + [NEVER] * (self.beams - 1)), (rows, 1))     # [B, K]: one text at first
    ended = jnp.full((rows, self.beams), NEVER)
    logits = jnp.repeat(logits, self.beams, axis=0)                  # [B*K, V]
    beams = self._choose(jnp.int32(0), logits, (ids, alive, ids, ended))

    def going(carry):
      i, _, (_, alive, _, ended), _ = carry
      return (i < length) & ~jnp.all(self._done(alive, ended, length))

    def advance(carry):
      i, came_from, beams, cache = carry
      last = jax.lax.dynamic_index_in_dim(beams[0], i - 1, 2, keepdims=False).reshape(-1)
      real = jnp.repeat(~self._done(beams[1], beams[3], length), self.beams)
      logits, cache = model.step(last, real, cache.reorder(home + came_from.reshape(-1)))
      came_from, beams = self._choose(i, logits, beams)
      return i + 1, came_from, beams, cache

    carry = jnp.int32(1), *beams, cache
    _, _, (ids, alive, texts, ended), _ = jax.lax.while_loop(going, advance, carry)
    none = ended[:, :1] <= NEVER / 2                                 # best first
    best = jnp.where(none, ids[:, 0], texts[:, 0])
    return best, jnp.where(none, alive[:, :1] / penalty(length, self.length_penalty), ended[:, :1])[:, 0]

  def _done(self, alive, ended, length):
    """bool[B]: the worst finished text is better than what the best beam [B,K] may still become."""
    return ended.min(axis=1) > alive.max(axis=1) / penalty(length, self.length_penalty)

  def _choose(self, i, logits, beams):
    """(came_from i32[B,K], beams) after token number i of logits f32[B*K,V]."""
    ids, alive, texts, ended = beams
    rows, k, _ = ids.shape
    vocab = logits.shape[-1]
    total = alive[..., None] + jax.nn.log_softmax(logits).reshape(rows, k, vocab)
    most = min(k * (1 + np.size(self.eos_id)), k * vocab)            # M: so many hold K that do not end
    total, at = jax.lax.top_k(total.reshape(rows, k * vocab), most)  # [B, M]
    beam, token = at // vocab, (at % vocab).astype(jnp.int32)
    pick = lambda a, at: jnp.take_along_axis(a, at.reshape(*at.shape, *[1] * (a.ndim - 2)), axis=1)
    grown = jax.lax.dynamic_update_slice_in_dim(pick(ids, beam), token[..., None], i, 2)
    ends = jnp.isin(token, jnp.asarray(self.eos_id))                 # [B, M]
    alive, survivors = jax.lax.top_k(jnp.where(ends, NEVER, total), k)  # [B, K]
    finish = ends & (jnp.arange(most) < k) & (total > NEVER / 2)     # before a penalty makes NEVER likelier
    score = jnp.where(finish, total / penalty(i + 1, self.length_penalty), NEVER)
    ended, best = jax.lax.top_k(jnp.concatenate([ended, score], axis=1), k)
    texts = pick(jnp.concatenate([texts, grown], axis=1), best)
    return pick(beam, survivors), (pick(grown, survivors), alive, texts, ended)
