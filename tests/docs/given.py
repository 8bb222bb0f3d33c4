"""What pages take for granted: small files and folders of the names that they use."""

import json
import pathlib
import shutil

from tests.docs import pages

DATA = pages.ROOT / 'tests' / 'data'
PROSE = 'Good morrow, neighbour. The hare runs over the hill, and the dog sleeps in the sun.\n\n' * 200
CODE = 'def f(x):\n  return x + 1\n\n' * 200
ROUTER = pages.titled('docs/router.md', 'stmoe/routers/sigmoid.py')
CHAT = [{'role': 'user', 'content': 'What is an expert?'}]
TEMPLATE = '{% for message in messages %}{{ message.content }}\\n{% endfor %}'
PAIRS = [{'inputs': f'{n} plus {n}', 'targets': str(2 * n)} for n in range(64)]

HOUSES = 'area,rooms,city,price,sold\n' + ''.join(
    f'{30 + 7 * n % 90},{n % 5 + 1},{("Bern", "Oslo", "Rom")[n % 3]},{100 + n},{n % 2}\n' for n in range(60))


def lines(rows):
  """Returns rows as JSON lines."""
  return ''.join(json.dumps(row) + '\n' for row in rows)


TEXTS = {
    'houses.csv': HOUSES, 'new.csv': HOUSES,
    'BOOK.txt': PROSE, 'TEXT': PROSE, 'b.txt': PROSE, 'a.py': CODE, 'prompts.txt': 'import \ndef f(\n',
    'rows.jsonl': lines({'body': PROSE[:900]} for _ in range(40)),
    'chats.jsonl': lines({'messages': CHAT} for _ in range(2)),
    'TRAIN.jsonl': lines(PAIRS), 'VAL.jsonl': lines(PAIRS[:16]),
    'my_router.py': ROUTER.replace('class Sigmoid', 'class MyRouter'),
}
COPIES = {
    'DOWNLOADED': DATA / 'checkpoints' / 'with_text_olmoe',
    'OLMoE': DATA / 'checkpoints' / 'with_text_olmoe',
    'TASKS': DATA / 'bigbench',
    'runs.csv': pages.ROOT / 'experiments' / 'scaling_law' / 'results' / 'results.csv',
}


def put(name, folder, runs):
  """Puts what is called `name` into `folder`; `runs` has tiny runs, `dense` and `switch`."""
  target = pathlib.Path(folder, name)
  target.parent.mkdir(parents=True, exist_ok=True)
  if name.startswith('runs/'):
    shutil.copytree(runs / ('dense' if 'dense' in name else 'switch'), target)
  elif name in TEXTS:
    target.write_text(TEXTS[name], encoding='utf-8')
  elif COPIES[name].is_dir():
    shutil.copytree(COPIES[name], target)
    if (target / 'tokenizer.json').exists():
      (target / 'chat_template.jinja').write_text(TEMPLATE, encoding='utf-8')
  else:
    shutil.copy(COPIES[name], target)
