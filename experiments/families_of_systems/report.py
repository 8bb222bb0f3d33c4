"""Do experts behind a fitted gate predict systems of several families better, and are experts families?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments import ratios
from stmoe.experiments.families_of_systems import sweep
from stmoe.sweep import collect

RAND = 'eval/rand'
NEW = tuple(f'{method}_new' for method in sweep.ADAPTED)


def report(results):
  """Returns the Verdicts on the claims of README.md: of ln(error), and of the adjusted Rand index."""
  error = lambda name: ratios.logarithms(collect.values(results, name))
  rand = lambda name: collect.values(results, name, RAND)
  claims = [('MixER better than one network of the size of an expert', 'mixer', 'one'),
            ('MixER better than one network with the context of all experts', 'mixer', 'wide'),
            ('MixER better than a gate trained with a balance loss', 'mixer', 'balanced'),
            ('MixER better than a gate trained without one', 'mixer', 'gradient'),
            ('new systems: MixER better than one network', 'mixer_new', 'one_new'),
            ('new systems: MixER better than a gate trained with a balance loss', 'mixer_new',
             'balanced_new')]
  told = [verdict.exceeds(claim, error(a), error(b)) for claim, a, b in claims]
  chance = dict.fromkeys(rand('mixer'), 0.0)
  higher = lambda claim, other: verdict.exceeds(claim, rand('mixer'), other, better='higher')
  return told + [higher('MixER: experts are families more than by chance', chance),
                 higher('MixER: experts are families more than under a gate trained with a balance loss',
                        rand('balanced'))]


def figures(results):
  """Returns the error of every method on systems of the training and on new ones, and the Rand index."""
  error = lambda name: ratios.logarithms(collect.values(results, name))
  errors = {name: error(name) for name in (*sweep.METHODS, *NEW)}
  rand = {name: collect.values(results, name, RAND) for name in ('gradient', 'balanced', 'mixer')}
  return dict(error=drawing.points(errors, 'ln of the squared error on held-out trajectories'),
              rand=drawing.points(rand, 'adjusted Rand index of experts and families'))
