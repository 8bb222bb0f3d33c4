"""Fields of every source of data for the shared checks, with the files that it needs."""

import json
import pathlib

import numpy as np

from stmoe.data import recording
from stmoe.data.text import pack
from stmoe.data.text import vocab
from tests.data_pipeline.sources import test_questions as asked

# Of users and items, of which every tenth row of a file is held out.
EVENTS = 'user,item,time,like,price,word\n' + ''.join(
    f'u{i % 7},i{i * i % 11},{i},{i % 2},{i % 5},w{i % 3}\n' for i in range(120))

ROUTERS = ('decoder_01:4:2',)


def recorded(folder: pathlib.Path) -> str:
  """Returns the path of a recording of nine texts of up to eight tokens."""
  rng, batch, path = np.random.default_rng(0), pack.empty(dict(decoder=8), 9), folder / 'routes.npz'
  for row in range(9):
    pack.fill(batch, row, [dict(decoder=rng.integers(3, 90, 8 - row % 4))])
  routes = rng.integers(0, 4, (9, 8, 1, 2)).astype(np.int32)
  about = recording.About('run', 0, dict(objective='lm'), vocab.Bytes(0).digest, list(ROUTERS), 2, {})
  recording.write(path, about, batch, dict(decoder=routes))
  return str(path)


def written(folder: pathlib.Path) -> dict[str, dict]:
  """Returns dict source -> fields, where the checks know no value; their files are in `folder`."""
  events, values, train, held = (str(folder / name) for name in ('a.csv', 'a.npz', 'train.json', 'held.json'))
  pathlib.Path(events).write_text(EVENTS)
  np.savez(values, values=np.cumsum(np.random.default_rng(0).normal(size=(10, 40, 2)), 1),
           system=np.arange(10) % 3)
  for file, at in ((train, 0), (held, 1)):
    article = asked.article(asked.CONTEXTS[at], asked.QUESTIONS[at])
    pathlib.Path(file).write_text(json.dumps(dict(version='1.1', data=[article])))
  return dict(
      behaviours=dict(files=(events,), num_items=12, length=3, items_per_row=2, query='word', num_queries=4,
                      numbers=('price',)),
      domains=dict(sources=(0.0, 30.0, 60.0), held=(15.0,), size=40, support=8),
      drawn_behaviours=dict(num_users=40, num_held_out=10, num_items=21, length=5),
      drawn_tasks=dict(num_rows=60, num_held_out=20, num_features=6),
      graphs=dict(task='digits', num_nodes=100, num_edges=1300, num_features=64),
      questions=dict(task='squad', files=(train, held), vocab='bytes', extra_ids=0, inputs_length=64,
                     targets_length=2, stride=16, question_length=32, answer_length=8,
                     eda=dict(files=(), copies=1, share=0.1, synonyms='')),
      recorded=dict(files=(recorded(folder),), objective='lm', length=8, vocab='bytes', choices=2,
                    routers=ROUTERS),
      sequences=dict(files=(values,), length=6, num_values=2, num_systems=3),
      table=dict(files=(events,), numbers=('price',), categories=('word',), num_ids=4, given=('item',),
                 labels=('like',), group='user'),
      trajectories=dict(families=('pendulum',), environments=2, length=4))
