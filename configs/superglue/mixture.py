r"""SuperGLUE (arXiv:1905.00537) as a mixture, each task weighted by its size up to 65,536 examples.

ST-MoE's fine-tuning (arXiv:2202.08906, section 5): 512 input and 62 target tokens, the sizes capped as there.
Expected of ST-MoE-L after pre-training: 87.4 (st_moe/paper.REPORTED). WSC trains on the right referents, and
with the 1,322 sentences of DPR.
Differs: the optimizer's state starts fresh (--config.finetune.optimizer=keep keeps it).

  stmoe finetune runs/st_moe superglue/mixture                                from TensorFlow Datasets
  stmoe finetune runs/small superglue/mixture:local --config.data.jsonl=DIR   small batches, released files
  stmoe eval runs/superglue_mixture                                           the table again
  stmoe train superglue/mixture:smoke                                         from scratch, other pairs

`local` leaves DPR out, which is not among SuperGLUE's files. The single score of all tasks is average@rank
(without WSC, which has no choices), or average@decode.
"""

from stmoe.configs import arguments
from stmoe.configs import finetuning
from stmoe.configs.superglue import paper

VARIANTS = ('local',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, local=False)
  c = finetuning.config('', best='average@rank')
  c.data.mixture = paper.TASKS if args.local else (*paper.TASKS, 'dpr')
  c.train.steps = 10_000
  if args.smoke:
    return finetuning.smoke(c)
  return (finetuning.laptop(c) if args.local else c).lock()
