r"""New systems under a trained MixER: only their contexts are learned, model and gate stay.

Towards Foundational Models for Dynamical System Reconstruction (arXiv:2502.05335): contexts begin at zero and
1,500 to 10,000 steps optimise them alone; the gate picks the expert along the way. Here there are sixteen
new systems of each family of mixer/families, whose constants may be farther from the usual ones.

  stmoe train mixer/families --workdir runs/mixer
  stmoe finetune runs/mixer mixer/adapt --workdir runs/new
  stmoe finetune runs/one mixer/adapt:method=one --workdir runs/new_one    of a run with another method
  stmoe train mixer/adapt:smoke                            seconds; under the model as it begins

Expected: the paper prints no such result. An error near that of the systems of the training, which a model of
one network reaches as well or better; it was better on three seeds of experiments/families_of_systems.
Differs: as mixer/families. As many systems as in the training would begin with the contexts of those.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mixer import families
from stmoe.configs.mixer import recipe

VARIANTS = ('method=one', 'steps=3000')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='mixer', inner='geps', steps=1500)
  method = common.choose('method', args.method, families.METHODS)
  c = recipe.training(families.FAMILIES, 16, **method, inner=args.inner, d_ff=24,
                      hidden=16 if args.inner == 'ncf' else None)
  c.data.update(draw=1, spread=0.2)
  recipe.adapting(c, args.steps)
  return recipe.smoke(c) if args.smoke else c.lock()
