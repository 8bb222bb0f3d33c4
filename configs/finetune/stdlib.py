r"""Questions about the functions of the standard library, four tasks at once: nothing has to be downloaded.

  stmoe finetune runs/try finetune/stdlib
  stmoe finetune runs/dense finetune/stdlib --config.finetune.adapter=mixlora:num_experts=8,k=2
  stmoe eval runs/finetune_stdlib                     the table of scores again
  stmoe train finetune/stdlib:smoke                   from scratch

A function's name, its parameters, its docstring, a hidden keyword, judged by accuracy among choices
(stmoe/data/text/families/stdlib_functions.py). Chance is 25 %, of the keyword 10 %, and more by the most
frequent keyword everywhere. Every task has as many rows as another. AdamW with a constant rate and without
dropout: adapters and fine-tuning of all parameters are compared so (experiments/adapters).
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import finetuning

TASKS = ('stdlib_name', 'stdlib_parameters', 'stdlib_docstring', 'stdlib_keyword')
INPUTS, TARGETS = 256, 96                # of bytes


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False)
  c = finetuning.laptop(finetuning.config('', INPUTS, TARGETS, best='average@rank'))
  c.finetune.update(dropout_rate=None, expert_dropout_rate=None)
  c.optimizer = common.adamw(b2=0.999, weight_decay=0.01)
  c.schedule = dict(name='constant', value=1e-3)
  c.train.update(steps=300, clip=1.0)
  c.eval.update(methods=('rank',), examples=100)
  if args.smoke:
    c = finetuning.smoke(c)
    c.unlock()
  c.data.update(task='', mixture=tuple((task, 1.0) for task in TASKS))
  return c.lock()
