"""Files that tests write as plugins."""

from tests.docs import pages

SIGMOID = pages.titled('docs/router.md', 'stmoe/routers/sigmoid.py')
TASKS = '''"""Counting."""
from stmoe.data.text import tasks


def counting(files=()):
  """Returns the task of numbers that are counted; it takes no files."""
  tasks.no_files('counting', files)
  rows = lambda at: [(str(n), ' '.join(map(str, range(n, n + 40)))) for n in range(at, at + 30)]
  return tasks.local('counting', dict(train=rows(0), validation=rows(500)), {})


TASKS = dict(counting=counting)
'''
SOURCES = {
    'router': SIGMOID.replace('class Sigmoid', 'class Mine'),
    'layer': 'from stmoe.core import contract\n\nclass Mine:\n'
             '  def __call__(self, x, ctx, carry) -> contract.Answer:\n    return x, None, carry\n',
    'experts': 'class Mine:\n  def __call__(self, rows, key=None):\n    return rows\n',
    'executor': 'from stmoe import ranges\n\n'
                'def execute(x, a, experts, key=None, *, parts: ranges.Count = 1):\n  return x\n',
    'target': 'class Mine:\n  def loss(self): pass\n  def judge(self): pass\n  def metrics(self): pass\n',
    'tasks': TASKS,
}


def write(folder, source, name='mine'):
  path = folder / f'{name}.py'
  path.write_text(source, encoding='utf-8')
  return path
