"""What are routers that adapt to a prompt worth for the text behind it, and for the prompt itself?"""

import dataclasses

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.rewiring import measure
from stmoe.experiments.rewiring import sweep
from stmoe.experiments.rewiring import texts
from stmoe.sweep import collect

SAME = 1e-3                              # bits per byte that count as nothing gained


def report(results):
  """Returns the Verdicts on the claims of README.md, for each model."""
  found, verdicts = joined(results), []
  for model in sweep.MODELS:
    of = lambda column, text=texts.OTHER, setting='usual', model=model: collect.values(
        found, model, key(text, setting, column))
    better = lambda claim, first, second, model=model: verdict.exceeds(f'{model}: {claim}', first, second)
    verdicts += [
        better('the prompt is likelier when adapted, text of another kind', of('prompts/adapted'),
               of('prompts/plain')),
        better('what follows is likelier when adapted, text of another kind', of('texts/adapted'),
               of('texts/plain')),
        better('what follows: adapted better than random directions, text of another kind',
               of('texts/adapted'), of('texts/random')),
        verdict.alike(f'{model}: nothing is gained on text of the kind trained on',
                      of('texts/plain', texts.OWN), of('texts/adapted', texts.OWN), SAME),
        verdict.exceeds(f'{model}: more is gained on another kind than on the kind trained on', of('gain'),
                        of('gain', texts.OWN), better='higher'),
        better('20 steps better than 5, text of another kind', of('texts/adapted', setting='more_steps'),
               of('texts/adapted')),
        better('the surest router alone better than all, text of another kind', of('texts/adapted'),
               of('texts/adapted', setting='all_routers'))]
  return verdicts


def key(text, setting, column):
  """Returns the name in a row of a column of measure.py."""
  return f'{text}/{setting}/{column}'


def joined(results):
  """Returns the Results whose rows also have what was measured in their runs."""
  return [_joined(one) for one in results]


def _joined(one):
  found = {key(text, setting, column): value
           for (text, setting), columns in measure.recorded(one.run.workdir).items()
           for column, value in columns.items()}
  return dataclasses.replace(one, row=one.row | found) if found else one


def figures(results):
  """Returns the gain on what follows, of each model, text and setting."""
  found = joined(results)
  groups = {f'{model}, {text}, {setting}': collect.values(found, model, key(text, setting, 'gain'))
            for model in sweep.MODELS for text in (texts.OTHER, texts.OWN) for setting in measure.SETTINGS}
  return dict(gain=drawing.points(groups, 'bits per byte gained on what follows'))
