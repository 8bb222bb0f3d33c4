"""A corpus of a gigabyte is cached in little memory, killed and resumed; -s prints the rate.

Another size, of at least 260: STMOE_CORPUS_MB=300 pytest tests/data_pipeline/large/test_size.py -m slow -s
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from stmoe.data.large import corpora
from stmoe.data.large import sharded
from stmoe.data.text import vocab

ROOT = pathlib.Path(__file__).parents[3]
SIZE = int(os.environ.get('STMOE_CORPUS_MB', '1000')) * 10**6
MEMORY = 600e6                           # bytes, of a process; its shard has 64 million bytes of text
# Runs a command, and prints the most memory and the seconds of the processor of it and its processes. Of a
# process, ru_maxrss begins as the memory of its parent. That of the command is pytest's, so VmHWM is read.
MEASURED = '''
import json, pathlib, re, resource, sys
from stmoe.cli import main
code = main.main(sys.argv[1:])
own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
most = int(re.search(r'VmHWM:\\s*(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])
print(json.dumps(dict(code=code, memory=[most * 1024, others.ru_maxrss * 1024],
                      seconds=sum(part.ru_utime + part.ru_stime for part in (own, others)))))
'''


def generate(path):
  """Writes JSON lines with SIZE bytes of text; returns the number of rows."""
  draw, rows, size = random.Random(0), 0, 0
  words = [''.join(draw.choices('etaoinshrdlu', k=draw.randint(2, 9))) for _ in range(5000)]
  text = ' '.join(draw.choices(words, k=500_000))
  with open(path, 'w', encoding='utf-8') as file:
    while size < SIZE:
      at = draw.randrange(len(text) - 8000)
      document = f'{rows} {text[at:at + draw.randint(200, 8000)]}'
      file.write(json.dumps(dict(text=document)) + '\n')
      rows, size = rows + 1, size + len(document)
  return rows


@pytest.mark.slow
def test_a_large_corpus_is_cached_in_little_memory_killed_and_resumed(tmp_path):
  rows = generate(tmp_path / 'a.jsonl')
  command = ['cache', 'text', '--files', str(tmp_path / 'a.jsonl'), '--shards', '--processes', '2',
             '--cache-dir', str(tmp_path / 'cache')]
  task = corpora.of('text', [tmp_path / 'a.jsonl'])
  found = sharded.of(task, vocab.Bytes(), 64 * 10**6, tmp_path / 'cache')
  killed = subprocess.Popen([sys.executable, '-m', 'stmoe.cli.main', *command], cwd=ROOT)
  while not found.has(2) and killed.poll() is None:
    time.sleep(0.05)
  killed.kill()
  assert killed.wait() == -9
  time.sleep(5)                                                      # its processes end
  before = {path: path.stat().st_ino for path in found.path.glob('0?????/*')}
  done = subprocess.run([sys.executable, '-c', MEASURED, *command], cwd=ROOT, stdout=subprocess.PIPE,
                        text=True, check=True)
  measured = json.loads(done.stdout.splitlines()[-1])
  facts = found.facts()
  written = facts['splits']['train']['bytes'] * (1 - len(before) / 3 / facts['shards']) / 1e6
  print(f'{done.stdout}{len(before) // 3} of {facts["shards"]} shards were there; {written:.0f} MB in '
        f'{measured["seconds"]:.1f} processor seconds: {written / measured["seconds"]:.1f} MB/s per core')
  assert measured['code'] == 0 and max(measured['memory']) < MEMORY
  assert len(before) >= 6 and all(path.stat().st_ino == inode for path, inode in before.items())
  assert sum(split['documents'] for split in facts['splits'].values()) == rows
  assert len(list(found.path.glob('0*'))) == facts['shards']
