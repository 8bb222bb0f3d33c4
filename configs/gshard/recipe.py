"""The training run of a GShard model, on the public stand-in for its private translation data."""

from stmoe.configs import t5
from stmoe.configs.gshard import paper


def pretraining(widths, layers, experts, tokens_per_batch, steps, router=()):
  """Returns the unlocked config of `layers` layers, half in each stack, every second layer sparse.

  With 0 experts the model is dense. Differs from the paper in every model here:
    data      span corruption of C4/en for 13 billion private sentence pairs of 100 languages
    backbone  T5 1.0's (relative positions, RMSNorm, one vocabulary of 32,000 for both sides)
  """
  d = t5.dense(widths['d_ff'], gated=False)
  c = t5.pretraining(steps)
  sparse = 'mn' if experts else 'dd'
  patterns = [(('d' + letter, layers // 4),) for letter in sparse]
  c.model = t5.model(widths, *patterns, dtype=paper.OPTIM['dtype'])
  c.model.dropout_rate = paper.OPTIM['dropout']
  c.blocks = dict(d=d)
  c.loss.z = 0.0
  c.train.batch_size = tokens_per_batch // t5.INPUTS
  c.eval.batch_size = c.train.batch_size
  if experts:
    fields = dict(name='gshard', num_experts=experts, second_policy='random', threshold=paper.THRESHOLD,
                  capacity_factor=(paper.CAPACITY_FACTOR,) * 2) | dict(router)
    # Groups: one a core, as many as experts; initial variance is not given, T5's is taken.
    groups = next(size['cores'] for size in paper.SIZES.values() if size['experts'] == experts)
    c.blocks.m, c.blocks.n = t5.sparse(fields, t5.bank(widths['d_ff'], gated=False, init_scale=1.0),
                                       max(1, c.train.batch_size // groups))
    c.losses.update(balance=(paper.BALANCE, 'mean'), second_place=(0.0, 'mean'))    # the paper has the first
  else:
    c.mesh.update(data=-1, expert=1)
  return c
