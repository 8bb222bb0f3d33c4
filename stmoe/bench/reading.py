"""How fast texts become a cache: megabytes of text per second of one core, of reading, tokenizing, writing.

Seconds are those of the processor, of all threads together, so that other work on the machine counts little.
"""

import gzip
import io
import json
import pathlib
import tarfile
import tempfile
import time

from stmoe.data.large import corpora
from stmoe.data.text import cache as caches
from stmoe.data.text import documents as reading
from stmoe.data.text import tasks

MOST = 64 << 20                          # bytes of text that are taken of the user's files
HEADING = f'{"work":12} {"on":24} {"MB":>7} {"MB/s per core":>14}'


def line(row):
  """Returns the line of a row of `measure`."""
  return f'{row["work"]:12} {row["on"]:24} {row["megabytes"]:7.1f} {row["rate"]:14.1f}'


def measure(files, vocab, how, rounds):
  """Yields dict(work, on, megabytes, rate): MB of text per processor second, the best of `rounds`.

  Without files the standard library of this Python is read, from every format in turn.

  Args:
    files: those of task text, or ().
    vocab: as data.vocab.
    how: dict of `field` and `documents`, see sources/texts.py.
  """
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    task = corpora.of('text', files, **how) if files else tasks.get('stdlib')
    texts = _first(task.documents('train'))
    size = sum(len(text.encode()) for text in texts) / 1e6
    rate = lambda work: size / min(_seconds(work) for _ in range(rounds))
    if files:
      yield dict(work='reading', on=f'{len(files)} given', megabytes=size,
                 rate=rate(lambda: _first(task.documents('train'))))
    else:
      for name, path in written(texts, folder).items():
        yield dict(work='reading', on=name, megabytes=size, rate=rate(lambda path=path: reading.read(path)))
    vocabulary = caches.vocabulary_of(vocab, [task], 0, folder)
    encoded = list(caches.encoded(texts, vocabulary))
    yield dict(work='tokenizing', on=vocab, megabytes=size,
               rate=rate(lambda: list(caches.encoded(texts, vocabulary))))
    yield dict(work='writing', on=vocab, megabytes=size,
               rate=rate(lambda: caches.write_texts(folder, 'train', iter(encoded), vocabulary)))


def written(texts, folder):
  """Returns dict format -> path of a file in `folder` with these texts."""
  import pyarrow
  from pyarrow import ipc
  from pyarrow import parquet
  objects = ''.join(json.dumps(dict(text=text)) + '\n' for text in texts).encode()
  table = pyarrow.table(dict(text=texts))
  contents = {'JSON lines': ('a.jsonl', objects), 'JSON lines, .gz': ('a.jsonl.gz', gzip.compress(objects)),
              'JSON lines, .zst': ('a.jsonl.zst', pyarrow.Codec('zstd').compress(objects, asbytes=True)),
              'text': ('a.txt', ''.join(texts).encode()), 'tar': ('a.tar', _tar(texts))}
  for name, content in contents.values():
    (folder / name).write_bytes(content)
  parquet.write_table(table, folder / 'a.parquet')
  with ipc.new_stream(str(folder / 'a.arrow'), table.schema) as writer:
    writer.write_table(table, 1000)
  paths = {format: folder / name for format, (name, _) in contents.items()}
  return paths | {'Parquet': folder / 'a.parquet', 'Arrow': folder / 'a.arrow'}


def _tar(texts):
  """The bytes of a tar with a member for each text."""
  made = io.BytesIO()
  with tarfile.open(fileobj=made, mode='w') as tar:
    for number, text in enumerate(text.encode() for text in texts):
      info = tarfile.TarInfo(f'{number:06}.txt')
      info.size = len(text)
      tar.addfile(info, io.BytesIO(text))
  return made.getvalue()


def _first(texts):
  """The first of the texts, as long as they have no more than MOST bytes; at least one."""
  taken, size = [], 0
  for text in texts:
    taken.append(text)
    size += len(text.encode())
    if size >= MOST:
      break
  return taken


def _seconds(work):
  start = time.process_time()
  work()
  return time.process_time() - start
