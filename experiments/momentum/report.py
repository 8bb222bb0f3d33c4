"""Does momentum from sparse layer to sparse layer lower the loss, on clean and on corrupted text?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.momentum import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  clean = [verdict.exceeds('MomentumSMoE better than SMoE', of('momentum_smoe'), of('smoe')),
           verdict.exceeds('AdamSMoE better than MomentumSMoE', of('adam_smoe'), of('momentum_smoe'))]
  most = sweep.SHARES[-1]
  return [*clean, *(corrupted(results, share, *pair) for share in sweep.SHARES
                    for pair in (('momentum_smoe', 'smoe'), ('adam_smoe', 'momentum_smoe'))),
          verdict.exceeds(f'Robust MomentumSMoE loses less than SMoE to {most:.1%} wrong tokens',
                          loss(results, 'robust_momentum_smoe', most), loss(results, 'smoe', most))]


def corrupted(results, share, better, worse):
  """Returns the Verdict that `better` has a lower loss than `worse` with a share of wrong tokens."""
  of = lambda name: collect.evaluated(results, name, sweep.FIELD, share)
  return verdict.exceeds(f'{better} better than {worse} with {share:.1%} wrong tokens', of(better), of(worse))


def loss(results, name, share):
  """Returns dict seed -> the loss that a share of wrong tokens adds to a method's loss."""
  clean, wrong = collect.values(results, name), collect.evaluated(results, name, sweep.FIELD, share)
  return {seed: None if None in (clean[seed], wrong[seed]) else wrong[seed] - clean[seed] for seed in clean}


def figures(results):
  """Returns the loss of every method, on clean text and against the share of wrong tokens."""
  clean = {method: collect.values(results, method) for method in sweep.METHODS}
  lines = {method: {0.0: clean[method]} | {share: collect.evaluated(results, method, sweep.FIELD, share)
                                           for share in sweep.SHARES} for method in sweep.METHODS}
  y = 'validation loss (nats per token)'
  return dict(loss=drawing.points(clean, y), corrupted=drawing.curves(lines, 'share of wrong tokens', y))
