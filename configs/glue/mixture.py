r"""GLUE (arXiv:1804.07461) as a mixture, each task weighted by its size up to 65,536 examples.

The recipe is ST-MoE's of fine-tuning (arXiv:2202.08906, section 5), which prints no scores of GLUE; expected
are therefore none. Eight tasks, without WNLI, as T5 mixes them (paper.SIZES); MNLI is judged on
its matched part.
Differs: the optimizer's state starts fresh (--config.finetune.optimizer=keep keeps it); T5 caps no task of
this mixture.

  stmoe finetune runs/st_moe glue/mixture                                from TensorFlow Datasets
  stmoe finetune runs/small glue/mixture:local --config.data.jsonl=DIR   small batches, released files
  stmoe eval runs/glue_mixture                                           the table again
  stmoe eval runs/glue_mixture --task mnli_mismatched                    a task that is not in it; wnli, too
  stmoe train glue/mixture:smoke                                         from scratch, other pairs

DIR holds CoLA/train.tsv, CoLA/dev.tsv, MNLI/dev_matched.tsv, ... The single score is average@rank, or
average@decode: the mean over tasks, of each task's metrics first.
"""

from stmoe.configs import arguments
from stmoe.configs import finetuning
from stmoe.configs.glue import paper

VARIANTS = ('local',)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, local=False)
  c = finetuning.config('', best='average@rank')
  c.data.mixture = paper.TASKS
  c.train.steps = 10_000
  if args.smoke:
    return finetuning.smoke(c)
  return (finetuning.laptop(c) if args.local else c).lock()
