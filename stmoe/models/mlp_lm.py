"""A decoder-only language model without attention: positions mix in the layers (gMLP, sparse all-MLP)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.parts import embed
from stmoe.parts import norm
from stmoe.parts import stack


class MlpLM(nnx.Module):
  """Embedding, a stack of attention-free blocks with LayerNorm, a head (gMLP, arXiv:2105.08050).

  There are no position embeddings: the weights of `gmlp` layers belong to positions, and their `length`
  is the longest row.

  Args:
    vocab_size, d_model: V and D.
    layers:       pattern of the stack, for example (('gggst', 2),).
    blocks:       mapping letter -> layer (see `stack.Stack`).
    tie_embeddings: the head is the embedding transposed, over sqrt(D).
    dropout_rate: after embedding, layers and final norm.
    init_scale:   variance scale of the untied head; layers have their own.
    dtype:        of activations; parameters, norms, routers and logits are float32.
    scan_layers, remat: see `stack.Stack`.
  """

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count, layers: ranges.Pattern, blocks,
               tie_embeddings: ranges.Flag = True, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, dtype: ranges.Dtype = 'float32',
               scan_layers: ranges.Flag = True, remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    self.embed = embed.Embed(vocab_size, d_model, rngs=rngs)
    self.decoder = stack.Stack(d_model, name='decoder', pattern=layers, blocks=blocks, norm=norm.LayerNorm,
                               dropout_rate=dropout_rate, scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.head = None if tie_embeddings else embed.Head(d_model, vocab_size, init_scale=init_scale, rngs=rngs)
    self.vocab_size = vocab_size
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,T,V], aux: dict layer name -> Aux).

    Args:
      batch:  dict of i32[B,T]: decoder_input_tokens, decoder_segment_ids, decoder_positions.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    ctx = contract.Context.of_batch(batch, 'decoder', key=key, step=jnp.asarray(step),
                                    tokens=tokens['decoder'], vocab_size=self.vocab_size,
                                    train=train, causal=True)
    x, aux = self.decoder(self.embed(ctx.ids, self.dtype), ctx)      # [B, T, D]
    with jax.named_scope('head'):
      return self.embed.logits(x) if self.head is None else self.head(x), aux   # [B, T, V]

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of each stack in `batch`: dict stack name -> f32[]."""
    return {'decoder': jnp.sum(batch['decoder_segment_ids'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.decoder]
