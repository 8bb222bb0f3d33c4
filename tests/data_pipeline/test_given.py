"""The user's files: what is no text is refused by name, and damage is one line with file and line."""

import functools
import gzip
import json

import pytest

from stmoe import errors
from stmoe.data import given
from stmoe.data.questions import squad
from stmoe.data.text import corpus
from stmoe.data.text import documents
from stmoe.data.text import tasks


def refused(work, *said):
  with pytest.raises(errors.UserError) as caught:
    work()
  assert all(word in str(caught.value) for word in said), str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name, content, said', [
    ('a.parquet.gz', b'x', 'cannot read'), ('a.txt', b'PAR1 and more', 'is Parquet'),
    ('a.jsonl.zst', b'x', 'no Zstandard'), ('a.txt', b'\x28\xb5\x2f\xfd', 'is Zstandard'),
    ('a.parquet', b'x', 'cannot read'), ('a.feather', b'x', 'is Arrow'),
    ('a.tar.gz', gzip.compress(b'x', mtime=0), 'cannot read'), ('a.tar.bz2', b'x', 'is bzip2'),
    ('a.gz', gzip.compress(b'\0' * 257 + b'ustar', mtime=0), 'is tar'),
    ('a.zip', b'x', 'is zip'), ('a.txt', b'PK\x03\x04', 'is zip'), ('a.bz2', b'x', 'is bzip2'),
    ('a.xz', b'x', 'is xz'), ('a.txt', b'\xfd7zXZ\x00', 'is xz'),
    ('a.txt', gzip.compress(b'x', mtime=0), 'is gzip')])
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, said):
  (tmp_path / name).write_bytes(content)
  refused(lambda: corpus.text([tmp_path / name]), f"{tmp_path / name}'", said)


@pytest.mark.parametrize('damage', [lambda b: b[:40], lambda b: b[:12],
                                    lambda b: b[:20] + b'\xff' * 30 + b[50:]])
def test_damaged_gzip_is_one_line(tmp_path, damage):
  packed = gzip.compress(''.join(f'line {i * i}\n' for i in range(1000)).encode())
  (tmp_path / 'a.txt.gz').write_bytes(damage(packed))
  refused(lambda: corpus.text([tmp_path / 'a.txt.gz']), 'cannot read', 'a.txt.gz')


def test_a_small_file_does_not_fill_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(given, 'ROOM', 1 << 16)
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(b'a' * (1 << 20), mtime=0))
  refused(lambda: corpus.text([tmp_path / 'a.txt.gz']), 'holds more than')
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(b'a line\n' * 9000, mtime=0))
  assert len(given.text(tmp_path / 'a.txt.gz')) == 63000


DEEP = '[' * 100_000


@pytest.mark.parametrize('line, said', [
    ('{"inputs": "a\\ud800", "targets": "b"}', 'half a surrogate'), (DEEP, 'nested too deeply'),
    ('{"inputs": "a", "inputs": "b", "targets": "c"}', 'twice'), ('{"inputs": NaN, "targets": "b"}', 'NaN'),
    ('{"inputs": "a", "targets": 1' + '0' * 5000 + '}', 'line 2')])
def test_lines_of_json(tmp_path, line, said):
  (tmp_path / 'a.jsonl').write_text('{"inputs": "a", "targets": "b"}\n' + line + '\n')
  refused(lambda: corpus.pairs([tmp_path / 'a.jsonl']), 'a.jsonl, line 2', said)
  refused(lambda: tasks.get('jsonl', [tmp_path / 'a.jsonl']), 'a.jsonl, line 2', said)


@pytest.mark.parametrize('field, value, said', [
    ('answer_start', -7, 'answer_start=-7'), ('answer_start', True, 'answer_start=True'),
    ('answer_start', 0.0, 'answer_start=0.0'), ('text', 'x', 'is not in the context'),
    ('text', 'a\ud800', 'half a surrogate'), ('text', float('nan'), 'NaN')])
def test_answers_of_squad(tmp_path, field, value, said):
  context = 'from London.'                                           # context[-7:-1] is London, too
  answer = dict(text='London', answer_start=5) | {field: value}
  qa = dict(id='q', question='Where?', answers=[answer])
  paragraph = dict(context=context, qas=[qa])
  (tmp_path / 'a.json').write_text(json.dumps(dict(data=[dict(paragraphs=[paragraph])])))
  refused(lambda: squad.read(tmp_path / 'a.json'), 'a.json', said)


def test_damaged_squad(tmp_path):
  for name, content, said in [
      ('a.json', DEEP.encode(), 'nested too deeply'), ('b.json', b'\xff', 'not UTF-8'),
      ('c.json.gz', gzip.compress(b'{}' * 999, mtime=0)[:20], 'cannot read')]:
    path = tmp_path / name
    path.write_bytes(content)
    refused(functools.partial(squad.read, path), name, said)


def test_a_mark_of_byte_order_is_no_text(tmp_path):
  line = json.dumps(dict(inputs='a', targets='b', text='c')) + '\n'
  (tmp_path / 'a.jsonl').write_bytes((2 * line).encode('utf-8-sig'))
  assert given.text(tmp_path / 'a.jsonl') == 2 * line
  assert corpus.pairs([tmp_path / 'a.jsonl'])['train'] == [('', 'a'), ('', 'b')]
  assert documents.read(tmp_path / 'a.jsonl') == [b'c', b'c']


def test_a_name_may_end_in_a_blank(tmp_path):
  (tmp_path / 'a ').write_text('text')
  assert given.text(tmp_path / 'a ') == 'text'
