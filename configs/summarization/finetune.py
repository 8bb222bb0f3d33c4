r"""Summaries, "summarize: <text>": XSum, CNN/DailyMail, SciTLDR, DialogSum; scored by ROUGE.

ST-MoE (arXiv:2202.08906, section 5) reports ROUGE-2 of XSum and CNN/DailyMail; expected of ST-MoE-L: 21.8 and
20.7.
Decoding is not stated there: T5's beam search of 4 with length penalty 0.6 is taken (unverified).
Differs: the optimizer's state starts fresh (--config.finetune.optimizer=keep keeps it).

  stmoe finetune runs/st_moe summarization/finetune                     XSum through TensorFlow Datasets
  stmoe finetune runs/small summarization/finetune:task=scitldr,local --config.data.jsonl=TRAIN,DEV
  stmoe train summarization/finetune:smoke            from scratch, on pairs of the standard library
  task = xsum, cnn_dailymail, scitldr, dialogsum (the last two from jsonl only)
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import finetuning
from stmoe.configs.summarization import paper

VARIANTS = ('task=scitldr,local', 'task=cnn_dailymail')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, local=False, task='xsum')
  c = finetuning.config(args.task, *common.choose('task', args.task, paper.LENGTHS),
                        best=f'{args.task}/rouge2@decode')
  c.decode = dict(name='beam', beams=4, length_penalty=0.6)
  c.eval.update(methods=('decode',))
  c.train.steps = 10_000
  if args.smoke:
    return finetuning.smoke(c)
  return (finetuning.laptop(c) if args.local else c).lock()
