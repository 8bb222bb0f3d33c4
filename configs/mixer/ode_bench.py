r"""MixER on ten families of two-dimensional systems, sixteen of each: ten GEPS experts.

Towards Foundational Models for Dynamical System Reconstruction (arXiv:2502.05335), the released script for
ODE-Bench: 1,500 outer steps of 12 steps for contexts and 12 for the model.

  stmoe train mixer/ode_bench --workdir runs/ode_bench
  stmoe train mixer/ode_bench:method=one                   one network with the context of one expert
  stmoe train mixer/ode_bench:smoke                        seconds

Expected: no table was at hand; from memory of the abstract (unverified) such a training scales to ten
  families.
Differs: the lengths and steps of the trajectories are not at hand and are this project's; the usual constants
are textbook ones and drawn, not on a grid; Runge-Kutta steps in place of adaptive ones; the gate has no
proximal term; the rate of contexts falls with the model's, where the released one stays.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mixer import paper
from stmoe.configs.mixer import recipe

VARIANTS = ('method=one',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='mixer')
  facts, data = paper.EXAMPLES['ode_bench'], paper.DATA
  methods = dict(mixer=dict(experts=facts['experts'], context=facts['context'], gate='mixer'),
                 one=dict(experts=1, context=facts['context'] // facts['experts'], gate='frozen'))
  method = common.choose('method', args.method, methods)
  c = recipe.training(paper.FAMILIES, facts['environments'] // len(paper.FAMILIES), **method,
                      d_ff=facts['d_ff'],
                      depth=facts['depth'], outer=facts['outer'], contributors=facts['contributors'],
                      every=facts['every'], trajectories=data['trajectories'], held_out=data['held_out'])
  return recipe.smoke(c) if args.smoke else c.lock()
