r"""A model of big and small modules in every layer: trained on random routes, then a router for it, frozen.

Duo-LLM (arXiv:2410.10846), details from a reading note. Expected: with an oracle's routes one big layer is
better than all big; the router of stage 2 is far from the oracle, as good as the best of 100 random routes.
Differs: data, vocabulary, heads, optimizer, rates, steps, the weight of the budget and the growth of tau are
this project's: none is known. The model is frozen in stage 2 (unverified).

  stmoe train duo_llm/testbed --workdir runs/joint                      stage 1: random routes
  stmoe finetune runs/joint duo_llm/testbed:stage=learned               stage 2: the router alone
  stmoe routes runs/learned                                             oracle, fixed and random routes
  stmoe train duo_llm/testbed:smoke                                     laptop, about a minute
  stage = random | learned; target: share of big modules; skip: a third module that does nothing
  size = paper | laptop (6 layers of bytes, 64 routes); frozen=False: stage 2 trains everything
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.duo_llm import paper

VARIANTS = ('stage=learned', 'skip', 'stage=learned,target=0.25', 'size=laptop', 'stage=learned,frozen=False')
P = paper.MODEL
SIZES = dict(
    paper=dict(d_model=P['d_model'], layers=P['layers'], big=P['big'], small=P['small'], heads=paper.HEADS,
               head_dim=paper.HEAD_DIM, task='text', vocab='train:32000', vocab_size=paper.VOCAB,
               length=2048, batch=256, steps=50_000, peak=3e-4, warmup=1000),
    laptop=dict(d_model=128, layers=6, big=512, small=32, heads=4, head_dim=32, task='stdlib',
                vocab='bytes', vocab_size=384, length=128, batch=16, steps=2000, peak=2e-3, warmup=50),
)
BUDGET = 1.0                           # lambda; over layers it adds up to one square


def block(size, stage, target, skip):
  """Returns the block of all layers."""
  router = dict(name='duo_llm', num_experts=1, stage=stage, target=target, scope='microbatch', total_steps=1)
  virtual = (dict(name='small', d_ff=size['small']),) + (('zero',) if skip else ())
  return common.moe(router, size['big'], experts='glu', activation='silu') | dict(virtual=virtual)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, stage='random', target=0.5, skip=False, size='paper', frozen=True)
  size = common.choose('size', args.size, SIZES)
  common.choose('stage', args.stage, dict.fromkeys(('random', 'learned')))
  c = common.config()
  c.model = dict(name='lm', vocab_size=size['vocab_size'], d_model=size['d_model'], num_heads=size['heads'],
                 head_dim=size['head_dim'], layers=(('m', size['layers']),), tie_embeddings=True,
                 dtype='bfloat16' if args.size == 'paper' else 'float32',
                 scan_layers=True, remat='elementwise')
  c.blocks = dict(m=block(size, args.stage, args.target, args.skip))
  c.losses = dict(budget=(BUDGET if args.stage == 'learned' else 0.0, 'sum'))
  c.data = common.data(size['task'], length=size['length'], vocab=size['vocab'])
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  c.schedule = dict(name='cosine', peak=size['peak'], warmup_steps=size['warmup'], end_fraction=0.1)
  c.train.update(steps=size['steps'], batch_size=size['batch'], clip=1.0, log_every=50, stats_every=500)
  if args.stage == 'learned' and args.frozen:
    c.groups = dict(router=dict(rate=1.0), rest=dict(train=False))
  c.finetune = dict(model='own', load='all', optimizer='fresh', dropout_rate=None, expert_dropout_rate=None,
                    capacity_factor=None, aux=True)
  c.eval.update(every=500, batches=64, batch_size=min(size['batch'], 64))
  c.checkpoint.update(every=500)
  common.schedule(c)
  return common.smoke(c) if args.smoke else c.lock()
