"""Steps of recurrent cells, as pure functions of their arrays: gated, plain, with a long memory.

All matrices that act on the input are one, w [D,nP] of n gates of width P. Those that act on the state are
one, v [P,nP]. Each has a bias of its own, [nP]: the reset gate of `gru` multiplies what is made with v
and its bias, which therefore cannot be one with the bias of w.
"""

import typing

import jax
import jax.numpy as jnp


class Weights(typing.NamedTuple):
  """Arrays of a cell of n gates: w [D,nP] and b [nP] of the input, v [P,nP] and c [nP] of the state."""
  w: jax.Array
  v: jax.Array
  b: jax.Array
  c: jax.Array


def gru(z: jax.Array, state: jax.Array, weights: Weights) -> jax.Array:
  """Returns the next state [...,P] of a gated recurrent unit for input z [...,D].

  r = sigmoid(z Wr + br + h Vr + cr) and u likewise; n = tanh(z Wn + bn + r * (h Vn + cn));
  h' = (1 - u) n + u h. The gates stand in the order r, u, n.
  """
  new, old = _products(z, state, weights, 3)
  r, u = (jax.nn.sigmoid(new[i] + old[i]) for i in (0, 1))           # [..., P]
  return (1 - u) * jnp.tanh(new[2] + r * old[2]) + u * state


def rnn(z: jax.Array, state: jax.Array, weights: Weights) -> jax.Array:
  """Returns the next state h' = tanh(z W + b + h V + c) [...,P] for input z [...,D]."""
  new, old = _products(z, state, weights, 1)
  return jnp.tanh(new[0] + old[0])


def lstm(z: jax.Array, state: jax.Array, weights: Weights) -> jax.Array:
  """Returns the next state [...,2P] of a cell with a long memory, h' and then m', for input z [...,D].

  i, f, o = sigmoid(z W + b + h V + c) each, g = tanh(of the same); m' = f m + i g; h' = o tanh(m').
  The gates stand in the order i, f, g, o.
  """
  h, m = jnp.split(state, 2, axis=-1)
  new, old = _products(z, h, weights, 4)
  i, f, g, o = (a + b for a, b in zip(new, old))
  m = jax.nn.sigmoid(f) * m + jax.nn.sigmoid(i) * jnp.tanh(g)
  return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(m), m], axis=-1)


class Cell(typing.NamedTuple):
  """A kind of cell: its gates n, how many widths P its state [...,s P] has, and its step."""
  gates: int
  widths: int
  step: typing.Callable[[jax.Array, jax.Array, Weights], jax.Array]


CELLS = dict(gru=Cell(3, 1, gru), rnn=Cell(1, 1, rnn), lstm=Cell(4, 2, lstm))


def _products(z, h, weights, gates):
  """(z W + b, h V + c), each a list of one array [...,P] a gate, in full precision."""
  product = lambda x, w, b: jnp.split(jnp.matmul(x, w, precision='highest') + b, gates, axis=-1)
  return product(z, weights.w, weights.b), product(h, weights.v, weights.c)
