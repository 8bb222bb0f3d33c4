"""What the results of experiments/ say about each claim, as the pages print it.

python -m stmoe.experiments.claims            the table of README.md: every claim of every question
python -m stmoe.experiments.claims QUESTION   the verdicts of one question, for its own page
"""

import json
import math
import pathlib
import sys

from stmoe import errors
from stmoe.analysis import verdict

FOLDER = pathlib.Path(__file__).parent


def answered():
  """Returns the names of the questions whose small runs have results here."""
  return sorted(path.parent.parent.name for path in FOLDER.glob('*/results/verdict.json'))


def verdicts(name):
  """Returns the list of verdict.Verdict of a question."""
  content = json.loads((FOLDER / name / 'results' / 'verdict.json').read_text(encoding='utf-8'))
  return [verdict.Verdict(**{key: math.nan if value is None else value for key, value in entry.items()})
          for entry in content['verdicts']]


def text(name):
  """Returns the verdicts of a question as `stmoe sweep --report` prints them."""
  return '\n'.join(map(str, verdicts(name)))


def table():
  """Returns a Markdown table with a row for each claim."""
  lines = ['| question | claim | verdict | effect | 95 % interval | spread | seeds |', '|' + '---|' * 7]
  for name in answered():
    for answer in verdicts(name):
      seeds = '/'.join(map(str, dict.fromkeys(answer.seeds)))
      lines.append(f'| [{name}]({name}/README.md) | {answer.claim} | **{answer.answer}** '
                   f'| {_numbers(answer)} | {seeds} |')
  return '\n'.join(lines)


def _numbers(one):
  if math.isnan(one.effect):
    return f'{one.rule} | | '
  return f'{one.effect:+.4g} | {one.low:+.4g} to {one.high:+.4g} | {one.spread:.2g}'


def main(names):
  wrong = [name for name in names if name not in answered()]
  if wrong:
    raise SystemExit(f'{wrong[0]} has no results{errors.nearest(wrong[0], answered())}')
  print('\n'.join(map(text, names)) if names else table())


if __name__ == '__main__':
  main(sys.argv[1:])
