r"""All compared methods side by side: language models of the standard library, small enough for two cores.

  stmoe compare lm/zoo --seeds 0,1,2 --workdir runs/zoo      the table and figures of experiments/zoo
  stmoe train lm/zoo:method=hash                             one of them
  method = dense or any method of configs/*/compared.py that a language model can use

Every method has the active FLOPs of the dense model in each of its layers. Total FLOPs are equal too: a
method of two passes a step (THOR) gets half the steps. Three methods look at later tokens when they assign
tokens in training. `base` and `s_base`, whose configurations say allow_causal=True, are evaluated by greedy,
causal routing, and `mixture_of_depths` by its predictor. Expert choice and Soft MoE see later tokens in
evaluation as well. Their figures are those of a leak, marked `leaky`, and no results of a language model;
`lm/stdlib` trains them in the encoder of a T5 model.
"""

from stmoe import errors
from stmoe import lookup
from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lm import methods

# What `stmoe compare lm/zoo` compares: every method.
METHODS = tuple(f'method={name}' + (',leaky' if row['backbone'] == 't5' else '')
                for name, row in methods.table().items())


def leak(blocks, method):
  """Lets the routers in `blocks` look at later tokens; raises UserError if those of `method` never do."""
  routers = [common.innermost(block.router) for block in map(common.sparse, blocks.values()) if block]
  willing = [router for router in routers if 'allow_causal' in lookup.fields('router', router.name)]
  if not willing:
    raise errors.UserError(f'leaky=True: method={method} has no router that may look at later tokens; '
                           'nearest: leaky=False')
  for router in willing:
    router.allow_causal = True


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='switch', experts=8, leaky=False)
  c = common.config()
  row = methods.find(args.method) if args.leaky else methods.causal(args.method)
  methods.put(c, row, args.experts, d_ff=512, num_layers=4, length=128, vocab_size=2048, d_model=128,
              backbone='lm' if row['backbone'] == 't5' else None)
  if args.leaky:
    leak(c.blocks, args.method)
  c.data = common.data('stdlib', length=128, vocab='train:2048')
  c.optimizer = common.adamw()
  c.schedule = dict(name='cosine', peak=4e-3, warmup_steps=20, end_fraction=0.05)
  c.train.update(steps=120, batch_size=8, clip=1.0, log_every=10, stats_every=20)
  c.eval.update(every=120, batches=60, batch_size=8)
  c.checkpoint.update(every=120, keep=1)
  if args.smoke:
    c.train.update(steps=20, stats_every=10)
    c.eval.update(every=20, batches=4)
    c.checkpoint.update(every=20)
  return c.lock()
