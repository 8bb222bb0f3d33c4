"""Do mixtures and augmented examples answer better in domains of which training shows few questions?"""

import statistics

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.robust_qa import sweep
from stmoe.sweep import collect

NEAR = 'arguments', 'docstring'


def report(results):
  """Returns the Verdicts on the claims of README.md, all of F1."""
  out = lambda name: score(results, name, 'f1', sweep.FAR)
  inside = lambda name: score(results, name, 'f1', NEAR)
  better = lambda claim, of, first, second: verdict.exceeds(claim, of(first), of(second), better='higher')
  return [
      better('out of domain: a mixture as head better than dense', out, 'mixture', 'plain'),
      better('out of domain: Switch layers better than dense', out, 'switch', 'plain'),
      better('out of domain: augmented examples better than none, dense', out, 'plain_eda', 'plain'),
      better('out of domain: augmented examples better than none, mixture', out, 'mixture_eda', 'mixture'),
      better('out of domain: copies with one word changed better than none, dense', out, 'plain_copies',
             'plain'),
      better('out of domain: augmented copies better than copies with one word changed', out, 'plain_eda',
             'plain_copies'),
      better('out of domain: mixture and augmented examples better than plain', out, 'mixture_eda', 'plain'),
      better('in domain: a mixture as head better than dense', inside, 'mixture', 'plain'),
      better('in domain: Switch layers better than dense', inside, 'switch', 'plain')]


def score(results, name, metric, domains):
  """Returns dict seed -> mean over `domains` of a metric of the runs called `name`."""
  of = [collect.values(results, name, f'{domain}/{metric}@span') for domain in domains]
  return {seed: None if any(one[seed] is None for one in of) else statistics.fmean(one[seed] for one in of)
          for seed in of[0]}


def figures(results):
  """Returns F1 of every model out of domain, and in domain."""
  drawn = lambda domains, where: drawing.points(
      {name: score(results, name, 'f1', domains) for name in sweep.MODELS}, f'F1 {where}')
  return dict(out_of_domain=drawn(sweep.FAR, 'out of domain'), in_domain=drawn(NEAR, 'in domain'))
