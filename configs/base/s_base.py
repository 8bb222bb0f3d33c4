r"""S-BASE: Sinkhorn instead of the auction, in the sizes of a scaling study.

Unified Scaling Laws for Routed Language Models (arXiv:2202.01169): every second feed-forward layer of a
decoder has 1 to 512 experts, of which a token goes to one; 130B tokens.
Expected: losses in nats follow paper.S_BASE_LAW: 1.3b with 512 experts 1.98, 15m with 512 2.61, dense 2.24
and 3.19 (from rounded coefficients, 2 to 3 % off). There is no table of single losses at hand.
In training the plan sees later tokens (allow_causal=True): that loss is no language-modelling score.
Evaluation takes the largest logit of each token, and is causal.
Differs: C4/en for MassiveText; rotary positions for Transformer-XL's; the gate is the sigmoid of the logit
(Megatron-LM), with gates=softmax the probability, which is the paper's (unverified); plans of groups of 4
sequences; optimizer, batch and capacity factor are (unverified).

  stmoe train base/s_base:size=130m,experts=64
  stmoe train base/s_base:smoke                       laptop, about a minute
  size = 15m | 25m | 55m | 130m | 370m | 870m | 1.3b; experts = 1 ... 512 (1 = dense in all but name);
  gates = sigmoid | softmax
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.base import paper
from stmoe.configs.base import recipe

VARIANTS = ('size=15m,experts=512', 'size=1.3b,experts=128', 'gates=softmax')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='130m', experts=64, gates='sigmoid')
  size, facts = common.choose('size', args.size, paper.S_BASE_SIZES), paper.S_BASE_OPTIM
  d_ff, length = 4 * size['d_model'], facts['length']
  c = common.config()
  c.model = recipe.decoder(size, (('dm', size['layers'] // 2),), facts['vocab_size'])
  router = dict(name='s_base', num_experts=args.experts, capacity_factor=(facts['capacity_factor'],) * 2,
                gates=args.gates, allow_causal=True)
  c.blocks = dict(d=dict(layer='dense', d_ff=d_ff),
                  m=dict(layer='moe', executor='gather', group_size=4 * length, router=router,
                         experts=dict(name='mlp', d_ff=d_ff, init_scale=1.0)))
  c.data = common.data('c4', length=length, vocab=f'train:{facts["vocab_size"]}')
  c.optimizer = common.adamw()
  c.schedule = dict(name='cosine', peak=facts['peak'], warmup_steps=facts['warmup_steps'],
                    end_fraction=facts['end_fraction'])
  c.train.update(steps=facts['steps'], batch_size=facts['rows'], clip=1.0, log_every=100, stats_every=1000)
  c.eval.update(every=5000, batches=50, batch_size=facts['rows'])
  c.checkpoint.update(every=2000)
  c.mesh.update(data=-1, expert=1)
  return common.smoke(c) if args.smoke else c.lock()
