"""The training run of a translation model with stochastic experts, or of a control."""

from stmoe.configs import common
from stmoe.configs.thor import paper

LENGTH = 256                       # of a packed row, source and target

# What is in the expert layers: (router or None for dense, passes, weight of the consistency, router losses).
CONTROLS = dict(
    thor=(dict(name='thor', eval_dispatch='time_step'), 2, paper.CONSISTENCY, {}),
    random=(dict(name='thor', eval_dispatch='time_step'), 2, 0.0, {}),
    switch=(dict(name='switch', jitter=0.0), 1, 0.0, common.BALANCE),
    dense=(None, 1, 0.0, {}),
    r_drop=(None, 2, paper.CONSISTENCY, {}),
)


def translation(size, task, vocab, steps, control='thor'):
  """Returns the unlocked config of a size (an entry of paper.SIZES) on task `task`.

  Args:
    vocab:   number of pieces of the joined vocabulary, which is trained on the task.
    control: a key of CONTROLS.
  """
  router, passes, consistency, losses = CONTROLS[control]
  optim = paper.OPTIM
  c = common.config()
  c.model = dict(name='t5', vocab_size=-(-vocab // 128) * 128, d_model=size['d_model'],
                 num_heads=size['num_heads'], head_dim=size['head_dim'], tie_embeddings=True, scaled=True,
                 encoder=(('md', size['layers'] // 2),), decoder=(('md', size['layers'] // 2),),
                 dropout_rate=size['dropout'], dtype='bfloat16', scan_layers=True, remat='elementwise')
  dense = dict(layer='dense', d_ff=size['d_ff'], activation='relu')
  c.blocks = dict(d=dense, m=dense)
  if router:
    c.blocks.m = common.moe(dict(router, num_experts=size['experts']), size['d_ff'])
  c.data = common.pairs(task, LENGTH, LENGTH, vocab=f'train:{vocab}')
  c.losses.update(losses)
  c.loss.update(label_smoothing=optim['label_smoothing'], passes=passes, consistency=consistency)
  c.optimizer = dict(name='adamw', b1=optim['b1'], b2=optim['b2'], eps=1e-8,
                     weight_decay=optim['weight_decay'])
  c.schedule = dict(name='inverse_sqrt', peak=optim['learning_rate'], warmup_steps=optim['warmup_steps'])
  c.train.update(steps=steps, batch_size=optim['tokens_per_batch'] // LENGTH, clip=optim['clip'],
                 log_every=100, stats_every=1000)
  c.eval.update(every=2000, batch_size=optim['tokens_per_batch'] // LENGTH)
  c.checkpoint.update(every=2000)
  return c


def smoke(c):
  """Returns `c` shrunk as `common.smoke` does, locked; its few steps warm up in ten."""
  c.schedule.warmup_steps = 10
  return common.smoke(c)
