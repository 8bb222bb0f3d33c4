"""The block of a DiT, of Denoising Task Routing and of Switch-DiT."""

from stmoe.configs import common
from stmoe.configs import dit
from stmoe.configs.switch_dit import paper


def plain(d_model):
  """Returns DiT's block."""
  return dit.dense(d_model) | dict(around=dict(name='ada_ln_zero'))


def task_routing(d_model):
  """Returns the block with fixed channels of every noise level."""
  return dit.dense(d_model) | dict(around=dict(name='denoising_task_routing', **paper.DTR))


def switch(d_model, experts=paper.ROUTING['experts'], k=paper.ROUTING['k']):
  """Returns the block whose input linear experts of the noise level modulate."""
  layer = dict(name='moe', executor='blocks', group_size=None,
               router=dict(name='switch_dit', num_experts=experts, k=k),
               experts=dict(name='linear', d_ff=d_model, use_bias=True, init_scale=0.0))
  around = dict(name='switch_dit', alpha=paper.ROUTING['alpha'], layer=layer)
  return dit.dense(d_model) | dict(around=around)


METHODS = dict(dit=plain, dtr=task_routing, switch_dit=switch)


def put(c, method, d_model, prior=paper.ROUTING['prior']):
  """Gives `c` the blocks of a method and its losses."""
  c.blocks = dict(m=common.choose('method', method, METHODS)(d_model))
  if method == 'switch_dit':
    c.losses.update(diffusion_prior=(prior, 'mean'))
