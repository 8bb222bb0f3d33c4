"""The small models of this folder: a causal language model, and a T5 for what must not be causal.

A function (layers, num_layers, vocab_size, d_model, remat) -> section `model` for every backbone of
`common.compared`; `layers` is the pattern of the stack with the compared layers.
"""


def lm(layers, num_layers, vocab_size, d_model, remat='elementwise'):
  """Returns a decoder-only model."""
  return dict(name='lm', vocab_size=vocab_size, d_model=d_model, num_heads=d_model // 64, head_dim=64,
              layers=layers, tie_embeddings=False, dtype='float32', scan_layers=True, remat=remat)


def mlp_lm(layers, num_layers, vocab_size, d_model, remat='elementwise'):
  """Returns a decoder-only model without attention."""
  return dict(name='mlp_lm', vocab_size=vocab_size, d_model=d_model, layers=layers, tie_embeddings=False,
              dtype='float32', scan_layers=True, remat=remat)


def t5(layers, num_layers, vocab_size, d_model, remat='elementwise'):
  """Returns an encoder-decoder with the compared layers in its encoder.

  The decoder is dense in all of its layers, so that methods are compared in the encoder alone.
  """
  return dict(name='t5', vocab_size=vocab_size, d_model=d_model, num_heads=d_model // 64, head_dim=64,
              encoder=layers, decoder=(('d', num_layers // 2),), dtype='float32', scan_layers=True,
              remat=remat)


BACKBONES = dict(lm=lm, mlp_lm=mlp_lm, t5=t5)
