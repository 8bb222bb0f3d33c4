r"""The decoders of the expert-choice paper, 0.1B and 8B: expert choice, top-2, top-1 or dense layers.

Mixture-of-Experts with Expert Choice Routing (arXiv:2202.09368). Expected parameters: 548M, 1.0B, 1.9B,
3.7B (0.1B with 16, 32, 64, 128 experts), 143B (8B with 64); fine-tuned means of 11 tasks: paper.REPORTED.

WARNING: the paper puts expert choice into a causal decoder. There an expert sees the later tokens of a
sequence before it chooses. So the training and evaluation losses of method=expert_choice leak the text
to be predicted: they are too low, and compare with nothing. Only fine-tuned classification, as
in the paper, is meaningful; expert_choice/t5 is the model without the leak.

Differs: C4/en for GLaM's private mixture; rotary positions instead of per-layer relative bias; groups of
4 sequences; 2^20 tokens per batch (the paper gives none).

  stmoe train expert_choice/sizes:size=0.1b,experts=64
  stmoe train expert_choice/sizes:size=8b,experts=64,method=gshard
  stmoe train expert_choice/sizes:smoke               laptop, about a minute
  size = 0.1b | 8b; method = expert_choice | gshard | switch | dense
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import t5
from stmoe.configs.expert_choice import paper

FACTOR = (paper.CAPACITY_FACTOR, paper.CAPACITY_FACTOR)
# method -> (router, weight of its balance loss)
ROUTERS = dict(
    expert_choice=(dict(name='expert_choice', capacity_factor=FACTOR, allow_causal=True), 0.0),
    gshard=(dict(name='gshard', capacity_factor=FACTOR), paper.BASELINE_BALANCE),
    switch=(dict(name='switch', capacity_factor=(1.25, 2.0)), paper.BASELINE_BALANCE),
    dense=(None, 0.0),
)

# Arguments beside '' and 'smoke': an argument for each other path through this file.
VARIANTS = ('size=8b', 'method=gshard', 'method=switch', 'method=dense')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='0.1b', experts=64, method='expert_choice')
  size = common.choose('size', args.size, paper.SIZES)
  router, balance = common.choose('method', args.method, ROUTERS)
  layers = (('dm', size['layers'] // 2),) if router else (('d', size['layers']),)

  c = t5.pretraining(steps=1_500_000)
  c.loss.z = 0.0
  c.model = dict(name='lm', vocab_size=paper.VOCAB_SIZE, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=size['head_dim'], layers=layers, tie_embeddings=True, dtype='bfloat16',
                 scan_layers=True, remat='full')
  c.data = common.data('c4', length=paper.LENGTH, vocab=f'train:{paper.VOCAB_SIZE}')
  c.blocks = dict(d=t5.dense(size['d_ff']))
  if router:
    common.whole('experts', args.experts, 2 if args.method == 'gshard' else 1)
    c.blocks.m = dict(layer='moe', executor='gather', group_size=4 * paper.LENGTH,
                      router=dict(router, num_experts=args.experts),
                      experts=dict(name='mlp', d_ff=size['d_ff'], activation='gelu', init_scale=1.0))
    c.losses.balance = (balance, 'mean')
  else:
    c.mesh.update(data=-1, expert=1)
  c.train.batch_size = c.eval.batch_size = t5.TOKENS_PER_BATCH // paper.LENGTH
  return common.smoke(c) if args.smoke else c.lock()
