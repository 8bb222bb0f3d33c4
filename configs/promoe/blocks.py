"""The sparse block of ProMoE: experts of prototypes, one for images without a class, and a shared one."""

from stmoe.configs import common
from stmoe.configs import dit
from stmoe.configs.promoe import paper

ROUTERS = dict(promoe='promoe', expert_choice='promoe_expert_choice')


def sparse(method, d_ff, experts, group_size):
  """Returns the block of `experts` prototypes; `group_size` is of token choice, else an image is a group."""
  facts, name = paper.ROUTING, common.choose('method', method, ROUTERS)
  router = dict(name=name, num_experts=experts + 1, k=facts['k'], gate=facts['gate'],
                temperature=facts['temperature'])
  if method == 'expert_choice':
    router['k'], group_size = float(facts['k']), None
  inner = dict(name='moe', executor='blocks', group_size=group_size, router=router,
               experts=dict(name='mlp', d_ff=d_ff, activation='gelu', use_bias=True, init_scale=1.0))
  return dict(layer='shared', d_ff=d_ff, gated=False, activation='gelu', use_bias=True, inner=inner)


def put(c, method, d_model, **fields):
  """Gives `c` the blocks of a method ('dit' is dense), its losses, and returns the pattern of a pair."""
  c.blocks = dict(d=dit.dense(d_model))
  if method == 'dit':
    return 'dd'
  c.blocks.m = sparse(method, **fields)
  c.losses = dict(contrastive=(paper.ROUTING['contrastive'], 'sum'))
  if method == 'promoe':
    c.losses.balance = (0.0, 'mean')
  return 'dm'
