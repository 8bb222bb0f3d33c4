r"""DynMoLE: a router and low-rank experts beside every matrix of dense layers (arXiv:2504.00661).

  stmoe finetune runs/dense dynmole/tuning --config.data.files=TEXT
  stmoe finetune runs/dense finetune/jsonl --config.finetune.adapter=dynmole:num_experts=6,threshold=0.9
  stmoe train dynmole/tuning:smoke                    beside a base that was only drawn, about a minute
  entropy = tsallis | renyi | off

Expected: 9.6 % more accuracy than LoRA (paper.REPORTED, from the abstract at second hand).
Differs: the model here is this project's, for a laptop; the paper's data are tasks, and two epochs of them.
The losses are of each routing group and layer, and of real tokens, see routers/dynmole.py.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.dynmole import paper
from stmoe.configs.lora import recipe

VARIANTS = ('entropy=renyi', 'entropy=off')
ENTROPIES = dict(tsallis=(paper.KIND, paper.THRESHOLD), renyi=('renyi', paper.THRESHOLD),
                 off=(paper.KIND, 1.0))


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, entropy='tsallis')
  kind, threshold = common.choose('entropy', args.entropy, ENTROPIES)
  router = dict(name='dynmole', num_experts=paper.EXPERTS, p=paper.P, keep=paper.KEEP, threshold=threshold,
                q=paper.Q, kind=kind)
  block = recipe.dense() | dict(
      layer='dynmole', rank=paper.RANK, alpha=paper.ALPHA, adapter_dropout=paper.DROPOUT, executor='blocks',
      group_size=None, router=router)
  text = (f'dynmole:num_experts={paper.EXPERTS},rank={paper.RANK},alpha={paper.ALPHA},kind={kind},'
          f'threshold={threshold}')
  c = recipe.tuning('m', block, None, losses(), text, paper.OPTIM)
  return common.smoke(c) if args.smoke else c.lock()


def losses():
  """Returns the section losses."""
  return dict(entropy=(paper.ENTROPY, 'mean'), balance=(paper.BALANCE, 'mean'))
