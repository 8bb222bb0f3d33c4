r"""What BASE is compared with at equal time: a top-2 mixture, Switch, and a dense model.

BASE Layers (arXiv:2103.16716), section 4.1: 128 experts in every second feed-forward layer of 24, 52.5B
parameters; the dense model has 1.5B.
Expected: the paper prints no table of losses; its curves show the top-2 mixture level with BASE, Switch
behind. Speed on 128 GPUs (paper.SPEED): dense 600k tokens/s, top-2 292k, Switch 469k.
Differs: as base/sizes; the top-2 mixture is gshard's, whose balance loss counts first choices;
groups of 2 sequences, as for BASE.

  stmoe train base/baselines:method=switch
  stmoe train base/baselines:smoke                    laptop, about a minute
  method = moe | switch | dense
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.base import paper
from stmoe.configs.base import recipe

VARIANTS = ('method=switch', 'method=dense')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='moe')
  facts = common.choose('method', args.method, paper.BASELINES)
  size = paper.BACKBONE
  c = recipe.pretraining(size, facts.get('layers', 24), 0, num_base=0)
  if args.method != 'dense':
    c.model.layers = (('dm', 12),)
    c.blocks.m = dict(layer='moe', executor='gather',
                      group_size=paper.OPTIM['rows_per_worker'] * paper.LENGTH,
                      router=dict(name=dict(moe='gshard', switch='switch')[args.method],
                                  num_experts=paper.EXPERTS, capacity_factor=(facts['capacity_factor'],) * 2),
                      experts=dict(name='mlp', d_ff=size['d_ff'], init_scale=1.0))
    c.losses.balance = (facts['balance'], 'mean')
    c.losses.update(dict(second_place=(0.0, 'mean')) if args.method == 'moe' else {})
    c.mesh.update(data=1, expert=-1)
  return recipe.smoke(c) if args.smoke else c.lock()
