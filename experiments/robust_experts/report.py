"""Do experts make a network more robust to attacks, and does it take a router that is trained apart?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.robust_experts import sweep
from stmoe.sweep import collect

ACCURACY, ROBUST = 'eval/accuracy', 'eval/robust_accuracy'


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  robust = lambda claim, a, b: verdict.exceeds(f'{claim}, robust accuracy', weakest(results, a),
                                               weakest(results, b), better='higher')
  plain = lambda claim, a, b: verdict.exceeds(f'{claim}, accuracy', collect.values(results, a, ACCURACY),
                                              collect.values(results, b, ACCURACY), better='higher')
  compared = [('AdvMoE better than a dense network of the width of an expert', 'advmoe', 'dense'),
              ('AdvMoE better than a dense network of twice that width', 'advmoe', 'dense_wide'),
              ('AdvMoE better than plain adversarial training of the mixture', 'advmoe', 'plain'),
              ('AdvMoE better than plain adversarial training in as many steps', 'advmoe', 'plain_twice'),
              ("AdvMoE better with the released router's loss than with the paper's", 'advmoe', 'bilevel')]
  return [robust('dense: adversarial training better than standard training', 'dense', 'standard'),
          plain('dense: standard training better than adversarial training', 'standard', 'dense'),
          *(ask(*claim) for claim in compared for ask in (robust, plain)),
          verdict.exceeds('AdvMoE: attacks on its router, too, harm more', alone(results, 'advmoe'),
                          collect.values(results, 'advmoe', ROBUST), better='higher')]


def weakest(results, name):
  """Returns dict seed -> robust accuracy under the attack that harms a model most, of those it was given."""
  joint = collect.values(results, name, ROBUST)
  if name not in sweep.MIXTURES:
    return joint
  other = alone(results, name)
  return {seed: None if None in (value, other[seed]) else min(value, other[seed])
          for seed, value in joint.items()}


def alone(results, name):
  """Returns dict seed -> robust accuracy of a mixture when the attack leaves its router out."""
  return collect.evaluated(results, name, sweep.FIELD, sweep.OTHER, ROBUST)


def figures(results):
  """Returns the accuracy of every method, and its robust accuracy under the worse attack and under each."""
  accuracy = {name: collect.values(results, name, ACCURACY) for name in sweep.METHODS}
  robust = {name: weakest(results, name) for name in sweep.METHODS}
  attacks = {f'{name}, {title}': values for name in sweep.MIXTURES for title, values in (
      ('with its router', collect.values(results, name, ROBUST)), ('model alone', alone(results, name)))}
  return dict(accuracy=drawing.points(accuracy, 'accuracy'),
              robust=drawing.points(robust, 'accuracy under the worse attack of 20 steps'),
              attacks=drawing.points(attacks, 'accuracy under each attack'))
