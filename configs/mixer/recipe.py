"""A run on families of dynamical systems, and the gates that are compared on them."""

import math

from stmoe.configs import common
from stmoe.configs.mixer import paper

# gate -> the router's fields besides the number of experts. `frozen` is the released gradient_descent: its
# gate gets a gradient of exactly 0. `gradient` is a gate that gradients do train: the winner is weighted.
GATES = dict(
    mixer=dict(name='mixer', every=1, **paper.GATE),
    frozen=dict(name='mixer', every=0, **paper.GATE),
    gradient=dict(name='switch', jitter=0.0, capacity_factor=(None, None)),
)


def training(families, environments, *, experts, context, d_ff, depth=3, inner='geps', split=True,
             gate='mixer',
             outer=1000, inner_steps=paper.OPTIM['inner'], contributors=3, reweighted=False, every=1,
             hidden=None,
             trajectories=2, held_out=2, length=16, step=0.1, substeps=1):
  """Returns the unlocked config: contexts and model train in turns of `inner_steps` steps, `outer` times.

  Args:
    families, environments: names, and environments of each.
    context: C of all experts together; split: each expert reads its own part.
    inner:   vector field, or 'shplrnn': a network that reads sequences.
    hidden:  field of `ncf`.
  """
  num_environments, values = len(families) * environments, 2
  c = common.config()
  c.model = dict(name='dynamics', d_model=length * values, num_values=values,
                 num_environments=num_environments,
                 context=context, context_scale=0.0, layers=(('m', 1),),
                 scan_layers=False, remat='elementwise')
  router = dict(common.choose('gate', gate, GATES), num_experts=experts)
  if router['name'] == 'mixer':
    router.update(num_environments=c.model.get_oneway_ref('num_environments'), every=router['every'] * every)
  field = dict(name=inner, d_ff=d_ff, split=split and experts > 1)
  field |= dict(hidden=hidden) if hidden else {}
  if inner == 'shplrnn':
    field |= dict(num_values=values)
  else:
    field = dict(name='ode', num_values=values, step=step, substeps=substeps, inner=dict(field, depth=depth))
  c.blocks = dict(m=dict(layer='mixer', context=context, executor='gather', group_size=None, router=router,
                         experts=field))
  c.loss = dict(name='trajectories', contributors=min(contributors, num_environments), reweighted=reweighted,
                l1=paper.LOSS['l1'])
  c.data = dict(source='trajectories', task='families', families=families, environments=environments,
                spread=paper.DATA['spread'], draw=0, trajectories=trajectories,
                train_trajectories=trajectories,
                held_out=held_out, length=length, num_values=values, step=step, substeps=4,
                observed=inner == 'shplrnn', files=(), num_environments=0, num_families=0, cache_dir='',
                objective='dynamics', shuffle=True, eval_split='validation')
  optim = paper.OPTIM
  turns = dict(every=inner_steps, proximal=optim['proximal'])
  c.groups = dict(context=dict(turns, turn=(0, 2)), model=dict(turns, where='rest', turn=(1, 2)))
  c.optimizer = dict(name='adabelief', b1=0.9, b2=0.999, eps=1e-16, weight_decay=0.0)
  c.schedule = dict(name='staircase', peak=optim['rate'], warmup_steps=0, factor=optim['factor'],
                    at=optim['at'])
  steps = 2 * inner_steps * outer
  c.train.update(steps=steps, batch_size=num_environments, log_every=max(steps // 100, 1),
                 stats_every=max(steps // 20, 1))
  c.eval.update(every=max(steps // 20, 1), batch_size=num_environments)
  c.checkpoint.update(every=max(steps // 10, 1))
  return c


def adapting(c, steps):
  """Makes `c` train contexts alone, those of new systems, for `steps` steps."""
  if 'every' in c.blocks.m.router:
    c.blocks.m.router.every = 0
  c.groups = dict(context=dict(), model=dict(where='rest', train=False))
  c.finetune = dict(model='own', load='partial', optimizer='fresh', dropout_rate=None,
                    expert_dropout_rate=None, capacity_factor=None, aux=True)
  c.loss.contributors = c.model.num_environments
  c.train.update(steps=steps, log_every=max(steps // 100, 1), stats_every=max(steps // 20, 1))
  c.eval.every, c.checkpoint.every = max(steps // 20, 1), max(steps // 10, 1)
  return c


def smoke(c):
  """Shrinks `c` in place to run in seconds, and returns it locked: few systems, a multiple of 8; 5 states."""
  families, values = len(c.data.families), c.data.num_values
  each = 8 // math.gcd(families, 8)
  number = each * families
  c.model.update(d_model=4 * values, num_environments=number)
  c.data.update(environments=each, length=4, held_out=c.data.trajectories)
  if 'num_environments' in c.blocks.m.router:
    c.blocks.m.router.num_environments = number
  field = c.blocks.m.experts.get('inner', c.blocks.m.experts)
  field.d_ff = min(field.d_ff, 16)
  c.loss.contributors = min(c.loss.contributors, number)
  for group in c.groups.values():
    if 'turn' in group:
      group.every = 2
  c.train.update(steps=40, batch_size=number, log_every=5, stats_every=10)
  c.eval.update(every=20, batch_size=number)
  c.checkpoint.update(every=20)
  return c.lock()
