"""What experiments with adapters have in common: a small decoder whose base does not train."""

from stmoe.configs import common

D_MODEL, D_FF, LAYERS, LENGTH = 512, 1376, 8, 512


def tuning(letter, block, attention, losses, text, optim):
  """Returns the unlocked config of a training of adapters.

  `stmoe finetune START` puts the start's model in the place of the model here and `text` beside it.
  `stmoe train` trains the adapters beside a base that was only drawn: to try the path, and no more.

  Args:
    block:     of every layer; attention: section model.adapter, or None.
    text:      of finetune.adapter.
    optim:     dict(rate, batch), of AdamW with a constant rate.
  """
  c = common.config()
  c.model = dict(name='lm', vocab_size=32000, d_model=D_MODEL, num_heads=8, head_dim=64,
                 layers=((letter, LAYERS),), tie_embeddings=False, dtype='float32', scan_layers=True,
                 remat='elementwise')
  if attention is not None:
    c.model.adapter = attention
  c.blocks = {letter: block}
  c.losses = losses
  c.data = common.data('text', LENGTH, vocab='train:32000')
  c.finetune = dict(model='start', load='all', optimizer='fresh', dropout_rate=None, expert_dropout_rate=None,
                    capacity_factor=None, aux=True, adapter=text)
  c.optimizer = dict(common.adamw(b2=0.999, weight_decay=0.01))
  c.schedule = dict(name='constant', value=optim['rate'])
  c.train.update(steps=1000, batch_size=optim['batch'], clip=1.0, log_every=10, stats_every=100,
                 trainable='adapter')
  c.eval.update(every=200, batches=50, batch_size=16)
  c.checkpoint.update(every=200)
  return c


def dense():
  """Returns the fields of the dense layer that adapters stand beside."""
  return dict(d_ff=D_FF, activation='silu', gated=True)
