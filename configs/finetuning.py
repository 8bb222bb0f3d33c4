"""The recipe of ST-MoE for fine-tuning (arXiv:2202.08906, section 5): what its experiments have in common."""

from stmoe.configs import common
from stmoe.configs.st_moe import paper
from stmoe.configs.st_moe import recipe

TASK_CAP = paper.FINETUNE['task_cap']
INPUTS, TARGETS = 512, 62          # SuperGLUE in T5


def config(task, inputs_length=INPUTS, targets_length=TARGETS, best='', **fields):
  """Returns the unlocked config of fine-tuning on `task`.

  `stmoe finetune START` puts the start's model in the place of the model here, ST-MoE's base size, which
  `stmoe train` trains from scratch. The best sparse run of the paper has 1e-3, a million tokens a batch and
  the optimizer's state kept. Here the state is fresh unless --config.finetune.optimizer=keep.

  Args:
    best:   score of the checkpoint to keep; '' = none beside the newest.
    fields: more fields of section `data`.
  """
  sequences = paper.SEQUENCES
  c = recipe.pretraining(paper.SIZES['base'], 1000)
  c.blocks.m.group_size, c.blocks.n.group_size = sequences * inputs_length, sequences * targets_length
  c.data = dict(common.pairs(task, inputs_length, targets_length, vocab='train:32000', extra_ids=100),
                jsonl=(), metrics=(), mixture_cap=TASK_CAP, **fields)
  c.finetune = dict(model='start', load='all', optimizer='fresh', dropout_rate=0.1, expert_dropout_rate=0.4,
                    capacity_factor=paper.CAPACITY_FACTOR, aux=True)
  c.decode = dict(name='greedy')
  c.schedule = dict(name='constant', value=paper.FINETUNE['sparse_best'][1])
  # all, non_expert, expert, attention or ffn: section 5.4.
  c.train.update(batch_size=paper.FINETUNE['sparse_best'][2] // inputs_length, trainable='all')
  c.eval.update(every=200, batch_size=256, methods=('rank', 'decode'), examples=0)
  c.checkpoint.update(every=200, best=best)
  return c


def laptop(c):
  """Shrinks the batches of `c` for a small start on a CPU, and returns it."""
  c.train.update(steps=100, batch_size=16, log_every=10, stats_every=50)
  c.eval.update(every=50, batch_size=16, batches=20)
  c.checkpoint.update(every=50)
  c.mesh.update(data=-1, expert=1, model=1)
  c.blocks.m.group_size, c.blocks.n.group_size = c.data.inputs_length, c.data.targets_length
  return c


def smoke(c):
  """Returns `c` shrunk as `common.smoke` does, on pairs of the standard library, locked."""
  c.data.update(mixture=(), jsonl=())
  c.eval.update(examples=4, methods=('rank',))
  c.checkpoint.best = ''
  return common.smoke(c)
