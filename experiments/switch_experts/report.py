"""Is Switch better than the dense model of its FLOPs, and better with more experts?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.switch_experts import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  few, many = sweep.EXPERTS[0], sweep.EXPERTS[-1]
  return [
      verdict.exceeds('Switch with 8 experts better than dense', of(sweep.name(8)), of('dense')),
      verdict.exceeds(f'{many} experts better than {few}', of(sweep.name(many)), of(sweep.name(few))),
      *(verdict.exceeds(f'{b} experts better than {a}', of(sweep.name(b)), of(sweep.name(a)))
        for a, b in zip(sweep.EXPERTS, sweep.EXPERTS[1:]))]


def figures(results):
  """Returns the loss against the number of experts; 1 is the dense model."""
  line = {1: collect.values(results, 'dense')}
  line |= {e: collect.values(results, sweep.name(e)) for e in sweep.EXPERTS}
  y = 'validation loss (nats per token)'
  return dict(loss=drawing.curves({'Switch': line}, 'experts (1: dense)', y, log=True))
