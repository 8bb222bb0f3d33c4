"""Is a fixed table of experts, random or balanced, as good as a learned router?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.hash_routing import sweep
from stmoe.sweep import collect

SAME = 0.02                              # nats per token


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  claims = [(f'hash better than Switch, {e} experts', f'hash_{e}', f'switch_{e}') for e in sweep.EXPERTS]
  claims += [(f'balanced table better than Switch, {e} experts', f'balanced_{e}', f'switch_{e}')
             for e in sweep.EXPERTS]
  claims += [('hash better than dense, 8 experts', 'hash_8', 'dense'),
             ('hash with 32 experts better than with 8', 'hash_32', 'hash_8')]
  alike = [verdict.alike(f'balanced table like a random one, {e} experts', of(f'balanced_{e}'),
                         of(f'hash_{e}'), SAME) for e in sweep.EXPERTS]
  return [verdict.exceeds(claim, of(a), of(b)) for claim, a, b in claims] + alike


def figures(results):
  """Returns the loss of every model."""
  names = ['dense', *(f'{method}_{e}' for e in sweep.EXPERTS for method in ('switch', 'hash', 'balanced'))]
  groups = {name: collect.values(results, name) for name in names}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
