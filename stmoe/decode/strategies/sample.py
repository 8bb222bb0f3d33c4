"""Sampling with temperature, from the k best tokens (arXiv:1805.04833) or a nucleus (arXiv:1904.09751)."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.decode import loop
from stmoe.errors import UserError


def shortlist(logits, top_k=0, top_p=1.0):
  """Returns logits f32[B,V] with -inf for tokens that are not drawn.

  Args:
    top_k: keep the k largest; 0 = all. Ties with the k-th are kept.
    top_p: keep the fewest tokens, the most probable first, whose probability together is at least p.

  >>> jnp.exp(shortlist(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), top_k=1)).tolist()
  [[0.5, 0.0, 0.0]]
  >>> jnp.isfinite(shortlist(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), top_p=0.6)).tolist()
  [[True, True, False]]
  """
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]                  # [B, 1]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)             # [B, V]
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs                      # the first has 0: it is always kept
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


class Sample:
  """A draw from softmax(logits / temperature), after `shortlist`.

  The draws of a row depend on its place in the batch and on the key.

  Args:
    temperature:  above 0.
    top_k, top_p: see `shortlist`, of the logits over temperature.
    eos_id:       the id that ends a text, or several.
  """

  tell = None                            # see loop.run

  def __init__(self, *, temperature: ranges.Above0('decode.name=greedy') = 1.0,
               top_k: ranges.Natural = 0, top_p: ranges.PartOf1 = 1.0, eos_id=1):
    if not temperature > 0:
      raise UserError(f'decode.temperature={temperature}: it is above 0; nearest: decode.name=greedy')
    if top_k < 0:
      raise UserError(f'decode.top_k={top_k}: a number of tokens; nearest: 0, all of them')
    if not 0 < top_p <= 1:
      raise UserError(f'decode.top_p={top_p}: a probability above 0; nearest: {min(1.0, max(top_p, 0.01))}')
    self.temperature = temperature
    self.top_k = top_k
    self.top_p = top_p
    self.eos_id = eos_id

  def check(self, model):
    """Accepts every model."""

  def __call__(self, model, batch, length, key):
    """Returns i32[B,length], drawn from `key`, as routers that draw do."""
    def choose(logits, i):
      logits = shortlist(logits / self.temperature, self.top_k, self.top_p)
      return jax.random.categorical(jax.random.fold_in(key, i), logits)

    logits, cache = model.begin(batch, length, key)
    return loop.run(logits, cache, model.step, choose, length, self.eos_id, self.tell)
