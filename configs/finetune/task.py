r"""A task with metrics, by ST-MoE's recipe (arXiv:2202.08906, section 5).

  stmoe finetune runs/st_moe finetune/task:task=boolq                   through TensorFlow Datasets
  stmoe finetune runs/small finetune/task:task=boolq,local --config.data.jsonl=TRAIN,VALIDATION
  stmoe train finetune/task:smoke                     from scratch, on pairs of the standard library
  task = any of SuperGLUE, of GLUE, squad, nq_open, web_questions, trivia_qa, arc_easy,
         arc_challenge, winogrande, anli_r1 to anli_r3, qasc, wmt14_en_de, ... (stmoe list tasks)

Expected: st_moe/paper.REPORTED, after pre-training at the paper's sizes.
Differs: the optimizer's state starts fresh (--config.finetune.optimizer=keep keeps it).
"""

from stmoe.configs import arguments
from stmoe.configs import finetuning

VARIANTS = ('task=rte,local',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, local=False, task='boolq')
  c = finetuning.config(args.task)
  if args.smoke:
    return finetuning.smoke(c)
  return (finetuning.laptop(c) if args.local else c).lock()
