r"""GRIN as printed: 16 experts in every layer, two of them drawn for a token, 6.6B active parameters.

GRIN (arXiv:2409.12136), also Phi-3.5-MoE. Expected MMLU 79.4, HellaSwag 83.7, HumanEval 74.4, MATH 58.9
(paper.REPORTED). Expected active parameters 6.6B, as computed from the widths of paper.SIZE.
Differs: C4/en instead of its corpus; RMSNorm without biases, Phi's norms and attention have them; plain
rotary positions; optimizer, schedule, batch, length and steps are this project's, none is at hand.

  stmoe train grin/sizes --config.mesh.model=8
  stmoe train grin/sizes:epsilon=0.1                  a wider window: more is drawn
  stmoe train grin/sizes:k=1                          one choice a token
  stmoe train grin/sizes:smoke                        laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.grin import paper

VARIANTS = ('epsilon=0.1', 'k=1')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, epsilon=paper.EPSILON, k=paper.SIZE['k'])
  size = paper.SIZE
  router = dict(name='grin', num_experts=size['experts'], k=args.k, epsilon=args.epsilon,
                input_jitter=paper.INPUT_JITTER)
  c = common.config()
  c.model = dict(name='lm', vocab_size=size['vocab_size'], d_model=size['d_model'],
                 num_heads=size['num_heads'], num_kv_heads=size['num_kv_heads'], head_dim=size['head_dim'],
                 rotary_base=size['rotary_base'], tie_embeddings=False, dtype='bfloat16', scan_layers=True,
                 remat='full', layers=(('m', size['layers']),))
  c.blocks = dict(m=dict(layer='moe', executor='gather', group_size=None, router=router,
                         experts=dict(name='glu', d_ff=size['d_ff'], activation='silu', init_scale=1.0)))
  c.losses = dict(balance=(paper.BALANCE, 'mean'), z=(0.0, 'mean'))
  c.data = common.data('c4', 2048, vocab='train:32000')
  common.train(c, steps=250_000, batch_size=1024)
  c.mesh.expert = 8
  if args.smoke:
    c.schedule.warmup_steps = 5
    c.model.num_kv_heads = 2
    return common.smoke(c)
  return c.lock()
