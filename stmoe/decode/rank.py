"""How likely the targets of a batch are: to rank labels, and for lm-evaluation-harness."""

import jax
import jax.numpy as jnp


def details(model, batch, key=None, alone=False):
  """Returns dict(score f32[B], greedy bool[B], drop_frac f32[]) of the targets of each row.

  score is the sum of the log-probabilities of the tokens that count, 0.0 at best. greedy is whether each of
  them is the most probable token there. drop_frac is the share of choices that found their expert full, as a
  mean over sparse layers; 0 without sparse layers. Evaluation capacity, no dropout.

  Args:
    model: returns (logits f32[B,T,V], aux) for a batch.
    batch: dict of i32[B,T]; decoder_loss_weights are 1 on the tokens that count.
    key:   PRNG key, for routers that draw in evaluation, too; None for none.
    alone: route every token by itself, as generation does. Scores then do not depend on the rows beside, and
      nothing is dropped. Otherwise, with a capacity, what a row gets depends on those rows.
  """
  logits, aux = model(batch, key=key, train=False, **(dict(alone=True) if alone else {}))    # [B, T, V]
  targets, real = batch['decoder_target_tokens'], batch['decoder_loss_weights'] > 0
  right = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), targets[..., None], axis=-1)
  drops = [a.metrics['drop_frac'] for a in aux.values() if 'drop_frac' in a.metrics]
  return dict(score=jnp.sum(jnp.where(real, right[..., 0], 0), axis=1),
              greedy=jnp.all((logits.argmax(axis=-1) == targets) | ~real, axis=1),
              drop_frac=sum(drops) / len(drops) if drops else jnp.float32(0))


def scores(model, batch, key=None):
  """Returns f32[B], the log-likelihood of the targets of each row; see `details`."""
  return details(model, batch, key)['score']
