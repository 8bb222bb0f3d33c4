"""Documents in files of every format that is read: the same texts, the same tokens; a mistake is a line."""

import gzip
import io
import json
import pathlib
import shutil
import sys
import tarfile
import time

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe.data import given
from stmoe.data.text import documents
from stmoe.data.text import tasks
from stmoe.data.text import vocab

REAL = pathlib.Path(__file__).parents[2] / 'data' / 'formats'       # see make.py there
SAVED = REAL / 'saved'
TEXTS = [f'Document {i}: ' + ' '.join(f'word{i * j % 7}é' for j in range(9)) for i in range(40)]


def zstandard(data):
  return pyarrow.Codec('zstd').compress(data, asbytes=True)


def rows(name='text', **more):
  return ''.join(json.dumps({name: text} | more) + '\n' for text in TEXTS).encode()


def as_files(folder):
  (folder / 'texts' / 'inner').mkdir(parents=True)
  (folder / 'texts' / '.hidden').write_text('no document')
  for i, text in enumerate(TEXTS):
    (folder / 'texts' / ('inner' if i >= 20 else '') / f'{i:03}.txt').write_text(text)


def as_parquet(folder):
  table = pyarrow.table({'number': list(range(len(TEXTS) + 1)), 'text': [*TEXTS, None]})
  parquet.write_table(table, folder / 'a.parquet', row_group_size=7)


def tar(path, members, mode='w'):
  """Writes a tar of (name, bytes); returns its bytes."""
  with tarfile.open(path, mode) as made:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      made.addfile(info, io.BytesIO(content))
  return path.read_bytes()


def as_tar(folder, path='a.tar', mode='w'):
  """The first half as members .txt, beside others; the second half as members .json."""
  members = [('__about__.txt', b'no document'), ('only.jpg', b'x')]
  for i, text in enumerate(TEXTS):
    fields = json.dumps(dict(text=text if i >= 20 else 'no document', other='')).encode()
    members += [(f'part/{i:03}.json', fields), (f'part/{i:03}.seg.png', b'x')]
    members += [(f'part/{i:03}.txt', text.encode())] * (i < 20)
  tar(folder / path, members, mode)


def as_arrow(folder, new=pyarrow.ipc.new_file):
  table = pyarrow.table({'text': pyarrow.array([*TEXTS, None], pyarrow.large_string())})
  with new(str(folder / 'a.arrow'), table.schema) as writer:
    writer.write_table(table, 7)


def saved_as(folder, **state):
  """A folder as `datasets` saves it, with other fields in its state."""
  shutil.copytree(SAVED, folder / 'saved')
  found = json.loads((SAVED / 'state.json').read_text())
  (folder / 'saved' / 'state.json').write_text(json.dumps(found | state))


def splits(folder, **which):
  (folder / 'splits').mkdir()
  (folder / 'splits' / 'dataset_dict.json').write_text(json.dumps(dict(splits=list(which))))
  for name, path in which.items():
    shutil.copytree(path, folder / 'splits' / name)


# What is written, the files that data.files names, and how they are read.
FORMATS = {
    'jsonl': (lambda f: (f / 'a.jsonl').write_bytes(rows(number=3)), 'a.jsonl', {}),
    'another field': (lambda f: (f / 'a.ndjson').write_bytes(rows('body')), 'a.ndjson', dict(field='body')),
    'jsonl.gz': (lambda f: (f / 'a.jsonl.gz').write_bytes(gzip.compress(rows())), 'a.jsonl.gz', {}),
    'jsonl.zst': (lambda f: (f / 'a.jsonl.zst').write_bytes(zstandard(rows())), 'a.jsonl.zst', {}),
    'two frames': (lambda f: (f / 'a.jsonl.zst').write_bytes(
        zstandard(rows()[:600]) + zstandard(rows()[600:])), 'a.jsonl.zst', {}),
    'parquet': (as_parquet, 'a.parquet', {}),
    'lines': (lambda f: (f / 'a.txt').write_text('\n'.join(TEXTS) + '\n\n'), 'a.txt', dict(documents='line')),
    'lines.zst': (lambda f: (f / 'a.txt.zst').write_bytes(zstandard('\r\n'.join(TEXTS).encode())),
                  'a.txt.zst', dict(documents='line')),
    'paragraphs': (lambda f: (f / 'a.txt').write_text('\n\n\n'.join(TEXTS) + '\n'), 'a.txt',
                   dict(documents='paragraph')),
    'a separator': (lambda f: (f / 'a.txt').write_text('<|end|>\n'.join(TEXTS)), 'a.txt',
                    dict(documents='<|end|>\\n')),
    'a tar': (as_tar, 'a.tar', {}),
    'tar.gz': (lambda f: as_tar(f, 'a.tar.gz', 'w:gz'), 'a.tar.gz', {}),
    'tgz': (lambda f: as_tar(f, 'a.tgz', 'w:gz'), 'a.tgz', {}),
    'a field in a tar': (lambda f: tar(f / 'a.tar', [
        (f'{i}.json', json.dumps(dict(body=text)).encode()) for i, text in enumerate(TEXTS)]), 'a.tar',
                         dict(field='body')),
    'Arrow': (as_arrow, 'a.arrow', {}),
    'a stream of Arrow': (lambda f: as_arrow(f, pyarrow.ipc.new_stream), 'a.arrow', {}),
    'written by webdataset': (lambda f: (f / 'a.tar').write_bytes(gzip.decompress(
        (REAL / 'webdataset.tar.gz').read_bytes())), 'a.tar', {}),
    'written by webdataset, .gz': (lambda f: None, REAL / 'webdataset.tar.gz', {}),
    'saved by datasets': (lambda f: None, SAVED, {}),
    'one split saved by datasets': (lambda f: splits(f, train=SAVED), 'splits', {}),
    'folders saved by datasets': (lambda f: splits(f, train=SAVED), 'splits/t*/*', {}),
    'folder': (as_files, 'texts', {}),
    'pattern': (as_files, 'texts/**/*.t?t', {}),
}


def tokens(folder, path, how):
  """dict split -> the ids of each document."""
  task = tasks.get('text', [str(folder / path)], **how)
  words = vocab.Bytes()
  encoded = lambda split: words.encode(list(task.documents(split)))
  return {split: [ids.tolist() for ids in encoded(split)] for split in tasks.SPLITS}


@pytest.mark.parametrize('name', FORMATS)
def test_the_same_documents_are_the_same_tokens_in_every_format(name, tmp_path):
  write, files, how = FORMATS[name]
  write(tmp_path)
  got = tokens(tmp_path, files, how)
  (tmp_path / 'plain.jsonl').write_bytes(rows())
  want = tokens(tmp_path, 'plain.jsonl', {})
  assert len(want['validation']) == 2 and len(want['train']) == 38
  assert got == want


def test_a_file_is_a_document_where_nothing_is_said(tmp_path):
  (tmp_path / 'a.txt').write_text('\n\n'.join(TEXTS))
  assert documents.read(tmp_path / 'a.txt') == [(tmp_path / 'a.txt').read_bytes()]


def test_files_are_sorted_and_those_named_keep_their_order(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  as_files(tmp_path)
  (tmp_path / 'b.txt').write_text('x')
  found = documents.expanded(['b.txt', 'texts'])
  assert found[0] == 'b.txt' and found[1:] == sorted(found[1:]) and len(found) == 41
  assert documents.expanded(['texts/../texts/0*1.txt']) == [
      'texts/../texts/001.txt', 'texts/../texts/011.txt']
  (tmp_path / 'a[1].txt').write_text('x')
  assert documents.expanded(['a[1].txt']) == ['a[1].txt']            # a file that is called so


@pytest.mark.parametrize('write, files, how, says', [
    (lambda f: (f / 'a.jsonl').write_text('{"text": "a"}\n{"txt": "b"}\n'), 'a.jsonl', {},
     "a.jsonl, line 2 has no text 'text' (its texts: txt); nearest: --config.data.field=txt"),
    (lambda f: (f / 'a.jsonl').write_text('{"inputs": "a", "targets": "b"}\n'), 'a.jsonl', {},
     'pairs are read by data.task=pairs or jsonl'),
    (lambda f: (f / 'a.jsonl').write_text('{"text": 3}\n'), 'a.jsonl', {}, "line 1 has no text 'text'"),
    (lambda f: (f / 'a.jsonl').write_text('[3]\n'), 'a.jsonl', {}, 'line 1 '),
    (lambda f: (f / 'a.jsonl').write_text('{"text": ""}\n'), 'a.jsonl', {}, 'there is no text in them'),
    (as_parquet, 'a.parquet', dict(field='number'),
     "no column of texts 'number' (there are: text); nearest: --config.data.field=text"),
    (as_parquet, 'a.parquet', dict(field='texts'), 'nearest: --config.data.field=text'),
    (as_parquet, 'b.parquet', {}, "no file '"), (as_files, 'texts/*.md', {}, 'no file in '),
    (as_files, 'texts', dict(field='body'), "data.field='body', but "),
    (lambda f: (f / 'empty').mkdir(), 'empty', {}, 'no file in '),
    (lambda f: [as_files(f), (f / 'texts' / 'a.tar').write_bytes(b'x')], 'texts', {},
     "cannot read '"), (as_tar, 'a.tar', dict(field='txt'), "has no text 'txt' (its texts: text, other); "
                        'nearest: --config.data.field=text'),
    (lambda f: tar(f / 'a.tar', [('1.jpg', b'x'), ('1.cls', b'3')]), 'a.tar', {},
     "a.tar' has no member .txt and no .json (its members: .cls, .jpg)"),
    (lambda f: tar(f / 'a.tar', [('1.json', b'{"text": 3}')]), 'a.tar', {}, "a.tar, sample '1' has no text"),
    (lambda f: tar(f / 'a.tar', [('1.txt', b'\xff')]), 'a.tar', {}, 'is not UTF-8'),
    (lambda f: (f / 'a.tar').write_bytes(tar(f / 'b.tar', [('1.txt', b'x' * 2000)])[:1000]), 'a.tar', {},
     'cannot read '),
    (lambda f: (f / 'a.arrow').write_bytes(b'x'), 'a.arrow', {}, "cannot read '"),
    (lambda f: (f / 'a.tar.xz').write_bytes(b'x'), 'a.tar.xz', {}, "a.tar.xz' is xz"),
    (lambda f: None, SAVED, dict(field='txt'),
     "has no column of texts 'txt' (there are: text, other); nearest: --config.data.field=text"),
    (lambda f: None, SAVED, dict(field='number'), 'has no column of texts'),
    (lambda f: saved_as(f, _indices_data_files=[dict(filename='a.arrow')]), 'saved', {}, 'save it again'),
    (lambda f: saved_as(f, _data_files=[dict(filename='../x.arrow')]), 'saved', {},
     'does not list its files'),
    (lambda f: splits(f, test=SAVED), 'splits', {}, "has no split train (there are: test); nearest: ")])
def test_what_cannot_be_read_is_a_line(write, files, how, says, tmp_path):
  write(tmp_path)
  with pytest.raises(errors.UserError) as error:
    tasks.get('text', [str(tmp_path / files)], **how)
  assert says in str(error.value) and '\n' not in str(error.value)


def test_a_damaged_or_endless_zstandard_is_a_line(tmp_path, monkeypatch):
  packed = zstandard(('\n'.join(TEXTS) * 9).encode())
  (tmp_path / 'a.txt.zst').write_bytes(packed[:40] + b'\xff' * 20 + packed[60:])
  with pytest.raises(errors.UserError, match='cannot read .*a.txt.zst.*Zstandard'):
    documents.read(tmp_path / 'a.txt.zst')
  monkeypatch.setattr(given, 'ROOM', 1 << 12)
  monkeypatch.setattr(given, 'RATIO', 2)
  (tmp_path / 'a.txt.zst').write_bytes(zstandard(b'a' * (1 << 20)))
  with pytest.raises(errors.UserError, match='holds more than'):
    documents.read(tmp_path / 'a.txt.zst')


def test_what_needs_pyarrow_says_so(tmp_path, monkeypatch):
  as_parquet(tmp_path)
  (tmp_path / 'a.txt.zst').write_bytes(zstandard(b'x'))
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  for name in ('a.parquet', 'a.txt.zst'):
    with pytest.raises(errors.UserError, match='pip install pyarrow'):
      documents.read(tmp_path / name)


def test_a_parquet_that_unpacks_to_far_more_is_a_line(tmp_path, monkeypatch):
  parquet.write_table(pyarrow.table({'text': ['a' * 5000] * 400}), tmp_path / 'a.parquet', compression='zstd')
  assert len(documents.read(tmp_path / 'a.parquet')) == 400
  monkeypatch.setattr(given, 'ROOM', 1 << 12)
  monkeypatch.setattr(given, 'RATIO', 2)
  with pytest.raises(errors.UserError, match='holds more than'):
    documents.read(tmp_path / 'a.parquet')


def test_another_task_has_a_format_of_its_own():
  with pytest.raises(errors.UserError, match='data.documents=.line.* task stdlib has a format of its own'):
    tasks.get('stdlib', documents='line')


def test_a_configuration_says_how_files_are_read(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(rows('body'))
  data = dict(objective='lm', task='text', files=(str(tmp_path / 'a.jsonl'),), field='body', vocab='bytes',
              extra_ids=0, length=16, join=True, pack=True, mixture=(), eval_split='validation',
              cache_dir=str(tmp_path / 'cache'))
  opened = lookup.source(data).open({})
  assert opened.info()['num_documents'] == 2
  first = opened.rows('text', 'train', 0, True)
  assert len(first) and isinstance(first.segments, np.ndarray)
  assert [file['path'] for file in opened.files] == [str(tmp_path / 'a.jsonl')]


def test_splits_that_were_saved_stay_as_they_are(tmp_path):
  splits(tmp_path, train=SAVED, validation=SAVED, test=SAVED)
  got = tokens(tmp_path, 'splits', {})
  assert got['train'] == got['validation'] and len(got['train']) == 40
  assert [len(files) for files in documents.divided([tmp_path / 'splits'])] == [3, 3]


def test_links_in_a_folder_are_followed_once(tmp_path):
  corpus, disk = tmp_path / 'corpus', tmp_path / 'disk'
  for folder in (corpus / 'own', disk, corpus / '.hidden'):
    folder.mkdir(parents=True)
    (folder / 'a.txt').write_text('text')
  (corpus / 'far').symlink_to(disk)
  (corpus / 'again').symlink_to(corpus)
  (corpus / 'own' / 'b.txt').symlink_to(disk / 'a.txt')
  (corpus / 'lost').symlink_to(tmp_path / 'nowhere')
  found = documents.expanded([corpus])
  assert found == [str(corpus / name) for name in ('far/a.txt', 'own/a.txt', 'own/b.txt')]


@pytest.mark.parametrize('size', [1, 2, 3, 64])
def test_parts_are_the_same_in_chunks_of_any_size(size, tmp_path, monkeypatch):
  content = 'a\r\n\r\nb\r\r\n\n\n\nc\n \n\r\n\r\nd<|end|>é\r'
  (tmp_path / 'a.txt').write_bytes(content.encode())
  monkeypatch.setattr(files, 'CHUNK', size)
  paragraphs = [part.strip('\n') for part in content.replace('\r\n', '\n').split('\n\n')]
  for apart, want in [('paragraph', paragraphs), ('<|end|>', content.split('<|end|>'))]:
    got = [text.decode() for text in documents.read(tmp_path / 'a.txt', apart=apart)]
    assert got == list(filter(None, want))


def test_a_long_document_is_searched_once(tmp_path, monkeypatch):
  (tmp_path / 'a.txt').write_text('a' * (1 << 20))
  monkeypatch.setattr(files, 'CHUNK', 16)
  began = time.process_time()
  assert len(documents.read(tmp_path / 'a.txt', apart='<|end|>')[0]) == 1 << 20
  assert time.process_time() - began < 2                             # again with each chunk takes many


def test_a_misspelt_word_is_no_separator(tmp_path):
  (tmp_path / 'a.txt').write_text('one\ntwo\n')
  with pytest.raises(errors.UserError, match="data.documents='lines' .*; nearest: line"):
    documents.read(tmp_path / 'a.txt', apart='lines')
  assert documents.read(tmp_path / 'a.txt', apart='---') == [b'one\ntwo\n']
