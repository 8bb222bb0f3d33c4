"""The loop of strategies with one text a row: choose a token, compute its logits, until all rows end."""

import jax
import jax.experimental
import jax.numpy as jnp


def run(logits, state, step, choose, length, eos_id, tell=None):
  """Returns i32[B,length] ids, up to and with the end, then 0; stops when every row has ended.

  Args:
    logits: f32[B,V] of the first token.
    state:  what `step` keeps, a pytree.
    step:   (ids i32[B], real bool[B], state) -> (logits f32[B,V] of the next token, state).
    choose: (logits f32[B,V], i i32[]) -> i32[B] token number i.
    eos_id: the id that ends a text, or several.
    tell:   a function of the host, called with (i, i32[B] token number i) as soon as token i is chosen. Rows
      that have ended have 0. None = nobody wants to know.
  """
  ends = lambda ids: jnp.isin(ids, jnp.asarray(eos_id))
  chosen = lambda i, ids: _told(tell, i, ids.astype(jnp.int32))
  first = chosen(jnp.int32(0), choose(logits, jnp.int32(0)))         # [B]
  ids = jnp.zeros((len(first), length), jnp.int32).at[:, 0].set(first)

  def going(carry):
    i, _, _, ended, _ = carry
    return (i < length) & ~jnp.all(ended)

  def advance(carry):
    i, ids, last, ended, state = carry
    logits, state = step(last, ~ended, state)
    last = chosen(i, jnp.where(ended, 0, choose(logits, i)))
    ids = jax.lax.dynamic_update_slice_in_dim(ids, last[:, None], i, 1)
    return i + 1, ids, last, ended | ends(last), state

  carry = jnp.int32(1), ids, first, ends(first), state
  return jax.lax.while_loop(going, advance, carry)[1]


def _told(tell, i, ids):
  """`ids`, of which the host has heard, if it wants to."""
  if tell is not None:
    jax.experimental.io_callback(tell, None, i, ids)
  return ids
