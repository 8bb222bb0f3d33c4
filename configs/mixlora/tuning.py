r"""MixLoRA: experts of adapters beside dense layers, LoRA beside attention (arXiv:2404.15159).

  stmoe finetune runs/dense mixlora/tuning --config.data.files=TEXT
  stmoe finetune DOWNLOADED mixlora/tuning --config.data.files=TEXT       a folder of Llama or Mistral
  stmoe finetune runs/dense finetune/jsonl --config.finetune.adapter=mixlora:num_experts=8,k=2
  stmoe train mixlora/tuning:smoke                    beside a base that was only drawn, about a minute
  method = mixlora | dynamic

Expected: 9 % more accuracy than LoRA in multi-task learning (paper.REPORTED, from the abstract).
Differs: the model here is this project's, for a laptop; the paper's data are tasks, and two epochs of them.
Balance is of each routing group and layer, see routers/mixlora.py.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.lora import recipe
from stmoe.configs.mixlora import paper

VARIANTS = ('method=dynamic',)
METHODS = dict(mixlora=None, dynamic=paper.P)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='mixlora')
  p = common.choose('method', args.method, METHODS)
  low = dict(rank=paper.RANK, alpha=paper.ALPHA)
  block = recipe.dense() | low | dict(
      layer='mixlora', adapter_dropout=paper.DROPOUT, jitter=paper.JITTER, executor='blocks', group_size=None,
      router=dict(name='mixlora', num_experts=paper.EXPERTS, k=paper.K, p=p))
  text = f'mixlora:num_experts={paper.EXPERTS},k={paper.K},rank={paper.RANK},alpha={paper.ALPHA}'
  c = recipe.tuning('m', block, dict(name='lora', targets='attention', dropout_rate=paper.DROPOUT) | low,
                    losses(p), text + ('' if p is None else f',p={p}'), paper.OPTIM)
  return common.smoke(c) if args.smoke else c.lock()


def losses(p):
  """Returns the section losses: top-p routers report their entropy, too, which nothing weighs."""
  balance = dict(balance=(paper.BALANCE, 'mean'))
  return balance if p is None else balance | dict(entropy=(0.0, 'mean'))
