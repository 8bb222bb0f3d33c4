"""Files: what is written comes back, and every damage is one line with path and reason."""

import errno
import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from stmoe import errors
from stmoe import files


def test_json_comes_back(tmp_path):
  files.write_json(tmp_path / 'a.json', {'b': [1, 2.5, None, 'é']})
  assert files.read_json(tmp_path / 'a.json') == {'b': [1, 2.5, None, 'é']}
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize('text, reason', [
    ('{"a": ', 'is not JSON'), ('[1]', 'holds a list where a dict belongs'), ('{"a": NaN}', 'holds NaN'),
    ('{"a": 1e999}', '1e999'),
    ('{"a": 1, "a": 2}', "the key 'a' twice"), ('[' * 100_000, 'nested too deeply'),
    ('{"a": ' + '[' * 100 + ']' * 100 + '}', 'nested too deeply'),
    ('{"a": "\\ud800"}', 'half a surrogate'), ('', 'is not JSON'), ('{"a": ' + '9' * 5000 + '}', 'digit')])
def test_damaged_json_is_one_line(tmp_path, text, reason):
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(errors.Damaged, match='a.json: .*' + reason):
    files.read_json(tmp_path / 'a.json')


def test_many_lists_are_not_deep():
  assert files.parse_json('[' * 100 + ']' * 100, list)
  assert len(files.parse_json('[' + '[[]],' * 200 + '0]', list)) == 201


def test_surrogate_pairs_are_characters():
  assert files.parse_json('{"a": "\\ud83d\\ude00"}') == {'a': '😀'}


def test_lines_come_back_and_a_cut_one_is_left_out(tmp_path):
  file = tmp_path / 'a.jsonl'
  assert files.read_lines(file) == []
  files.append_line(file, {'step': 1})
  files.append_line(file, {'step': 2})
  with file.open('a') as stream:
    stream.write('{"step": 3')
  assert files.read_lines(file) == [{'step': 1}, {'step': 2}]
  file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(errors.Damaged, match='a.jsonl: line 2 is not JSON'):
    files.read_lines(file)


@pytest.mark.parametrize('content, reason', [(b'\xff\xfe', 'is not UTF-8'), (None, 'No such file')])
def test_text_that_is_none(tmp_path, content, reason):
  if content:
    (tmp_path / 'a').write_bytes(content)
  with pytest.raises(errors.Damaged, match=reason):
    files.read_text(tmp_path / 'a')


def test_gzip_is_unpacked_to_a_limit(tmp_path):
  (tmp_path / 'a.gz').write_bytes(gzip.compress(b'a' * 1000))
  assert files.read_bytes(tmp_path / 'a.gz') == b'a' * 1000
  with pytest.raises(errors.Damaged, match='more than 999 bytes'):
    files.read_bytes(tmp_path / 'a.gz', limit=999)
  whole = (tmp_path / 'a.gz').read_bytes()
  for at in range(0, len(whole), 5):                 # a cut, and a flipped bit: damaged, or nothing changed
    (tmp_path / 'b.gz').write_bytes(whole[:at])
    if at:
      with pytest.raises(errors.Damaged):
        files.read_bytes(tmp_path / 'b.gz')
    (tmp_path / 'b.gz').write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
    try:
      assert files.read_bytes(tmp_path / 'b.gz') == b'a' * 1000
    except errors.Damaged:
      pass


def test_arrays_come_back_and_damage_is_noticed(tmp_path):
  file = tmp_path / 'a.npz'
  np.savez(file, a=np.arange(5), b=np.ones((2, 2), np.float32))
  assert files.read_arrays(file)['a'].tolist() == [0, 1, 2, 3, 4]
  whole = file.read_bytes()
  for at in range(0, len(whole), 7):
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1:]):
      file.write_bytes(damaged)
      try:
        files.read_arrays(file)
      except errors.Damaged:
        pass
  np.savez(file, a=np.array([{}], dtype=object))
  with pytest.raises(errors.Damaged, match='a.npz'):
    files.read_arrays(file)


def test_not_finite_is_never_written(tmp_path):
  with pytest.raises(ValueError):
    files.append_line(tmp_path / 'a', {'x': float('nan')})
  files.append_line(tmp_path / 'a', {'x': 1})
  assert json.loads((tmp_path / 'a').read_text()) == {'x': 1}


def test_a_link_is_replaced_and_not_followed(tmp_path):
  (tmp_path / 'other').write_text('precious')
  for name, write in (('a', lambda file: files.write_text(file, 'mine')),
                      ('b', lambda file: files.write_json(file, {})),
                      ('c', lambda file: files.write_bytes(file, b'mine'))):
    (tmp_path / name).symlink_to(tmp_path / 'other')
    write(tmp_path / name)
    assert not (tmp_path / name).is_symlink()
  (tmp_path / 'd').symlink_to(tmp_path / 'other')
  with pytest.raises(errors.Damaged, match='d: cannot be written: it is a link'):
    files.append_line(tmp_path / 'd', {})
  assert (tmp_path / 'other').read_text() == 'precious'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'c', 'd', 'other']


def test_what_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'a').mkdir()
  for file in (tmp_path / 'a', tmp_path / 'nowhere' / 'b', tmp_path / ('c' * 300)):
    with pytest.raises(errors.Damaged, match='cannot be written'):
      files.write_text(file, 'a')
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_half_a_surrogate_pair_is_written_as_it_is_said(tmp_path):
  files.write_text(tmp_path / 'a', 'caf\udce9')
  assert (tmp_path / 'a').read_text() == 'caf\\udce9'


def test_lines_are_checked_and_the_last_one_may_lack_its_end(tmp_path):
  def check(line):
    if 'step' not in line:
      raise ValueError('has no step')
  file, said = tmp_path / 'a.jsonl', []
  file.write_bytes(b'{"step": 1}\n{"stop": 2}\n\xff\n{"step": NaN}\n{"step": 4}')
  with pytest.raises(errors.Damaged, match='a.jsonl: line 2 has no step'):
    files.read_lines(file, check=check)
  assert files.read_lines(file, check=check, bad=said.append) == [{'step': 1}, {'step': 4}]
  assert [line.reason[:12] for line in said] == ['line 2 has n', 'line 3 is no', 'line 4 holds']
  assert files.read_lines(file, check=check, bad=said.append, nan=True)[1:] == [{'step': None}, {'step': 4}]


def test_numbers_that_are_not_finite_become_null():
  inf = float('inf')
  assert files.plain({'a': [1, inf, (2.5, float('nan'))], 'b': -inf, 'c': 'x'}) == {
      'a': [1, None, [2.5, None]], 'b': None, 'c': 'x'}


@pytest.mark.parametrize('path', ['/s3/runs', '/gs', '/a[1]', '/b\\s', '/x/gs:', os.fsdecode(b'/\xff')])
def test_folders_that_libraries_take_for_something_else_have_a_link(path):
  link = files.plain_path(path)
  assert files.PLAIN.fullmatch(str(link)) and os.readlink(link) == path
  assert files.plain_path(path) == link
  link.unlink()                          # by whoever tidies temporary folders
  assert os.readlink(files.plain_path(path)) == path


@pytest.mark.parametrize('path', ['/home/me/runs/a-1_b, 2.5+c=d@e', '/data/gs/x', '/s3x', '/\u00e9\u6f22'])
def test_folders_of_plain_names_are_themselves(path):
  assert str(files.plain_path(path)) == path


@pytest.mark.parametrize('error, full', [
    (OSError(errno.EDQUOT, 'Disk quota exceeded'), True), (OSError(errno.EFBIG, 'File too large'), True),
    (ValueError('write failed: No space left on device'), True), (OSError(errno.EACCES, 'no'), False),
    (ValueError('write failed'), False)])
def test_a_full_disk_is_told_by_its_number_or_its_text_however_it_is_wrapped(error, full):
  wrapped = RuntimeError('saving failed')
  wrapped.__cause__ = error
  assert (files.full(error) is error) == (files.full(wrapped) is error) == full


FULL = """
import resource, signal, sys
from stmoe import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
files.append_line(sys.argv[1], dict(a=1))
try:
  files.append_line(sys.argv[1], dict(b='a line for which there is no room'))
except OSError as error:
  print(files.full(error))
"""


def test_a_line_that_finds_no_room_leaves_nothing(tmp_path):
  file = tmp_path / 'lines.jsonl'
  done = subprocess.run([sys.executable, '-c', FULL, str(file)], capture_output=True, text=True, check=True,
                        cwd=pathlib.Path(__file__).parents[1])
  assert 'No space left on device' in done.stdout and file.read_text() == '{"a": 1}\n'


def test_a_place_for_a_file(tmp_path, monkeypatch):
  files.check_place('--out', tmp_path / 'new.json')
  files.check_place('--out', '/dev/null')
  for path, said in ((tmp_path, f'is a directory; nearest: {tmp_path}/FILE'),
                     (tmp_path / 'no' / 'x', f'no directory {tmp_path}/no')):
    with pytest.raises(errors.UserError, match=f'^--out {path}:? {said}$'):
      files.check_place('--out', path)
  monkeypatch.setattr(files.os, 'access', lambda path, mode: False)
  with pytest.raises(errors.UserError, match='is not writable'):
    files.check_place('--out', tmp_path / 'new.json')
