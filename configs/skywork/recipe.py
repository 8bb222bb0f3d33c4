"""A pre-training run of a Skywork-MoE model."""

from stmoe.configs import common
from stmoe.configs.skywork import paper

# The report gives no optimizer: the usual one of such models, this project's choice.


def pretraining(size, steps, scale=paper.SCALE, alpha=None):
  """Returns the unlocked config of `size`, all layers sparse, dropping over 1.25 slots a choice.

  Args:
    size:  dict of widths as paper.SIZE.
    scale: lambda; None = no normalisation of logits.
    alpha: a constant balance coefficient; None = adaptive coefficients.
  """
  router = dict(name='skywork', num_experts=size['experts'], k=size['k'], scale=scale, xi=paper.XI,
                alpha_max=paper.ALPHA_MAX, beta=paper.BETA, capacity_factor=(2.5, 4.0))
  c = common.config()
  c.model = dict(name='lm', vocab_size=size['vocab_size'], d_model=size['d_model'],
                 num_heads=size['num_heads'], head_dim=size['head_dim'], tie_embeddings=False,
                 dtype='bfloat16', scan_layers=True, remat='full', layers=(('m', size['layers']),))
  c.blocks = dict(m=dict(layer='moe', executor='gather', group_size=None, router=router,
                         experts=dict(name='glu', d_ff=size['d_ff'], activation='silu', init_scale=1.0)))
  c.losses = dict(adaptive_balance=(1.0 if alpha is None else 0.0, 'sum'), balance=(alpha or 0.0, 'sum'))
  c.data = common.data('c4', 2048, vocab=f'train:{size["vocab_size"] // 1000 * 1000}')
  common.train(c, steps=steps, batch_size=1024)
  c.mesh.expert = 8
  return c


def smoke(c):
  """Shrinks `c` as `common.smoke` does, with a warm-up as short."""
  c.schedule.warmup_steps = 5
  return common.smoke(c)
