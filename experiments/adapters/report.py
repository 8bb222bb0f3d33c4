"""Which way of tuning a trained model answers questions of several tasks best after equally many steps?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.adapters import sweep
from stmoe.sweep import collect

METHODS = ('full', 'lora', 'mixlora', 'dynmole')
ACCURACY = 'average@rank'


def report(results):
  """Returns the Verdicts on the claims of README.md: of accuracies in percent, and of losses in nats."""
  accuracy = lambda name: collect.values(results, name, ACCURACY)
  nats = lambda name: loss(results, name)
  higher = lambda claim, a, b: verdict.exceeds(claim, accuracy(a), accuracy(b), better='higher')
  lower = lambda claim, a, b: verdict.exceeds(f'{claim}, loss', nats(a), nats(b))
  claims = [('MixLoRA better than LoRA', 'mixlora', 'lora'), ('DynMoLE better than LoRA', 'dynmole', 'lora'),
            ('MixLoRA better than full fine-tuning', 'mixlora', 'full'),
            ('DynMoLE better than full fine-tuning', 'dynmole', 'full'),
            ('DynMoLE better than MixLoRA', 'dynmole', 'mixlora'),
            ('full fine-tuning of the trained model better than of a drawn one', 'full', 'full_from_drawn'),
            ('LoRA better than the model as it is', 'lora', 'untuned')]
  return [told for claim in claims for told in (higher(*claim), lower(*claim))]


def loss(results, name):
  """Returns dict seed -> mean over the tasks of the loss of the answers; None where one is not finite."""
  by_task = [task_loss(results, name, task) for task in sweep.TASKS]
  every = {seed: [values[seed] for values in by_task] for seed in by_task[0]}
  return {seed: None if None in values else sum(values) / len(values) for seed, values in every.items()}


def task_loss(results, name, task):
  """Returns dict seed -> loss of the answers of a task, in nats a token."""
  return collect.evaluated(results, name, 'data.mixture', ((task, 1.0),))


def figures(results):
  """Returns the losses of every task and the mean accuracy, of every method and seed."""
  losses = {f'{task.removeprefix("stdlib_")}, {name}': task_loss(results, name, task)
            for task in sweep.TASKS for name in METHODS}
  accuracies = {name: collect.values(results, name, ACCURACY)
                for name in ('untuned', 'full_from_drawn', *METHODS)}
  return dict(loss=drawing.points(losses, 'nats a token of the answer'),
              accuracy=drawing.points(accuracies, 'accuracy among choices, %, mean of the tasks'))
