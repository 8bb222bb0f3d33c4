"""The two small models of this folder: a causal language model, and a T5 for what must not be causal."""


def lm(vocab_size, d_model, num_layers, remat='none'):
  """Returns a decoder-only model whose every second layer is the compared one."""
  return dict(name='lm', vocab_size=vocab_size, d_model=d_model, num_heads=d_model // 64, head_dim=64,
              layers=(('dm', num_layers // 2),), tie_embeddings=False, dtype='float32', scan_layers=True,
              remat=remat)


def t5(vocab_size, d_model, num_layers, remat='none'):
  """Returns an encoder-decoder whose encoder's every second layer is the compared one.

  The decoder is dense in all of them, so that methods are compared in the same places.
  """
  return dict(name='t5', vocab_size=vocab_size, d_model=d_model, num_heads=d_model // 64, head_dim=64,
              encoder=(('dm', num_layers // 2),), decoder=(('d', num_layers // 2),),
              dtype='float32', scan_layers=True, remat=remat)
