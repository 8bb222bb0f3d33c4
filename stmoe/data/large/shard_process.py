"""A process that makes the shards whose turn it is; maker.py starts it and hears from it.

Its input is a line of JSON, and then nothing more: when the input ends, the one that started it is gone, and
so is the process. It writes lines of JSON: {"read": bytes of files}, at last {"count": shards} or {"error":
line}.
"""

import json
import os
import pathlib
import sys
import threading

from stmoe import errors
from stmoe.data.large import corpora
from stmoe.data.large import maker
from stmoe.data.large import sharded
from stmoe.data.text import cache as caches

TOLD = 1 << 20                           # bytes of files between two lines


def spec(made, files, how):
  """Returns the dict, for JSON, of which a worker makes the Shards `made` again."""
  vocabulary = made.vocabulary
  return dict(task=made.task.name, files=list(map(str, files)), how=how, path=str(made.path), key=made.key,
              size=made.size, vocab=str(getattr(vocabulary, 'path', 'bytes')), extra_ids=vocabulary.extra_ids)


def run(said, tell):
  """Makes the shards that the line `said` names, and calls `tell` with dicts."""
  read = 0

  def advance(size):
    nonlocal read
    read += size
    if read >= TOLD:
      tell(dict(read=read))
      read = 0
  task = corpora.of(said['task'], said['files'], **said['how'])
  vocabulary = caches.vocabulary_of(said['vocab'], (), said['extra_ids'])
  vocabulary.threads = 1
  made = sharded.Shards(pathlib.Path(said['path']), vocabulary, said['key'], task, said['size'])
  if sharded.key(task, vocabulary, made.size) != made.key:
    raise errors.UserError('the files have changed while they were cached')
  count = maker.part(made, said['worker'], said['workers'], advance)
  tell(dict(read=read))
  tell(dict(count=count))


def main():
  """Does what the first line of the input says."""
  said = json.loads(sys.stdin.readline())
  tell = lambda line: print(json.dumps(line), flush=True)

  def leave():
    sys.stdin.read()
    os._exit(1)
  threading.Thread(target=leave, daemon=True).start()
  try:
    run(said, tell)
  except errors.UserError as error:
    tell(dict(error=str(error)))


if __name__ == '__main__':
  main()
