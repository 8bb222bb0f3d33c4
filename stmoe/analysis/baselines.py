"""What simple models reach on the corpora of the project, to read a loss against.

Bits per byte of the validation side of `stdlib`, whole files, CPython 3.11.7. Other versions
of Python have other files (about 2 % more or less text) and so slightly other values. N-gram
figures are interpolated byte models (Witten and Bell) fitted on the training side, see ngram.py.
`python -m stmoe.experiments.baselines lm/stdlib` makes all of the figures.
"""

STDLIB = {'uniform bytes': 8.0, 'byte 1-gram': 4.474, 'byte 3-gram': 2.616, 'best byte n-gram': 1.962,
          'xz given the training text': 1.507}
MEASURED_ON = 'CPython 3.11.7'

BY_TASK = {'stdlib': STDLIB}


def of(config):
  """Returns dict text -> bits per byte for the task of a run's `config`; {} when none are known."""
  return BY_TASK.get(config.get('data', {}).get('task'), {})


def common(runs):
  """Returns the baselines that hold for all `runs` together; {} when their tasks differ."""
  of_runs = [of(run.config) for run in runs]
  return of_runs[0] if of_runs and all(f == of_runs[0] for f in of_runs) else {}
