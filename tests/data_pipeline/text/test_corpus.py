"""Corpora: the recipe of the standard library, files of the user, their split, and their mistakes."""

import gzip
import hashlib
import platform

import pytest

from stmoe import errors
from stmoe.data.text import corpus
from stmoe.data.text import tasks

# CPython 3.11.7: split -> (files, bytes, sha256 of the joined text).
RECORDED = {
    'train': (351, 8161696, 'b06d8a64feaf7beb29a2e34efe74e9a57dcbb2f8b056132a83bc4d2dc862f785'),
    'validation': (22, 412223, '5f2ff1624d6ca96adecdef941664bb28c9dbac9a56285718b7ec6bafb8d321c3')}


@pytest.fixture
def tree(tmp_path):
  """A small library in which each file shows one rule."""
  body = 'x = 1\n' * 50
  for name, content in {
      'a.py': body, 'B.py': body, 'sub/c.py': body, 'short.py': 'x = 1\n', 'd.txt': body, 'test/e.py': body,
      'sub/tests/f.py': body, 'config-3.11/g.py': body, '_sysconfigdata_linux.py': body,
      'sitecustomize.py': body, 'crlf.py': body.replace('\n', '\r\n').rstrip(), 'bom.py': '\ufeff' + body,
      'cr.py': body.replace('\n', '\r'), 'enum.py': body}.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
  (tmp_path / 'latin.py').write_bytes(body.encode() + b'\xe9' * 300)
  return tmp_path, body


def test_the_recipe_of_the_standard_library(tree):
  root, body = tree
  found = corpus.stdlib(root)
  assert [name for name, _ in found['train']] == ['B.py', 'a.py', 'bom.py', 'cr.py', 'crlf.py', 'sub/c.py']
  assert [name for name, _ in found['validation']] == ['enum.py']
  assert {text for documents in found.values() for _, text in documents} == {body}


@pytest.mark.skipif(platform.python_version() != '3.11.7', reason='digests are those of CPython 3.11.7')
@pytest.mark.parametrize('split', tasks.SPLITS)
def test_digests_of_the_standard_library(split):
  texts = list(tasks.get('stdlib').documents(split))
  joined = ''.join(texts).encode()
  assert (len(texts), len(joined), hashlib.sha256(joined).hexdigest()) == RECORDED[split]


def test_the_standard_library_of_this_python():
  task = tasks.get('stdlib')
  sizes = [task.size(split) for split in tasks.SPLITS]
  assert sizes[0] > 10 * sizes[1] > 10 * 200000
  for split in tasks.SPLITS:
    for text in task.documents(split):
      assert text.endswith('\n') and '\r' not in text and len(text.encode()) >= 200


def test_a_library_without_sources(tmp_path):
  with pytest.raises(errors.UserError, match='no Python sources'):
    corpus.stdlib(tmp_path)


def test_one_file_is_cut_at_a_line_end(tmp_path):
  text = ''.join(f'line {i} é\r\n' for i in range(500))
  (tmp_path / 'a.txt').write_bytes(text.encode())
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(text.encode()))
  found = corpus.text([tmp_path / 'a.txt'])
  (_, train), = found['train']
  (_, held_out), = found['validation']
  assert train + held_out == text
  assert train.endswith('\n')
  size = len(text.encode())
  assert 0 <= len(train.encode()) - (size - size // 20) < 20
  assert corpus.text([tmp_path / 'a.txt.gz']) == {
      split: [(f'{name}.gz', content) for name, content in documents] for split, documents in found.items()}


def test_a_file_without_line_ends_is_cut_between_characters(tmp_path):
  for n in range(107, 114):  # a twentieth of 3 n bytes is 16 or 17 bytes, not whole characters
    (tmp_path / 'a.txt').write_text('日' * n)
    found = corpus.text([tmp_path / 'a.txt'])
    assert [len(found[split][0][1]) for split in tasks.SPLITS] == [n - 6, 6]


def test_many_files_are_held_out_whole_by_their_content(files, tmp_path):
  found = corpus.text(files)
  assert (len(found['train']), len(found['validation'])) == (38, 2)
  again = corpus.text(files[::-1])
  assert sorted(again['validation']) == sorted(found['validation'])
  assert again['train'] == found['train'][::-1]


def test_the_digest_sees_every_change(files):
  found = corpus.text(files)
  digest = corpus.digest(found)
  assert digest == corpus.digest(corpus.text(files))
  assert digest != corpus.digest(corpus.text(files[::-1]))
  name, text = found['train'][3]
  found['train'][3] = (name, text[:-2] + '\n')
  assert digest != corpus.digest(found)


@pytest.mark.parametrize('content, said', [
    (None, "no file .*cropus.txt'; nearest: corpus.txt"), (b'', 'no text'), (b'a', 'too little text'),
    (b'abc\xff', r'not UTF-8 \(byte 3\)'), (b'\x1f\x8b broken', 'cannot read')])
def test_mistakes_are_one_line(tmp_path, content, said):
  (tmp_path / 'corpus.txt').write_text('text\n')
  path = tmp_path / ('cropus.txt' if content is None else 'x.txt.gz' if content[:1] == b'\x1f' else 'x.txt')
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match=f'data.files.*{said}'):
    corpus.text([path])


def test_unknown_tasks_and_files_for_none():
  with pytest.raises(errors.UserError, match="no task is called 'stdlob'; nearest: stdlib"):
    tasks.get('stdlob')
  with pytest.raises(errors.UserError, match='data.files is empty'):
    tasks.get('text')
  says = r'data.files \(or data.jsonl\) is set, but task stdlib reads none.*text, pairs, or jsonl'
  with pytest.raises(errors.UserError, match=says):
    tasks.get('stdlib', ['a.txt'])
