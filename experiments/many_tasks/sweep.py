"""Two tasks of drawn functions that share experts in four ways, and sessions of drawn users behind two gates.

A seed is also the number of its problem.
"""

from stmoe.experiments import sizes

METHODS = ('shared_bottom', 'mmoe', 'ple', 'home')
PROBLEMS = {'smoke': 2, 'small': 20, 'large': 100}
CORRELATION = 0.0                        # p of MMoE's generator
# A quarter of the steps of the experiment at three times its rate; large keeps those.
SMALL = {'train.steps': 500, 'schedule.value': 3e-3}
# AW-MoE reads histories, which these tasks do not have: it has problems of its own. Two thirds of its steps.
GATES = {'aw_moe': 'attention', 'constant_gate': 'constant'}
SMALL_SESSIONS = {'train.steps': 1000}


def runs(size='small'):
  """Yields a run of every method, or gate, and problem."""
  sizes.seeds(size)
  for problem in range(PROBLEMS[size]):
    for method in METHODS:
      experiment = f'home/many_tasks:method={method},p={CORRELATION},problem={problem}'
      yield from sizes.fitted(size, {method: (experiment, {})}, SMALL, {}, (problem,))
    for name, gate in GATES.items():
      experiment = f'aw_moe/sessions:gate={gate},problem={problem}'
      yield from sizes.fitted(size, {name: (experiment, {})}, SMALL_SESSIONS, {}, (problem,))
