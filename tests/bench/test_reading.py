"""The speed of reading, tokenizing and writing: of the same documents, from every format."""

import json

import pytest

from stmoe.bench import reading
from stmoe.cli import main
from stmoe.data.text import documents

TEXTS = [f'document {i} ' + 'é' * i + '\n' for i in range(200)]


def test_every_format_holds_the_same_documents(tmp_path):
  paths = reading.written(TEXTS, tmp_path)
  assert len(paths) == 7
  for name, path in paths.items():
    got = documents.read(path)
    assert b''.join(got).decode() == ''.join(TEXTS), name
    assert len(got) == (1 if name == 'text' else 200), name


def test_the_command(tmp_path, capsys, monkeypatch):
  seconds = iter([0.0, 0.5, 1.0, 3.0] + [3.0, 4.0, 4.0, 4.25] + [5.0, 6.0] * 2)
  monkeypatch.setattr(reading.time, 'process_time', lambda: next(seconds))
  (tmp_path / 'a.txt').write_text(''.join(TEXTS))
  arguments = ['bench', '--data', str(tmp_path / 'a.txt'), '--documents', 'line', '--rounds', '2']
  assert main.main([*arguments, '--json', str(tmp_path / 'out.json')]) == 0
  rows = json.loads((tmp_path / 'out.json').read_text())
  assert [row['work'] for row in rows] == ['reading', 'tokenizing', 'writing']
  size = rows[0]['megabytes']
  assert 0.9 < size * 1e6 / len(''.join(TEXTS).encode()) < 1         # without what is held out
  assert [row['rate'] for row in rows] == pytest.approx([size / 0.5, size / 0.25, size / 1.0])
  assert capsys.readouterr().out.count('\n') == 4
  assert main.main(['bench', '--data', str(tmp_path / 'b.txt')]) == 2
  assert capsys.readouterr().out == ''


def test_what_is_taken_of_a_large_corpus(monkeypatch):
  monkeypatch.setattr(reading, 'MOST', 100)
  *first, last = reading._first(TEXTS)
  size = len(''.join(first).encode())
  assert size < 100 <= size + len(last.encode())
