r"""The 4.5B model: the BASE layer of a BASE model becomes a Hash layer, or three of a third of its size.

Hash Layers (arXiv:2106.04426). Expected there after 40k updates (perplexity, from a figure): BASE about
11.4, one Hash layer 10.2, three 10.1; Hash does 11 % more updates per second than BASE.
Differs: RoBERTa + cc100en is not public; the stand-in is C4/en with a BPE vocabulary of as many ids
(configs/hash/recipe.py says what else). 32 experts are derived from the 4.5B. An expert is a single ReLU
network of width 3 F, where BASE's has three residual networks of width F. The layers are inserted in even
distances, without attention. configs/base has the BASE layer.

  stmoe train hash/large:layers=3
  stmoe train hash/large:smoke                        laptop, about a minute
  layers = 1 | 3
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.hash import paper
from stmoe.configs.hash import recipe

VARIANTS = ('layers=3',)
PLACES = {1: (12,), 3: (6, 12, 18)}      # after how many dense layers


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, layers=1)
  size = paper.LARGE
  places = common.choose('layers', args.layers, PLACES)
  sparse = recipe.hashed(size['experts'], d_ff=size['sublayers'] * size['d_ff'] // args.layers)
  c = recipe.pretraining(size, places, sparse, size['vocab'], paper.OPTIM['steps_large'], attention=False)
  c.mesh.update(data=1, expert=-1)
  return common.smoke(c) if args.smoke else c.lock()
