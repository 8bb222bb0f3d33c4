"""Which way of sharing experts between two tasks, and which gate of sessions is best, problem by problem?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments import ratios
from stmoe.experiments.many_tasks import sweep
from stmoe.sweep import collect

TASKS = ('eval/loss_0', 'eval/loss_1')   # the squared error of each
PAIRS = 'eval/accuracy'                  # the share of a session's pairs of items that are in order


def report(results):
  """Returns the Verdicts on the claims of README.md: of ln(error), so that an effect is a mean ratio.

  Those of AW-MoE are of a share.
  """
  of = lambda name: ratios.logarithms(collect.values(results, name))
  worse = lambda name: ratios.logarithms(worse_task(results, name))
  claims = [('MMoE better than a shared bottom', 'mmoe', 'shared_bottom'),
            ('PLE better than a shared bottom', 'ple', 'shared_bottom'),
            ('HoME better than a shared bottom', 'home', 'shared_bottom'),
            ('PLE better than MMoE', 'ple', 'mmoe'), ('HoME better than MMoE', 'home', 'mmoe'),
            ('HoME better than PLE', 'home', 'ple')]
  told = [verdict.exceeds(claim, of(a), of(b)) for claim, a, b in claims]
  pairs = lambda name: collect.values(results, name, PAIRS)
  return told + [
      verdict.exceeds('PLE better than MMoE in the worse task', worse('ple'), worse('mmoe')),
      verdict.exceeds('AW-MoE: more pairs in order by a gate of the history than by a constant one',
                      pairs('aw_moe'), pairs('constant_gate'), better='higher')]


def worse_task(results, name):
  """Returns dict problem -> the larger error of the two tasks, None where one is not finite."""
  errors = [collect.values(results, name, task) for task in TASKS]
  pairs = {seed: [values[seed] for values in errors] for seed in errors[0]}
  return {seed: None if None in pair else max(pair) for seed, pair in pairs.items()}


def figures(results):
  """Returns ln of the error over that of the shared bottom, of every method and problem."""
  base = ratios.logarithms(collect.values(results, 'shared_bottom'))
  groups = {}
  for name in sweep.METHODS[1:]:
    own = ratios.logarithms(collect.values(results, name))
    groups[name] = {seed: None if None in (value, base.get(seed)) else value - base[seed]
                    for seed, value in own.items()}
  return dict(ratio=drawing.points(groups, 'ln of the error over that of the shared bottom'))
