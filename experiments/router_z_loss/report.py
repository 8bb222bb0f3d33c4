"""Does the router z-loss make a training good that goes wrong without, and cost nothing where none does?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.router_z_loss import sweep
from stmoe.sweep import collect

# ST-MoE, section 3: -1.755 and -1.741; a difference of this size is none.
SAME = 0.02


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  without, with_z = ([collect.values(results, sweep.name(rate, z)) for rate in sweep.RATES]
                     for z in sweep.COEFFICIENTS)
  logits = [collect.values(results, sweep.name(sweep.RATES[0], z), 'loss/router_z')
            for z in sweep.COEFFICIENTS]
  return [
      verdict.exceeds(f'at the highest rate, {sweep.RATES[-1]}, better with z-loss', with_z[-1], without[-1]),
      verdict.alike(f'at the usual rate, {sweep.RATES[0]}, the same loss', with_z[0], without[0], SAME),
      verdict.exceeds('smaller router logits (z-loss of the last batch)', logits[1], logits[0])]


def figures(results):
  """Returns the loss against the learning rate."""
  lines = {f'z-loss {z}': {rate: collect.values(results, sweep.name(rate, z)) for rate in sweep.RATES}
           for z in sweep.COEFFICIENTS}
  return dict(loss=drawing.curves(lines, 'learning rate', 'validation loss (nats per token)', log=True))
