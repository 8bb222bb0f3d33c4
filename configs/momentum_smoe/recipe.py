"""The language models of the released scripts, from an entry of `paper.SIZES`."""

from stmoe.configs import common
from stmoe.configs.momentum_smoe import paper

# L, c and rho of the robust method are this project's: alpha 0.72, beta 0.57, eta 0.79.
ROBUST = dict(smoothness=1.0, convexity=0.1, rho=0.8)


def blocks(size, method, adam):
  """Returns (recipes by letter of the sparse layers, letters from the first layer up) of a method.

  Letter m is the sparse layer of all depths, a the first sparse layer of AdamSMoE.
  """
  inner = dict(name='moe', executor='blocks', group_size=None,
               router=dict(name='smoe', num_experts=paper.EXPERTS, k=paper.K,
                           init_std=(paper.LINEAR_SCALE / size['d_model']) ** 0.5),
               experts=dict(name='mlp', d_ff=size['d_ff'], dropout_rate=size['dropout'], use_bias=True,
                            init_scale=paper.expert_scale(size['d_model'])))
  shared = dict(inner=inner, dropout_rate=size['dropout'])
  m = dict(layer='momentum', post_norm=True, **paper.MOMENTUM, **shared)
  return common.choose('method', method, dict(
      smoe=(dict(m=dict(layer='residual', **shared)), 'm'),
      momentum=(dict(m=m), 'm'),
      adam=(dict(m=m, a=dict(layer='adam_momentum', post_norm=True, **adam, **shared)), 'am'),
      # x is normalised already.
      robust=(dict(m=dict(layer='robust_momentum', post_norm=True, normalize=False, **ROBUST, **shared)),
              'm')))


def language(name, method, dense=False):
  """Returns the unlocked config of size `name` with a method's sparse layers.

  Args:
    method: smoe | momentum | adam | robust.
    dense:  a dense block after every sparse one (GLaM).
  """
  size = paper.SIZES[name]
  recipes, letters = blocks(size, method, paper.ADAM[name] or paper.ADAM['medium'])
  units = [letter + 'd' * dense for letter in letters]
  c = common.config()
  layers = *((unit, 1) for unit in units[:-1]), (units[-1], size['layers'] - len(units) + 1)
  c.model = dict(name='span_lm', vocab_size=32_000, d_model=size['d_model'], num_heads=paper.HEADS,
                 head_dim=size['d_model'] // paper.HEADS, span=size['span'], dropout_rate=size['dropout'],
                 layers=layers,
                 init_scale=paper.LINEAR_SCALE, dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = recipes
  if dense:
    c.blocks.d = dict(layer='dense', d_ff=size['d_ff'], activation='relu', use_bias=True,
                      dropout_rate=size['dropout'], init_scale=paper.LINEAR_SCALE)
  c.data = common.data('text', length=size['length'], vocab='train:32000')
  c.losses.balance = (paper.BALANCE, 'sum')
  c.optimizer = paper.OPTIM
  c.schedule = dict(name='linear', peak=size['peak'], warmup_steps=size['warmup'], end_fraction=1.0)
  # Differs: one microbatch, so that the batches of all sizes divide over 8 devices; the numbers are the same.
  c.train.update(steps=size['steps'], batch_size=size['batch'], log_every=100, stats_every=1000)
  c.eval.update(every=1000, batch_size=size['batch'])
  c.checkpoint.update(every=5000)
  return c


def smoke(c):
  """Shrinks `c` for a laptop, but for two sparse layers, so that a state passes on; returns it locked."""
  c.model.span = 128
  layers = tuple((letters, min(repeats, 2)) for letters, repeats in c.model.layers)
  c = common.smoke(c)
  with c.unlocked():
    c.model.layers = layers
  return c
