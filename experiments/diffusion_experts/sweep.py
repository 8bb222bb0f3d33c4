"""Denoisers of handwritten digits at equal active FLOPs: dense, Switch-DiT, and ProMoE in its two choices."""

from stmoe.experiments import sizes

# Name -> experiment. All have one objective, rectified flow, and one data stream, optimizer and schedule.
MODELS = {
    'dense': 'promoe/digits:method=dit',
    'switch_dit': 'switch_dit/digits:objective=flow',
    'promoe': 'promoe/digits',
    'expert_choice': 'promoe/digits:method=expert_choice',
}
# Two experts of D x D a token are paid for by D of the 4 D hidden units of the same block.
FIELDS = {'switch_dit': {'blocks.m.d_ff': 192}}
USUAL = {'eval.batch_size': 120}         # the whole held-out fifth in three batches
# A third of the steps of the experiments, and averages of weights over fewer; large keeps those.
SMALL = {'train.steps': 1000, 'optimizer.average': 0.99}


def runs(size='small'):
  """Yields a run of every model and seed."""
  own = {'smoke': {}}.get(size, USUAL)
  models = {name: (experiment, own | FIELDS.get(name, {})) for name, experiment in MODELS.items()}
  return sizes.fitted(size, models, SMALL, {})
