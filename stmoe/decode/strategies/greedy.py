"""Greedy decoding: the most probable token at every place."""

import jax.numpy as jnp

from stmoe.decode import loop


class Greedy:
  """The token of the largest logit, the lower id on ties.

  Args:
    eos_id: the id that ends a text, or several.
  """

  tell = None                            # see loop.run

  def __init__(self, *, eos_id=1):
    self.eos_id = eos_id

  def check(self, model):
    """Accepts every model."""

  def __call__(self, model, batch, length, key):
    """Returns i32[B,length]; only routers draw from `key`."""
    logits, cache = model.begin(batch, length, key)
    return loop.run(logits, cache, model.step, lambda logits, i: jnp.argmax(logits, axis=-1), length,
                    self.eos_id, self.tell)
