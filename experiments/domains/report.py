"""Does one step on unlabelled images of a new domain help, and does Meta-DMoE end above ERM?"""

from stmoe import experiment
from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.domains import sweep
from stmoe.sweep import collect

ACCURACY, WORST = 'eval/accuracy', 'eval/worst_accuracy'
BEFORE = '_before'                       # the student before its step


def report(results):
  """Returns the Verdicts on the claims of README.md: of accuracies, 0.01 is a point."""
  of = lambda name, metric=ACCURACY: collect.values(results, name, metric)
  higher = lambda claim, a, b: verdict.exceeds(claim, a, b, better='higher')
  told = [higher('Meta-DMoE: better after the step than before it', of('meta_dmoe'),
                 of('meta_dmoe', ACCURACY + BEFORE))]
  claims = [('Meta-DMoE better than ERM', 'meta_dmoe', 'erm'),
            ('its own expert masked better than not', 'meta_dmoe', 'unmasked'),
            ('second order better than first', 'meta_dmoe', 'first_order')]
  for claim, a, b in claims:
    told += [higher(claim, of(a), of(b)), higher(f'{claim}, worst domain', of(a, WORST), of(b, WORST))]
  return told


def figures(results):
  """Returns the accuracy of every method after and before its step, and the accuracy at every angle."""
  lines = {name: (name, 'adapted') for name in sweep.METHODS}
  lines['meta_dmoe, before'] = 'meta_dmoe', 'before'
  angles = experiment.load('meta_dmoe/digits')[0].data.held          # of domain 0, 1, ...
  by_angle = lambda name, when: {angle: collect.values(results, name, f'eval/domain_{number}_{when}')
                                 for number, angle in enumerate(angles)}
  groups = {}
  for name in sweep.METHODS:
    groups |= {name: collect.values(results, name, ACCURACY)}
    if name != 'erm':
      groups |= {f'{name}, before': collect.values(results, name, ACCURACY + BEFORE)}
  return dict(accuracy=drawing.points(groups, 'accuracy at new angles'),
              angles=drawing.curves({label: by_angle(*line) for label, line in lines.items()},
                                    'angle of a new domain, degrees', 'accuracy'))
