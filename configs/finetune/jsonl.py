r"""The user's own text-to-text examples, jsonl with `inputs` and `targets`, by ST-MoE's recipe.

  stmoe finetune runs/small finetune/jsonl --config.data.jsonl=FILE.jsonl
  stmoe finetune runs/small finetune/jsonl --config.data.jsonl=TRAIN.jsonl,VALIDATION.jsonl \
      --config.data.metrics=rouge --config.eval.methods=decode
  stmoe train finetune/jsonl:smoke                    from scratch, on pairs of the standard library

Without a file of validation the last twentieth is held out. Metrics are modules of stmoe/metrics, exact match
(accuracy) if none is named; an object's `choices` are ranked, `references` are further right answers.
Small batches, for a small start on a laptop. The recipe is that of arXiv:2202.08906, section 5; the paper
prints no scores of other data.
Differs: the optimizer's state starts fresh (--config.finetune.optimizer=keep keeps it).
"""

from stmoe.configs import arguments
from stmoe.configs import finetuning


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False)
  c = finetuning.laptop(finetuning.config('jsonl'))
  return finetuning.smoke(c) if args.smoke else c.lock()
