"""What a mixture of predictions gives where its experts' predictions stay apart: targets mix them."""

from flax import struct
import jax


class Mixture(struct.PyTreeNode):
  """The predictions of E experts for tokens [B,T].

  logits:  f32[B,T,E,V] of each expert.
  weights: f32[B,T,E], how much each expert counts; they add up to 1.
  answers: f32[B,T,E], in which share of some draws each expert answers alone; without draws, the weights.
  """
  logits: jax.Array
  weights: jax.Array
  answers: jax.Array
