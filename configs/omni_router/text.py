r"""One router for all sparse layers, on text: the stacks of the speech models as causal language models.

Omni-router (arXiv:2507.05724). Expected, of speech: word error rates 11.2 % below a dense model's and 8.2 %
below Switch's (abstract); experts of consecutive layers agree. Here: a loss below Switch's at equal experts,
and metric agreement far above 1 / E.
Differs: text instead of speech, next tokens instead of CTC, rotary positions instead of CAPE, no front-end:
there is no audio here. Sizes are approximate and unverified (paper.py); optimizer, rate, batch and steps are
this project's. Every layer is sparse, as in the port.

  stmoe train omni_router/text
  stmoe train omni_router/text:method=switch
  stmoe train omni_router/text:size=streaming          6 layers each of 2, 4, 8 and 16 experts, a matrix each
  stmoe train omni_router/text:smoke                   laptop, about a minute
  method = omni | decision (the first layer's experts hold in all) | switch | dense
  size = base | moe | streaming
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.omni_router import paper

VARIANTS = ('method=decision', 'method=switch', 'method=dense', 'size=moe', 'size=streaming')
SHARE = dict(omni='matrix', decision='decision', switch='nothing', dense=None)
LETTERS = 'mnop'


def blocks(size, share):
  """Returns (blocks by letter, pattern): a letter for each number of experts, whose layers are a group."""
  if share is None:
    layer = dict(layer='dense', d_ff=size['d_ff'], activation='relu', use_bias=True)
    return dict(m=layer), (('m', size['layers']),)
  made, each = {}, size['layers'] // len(size['experts'])
  for group, (letter, experts) in enumerate(zip(LETTERS, size['experts'])):
    router = dict(name='omni_router', num_experts=experts, group=group, share=share,
                  noise_std=paper.NOISE_STD)
    made[letter] = common.moe(router, size['d_ff'], use_bias=True)
  return made, tuple((letter, each) for letter in made)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='omni', size='base')
  size = common.choose('size', args.size, paper.SIZES)
  recipes, pattern = blocks(size, common.choose('method', args.method, SHARE))
  c = common.config()
  c.model = dict(name='lm', vocab_size=32_000, d_model=size['d_model'], num_heads=size['heads'],
                 head_dim=size['d_model'] // size['heads'], layers=pattern, tie_embeddings=False,
                 dtype='bfloat16', scan_layers=True, remat='elementwise')
  c.blocks = recipes
  c.losses = dict(balance=(0.0 if args.method == 'dense' else paper.BALANCE, 'sum'), z=(0.0, 'mean'))
  c.data = common.data('c4', length=512, vocab='train:32000')
  common.train(c, steps=100_000, batch_size=128, peak=5e-4, warmup_steps=5, eval_every=2000, eval_rows=128,
               save_every=5000, optimizer=common.adamw(0.98, 0.01))
  if not args.smoke:
    c.schedule.warmup_steps = 4000
    return c.lock()
  c = common.smoke(c)
  with c.unlocked():                       # two layers of a group, so that they have something in common
    c.model.layers = tuple((letter, 2) for letter, _ in pattern)
  return c
