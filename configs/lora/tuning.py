r"""LoRA beside attention and experts of a small sparse decoder (arXiv:2106.09685).

  stmoe finetune runs/try lora/tuning --config.data.files=TEXT
  stmoe finetune runs/try lora/tuning --config.finetune.adapter=lora:rank=16,targets=wq+wv,dora=True
  stmoe train lora/tuning:smoke                       beside a base that was only drawn, about a minute
  targets = attention+experts | attention | experts

Expected: optimizer state for adapters alone, and a loss below the start's on the text that it is tuned to.
The paper's own tables are not at hand.
Differs: rank, alpha, rate, model and data are this project's, for a laptop.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lora import recipe

VARIANTS = ('targets=attention', 'targets=experts')
RANK, ALPHA = 8, 16.0


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, targets='attention+experts')
  router = dict(name='deepseek_moe', num_experts=8, k=2, normalize_gates=True)
  block = common.moe(router, recipe.D_FF // 2, experts='glu', activation='silu')
  adapter = dict(name='lora', targets=args.targets, rank=RANK, alpha=ALPHA)
  losses = dict(balance=(1e-2, 'mean'), device=(0.0, 'mean'), communication=(0.0, 'mean'))
  c = recipe.tuning('m', block, adapter, losses,
                    f'lora:rank={RANK},alpha={ALPHA},targets={args.targets}', dict(rate=2e-4, batch=16))
  return common.smoke(c) if args.smoke else c.lock()
