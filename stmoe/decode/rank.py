"""How likely the targets of a batch are, to rank labels by it."""

import jax
import jax.numpy as jnp


def scores(model, batch, key=None):
  """Returns f32[B], the log-likelihood of the targets of each row: 0.0 at best, the sum over its real tokens.

  Evaluation capacity, no dropout. With a capacity, what a row gets depends on the rows beside it.

  Args:
    model: returns (logits f32[B,T,V], aux) for a batch.
    batch: dict of i32[B,T]; decoder_loss_weights are 1 on the tokens that count.
    key:   PRNG key, for routers that draw in evaluation, too; None for none.
  """
  logits, _ = model(batch, key=key, train=False)                     # [B, T, V]
  targets = batch['decoder_target_tokens'][..., None]
  right = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), targets, axis=-1)[..., 0]
  return jnp.sum(right * batch['decoder_loss_weights'], axis=-1)
