"""Diffusion transformers (DiT, arXiv:2212.09748) as papers about their experts train them."""

from stmoe.configs import common

# The released code of Switch-DiT and of ProMoE: blocks, width, heads; patches of 2.
SIZES = {
    's': dict(layers=12, d_model=384, num_heads=6),
    'b': dict(layers=12, d_model=768, num_heads=12),
    'l': dict(layers=24, d_model=1024, num_heads=16),
    'xl': dict(layers=28, d_model=1152, num_heads=16),
}
LATENT = dict(image_size=32, channels=4, patch_size=2)               # of 256 x 256 pixels, by sd-vae-ft
LABELS = 1000
DROPOUT = 0.1                          # share of labels that are hidden


def dense(d_model, d_ff=None):
  """Returns the dense block: two matrices with biases, 4 D wide."""
  return dict(layer='dense', d_ff=d_ff or 4 * d_model, activation='gelu', use_bias=True)


def model(size, layers, *, labels, image_size, channels, patch_size=2, **fields):
  """Returns section `model` of an entry of SIZES, with the pattern `layers`."""
  d_model, heads = size['d_model'], size['num_heads']
  return dict(name='dit', vocab_size=labels, d_model=d_model, layers=layers, num_heads=heads,
              head_dim=d_model // heads, image_size=image_size, patch_size=patch_size, channels=channels,
              variance=True, dtype='float32', scan_layers=True, remat='elementwise') | fields


def training(c, steps, batch_size, rate, average, clip=0.0):
  """Gives `c` the sections that say how a denoiser trains: AdamW at a constant rate, averaged weights."""
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.999, weight_decay=0.0, average=average)
  c.schedule = dict(name='linear', peak=rate, warmup_steps=0, end_fraction=1.0)
  c.train.update(steps=steps, batch_size=batch_size, clip=clip, log_every=100, stats_every=1000)


# A size that two cores train in minutes: 16 patches of digits of 8 x 8 pixels.
SMALL = dict(layers=4, d_model=64, num_heads=4)


def digits(c, layers, loss, levels):
  """Gives `c` a small denoiser of scikit-learn's digits in noise: data, model, loss and training."""
  c.model = model(SMALL, layers, labels=10, image_size=8, channels=1)
  c.data = common.noise('digits', 8, channels=1, levels=levels, label_dropout=DROPOUT)
  c.loss = dict(loss, bound=1.0)
  training(c, 3000, 64, 1e-3, 0.995, clip=1.0)
  c.schedule = dict(name='cosine', peak=1e-3, warmup_steps=100)
  c.eval.update(every=500, batch_size=120)
  c.checkpoint.update(every=500)
