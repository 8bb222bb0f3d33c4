"""Do experts make a denoiser better at equal active FLOPs: on held-out noise, and in what it draws?"""

import dataclasses

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.diffusion_experts import measure
from stmoe.experiments.diffusion_experts import sweep
from stmoe.sweep import collect

LOSS = 'eval/loss'
DRAWN = 'sampled/accuracy'               # samples that the classifier takes for their class
TENTHS = range(10)                       # of the level of noise, as the target counts them
TITLES = dict(switch_dit='Switch-DiT', promoe='ProMoE', expert_choice='ProMoE, expert choice,')


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  found = joined(results)
  of = lambda name, metric=LOSS: collect.values(found, name, metric)
  told = [verdict.exceeds(f'{title} has a lower loss than dense', of(name), of('dense'))
          for name, title in TITLES.items()]
  told.append(verdict.exceeds('ProMoE has a lower loss with token choice than with expert choice',
                              of('promoe'), of('expert_choice')))
  told.append(verdict.exceeds('ProMoE has a lower loss than Switch-DiT', of('promoe'), of('switch_dit')))
  return told + [verdict.exceeds(f'{title} has more samples taken for their class than dense',
                                 of(name, DRAWN), of('dense', DRAWN), better='higher')
                 for name, title in TITLES.items()]


def joined(results):
  """Returns the Results whose rows also have the scores of their samples as 'sampled/...'."""
  return [_joined(one) for one in results]


def _joined(one):
  scores = {f'sampled/{name}': value for name, value in measure.recorded(one.run.workdir).items()}
  return dataclasses.replace(one, row=one.row | scores) if scores else one


def figures(results):
  """Returns the loss and the score of samples of every model and seed, and the loss by level of noise."""
  found = joined(results)
  of = lambda metric: {name: collect.values(found, name, metric) for name in sweep.MODELS}
  by_level = {name: {(tenth + 0.5) / len(TENTHS): collect.values(found, name, f'eval/mse_{tenth}')
                     for tenth in TENTHS} for name in sweep.MODELS}
  return dict(loss=drawing.points(of(LOSS), 'loss on held-out noise'),
              samples=drawing.points(of(DRAWN), 'share of samples taken for their class'),
              levels=drawing.curves(by_level, 'share of noise', 'squared error of the velocity'))
