"""Text that is on the machine: the Python standard library, and files of the user.

A corpus is `{split: [(name, text)]}` with the splits 'train' and 'validation'; a corpus of pairs has
source and target of each pair in turn. Everything here is plain Python and
deterministic; nothing is normalised beyond what a docstring says.
"""

import hashlib
import os
import pathlib
import re
import sysconfig

from stmoe import errors
from stmoe import files
from stmoe.data import given
from stmoe.data.text import documents

_SKIP = frozenset((
    '__pycache__ site-packages dist-packages test tests idlelib tkinter turtledemo lib2to3 distutils '
    'ensurepip encodings lib-dynload msilib __phello__ pyrepl _pyrepl').split())
HELD_OUT = 20  # one part in twenty goes to validation
_FUNCTION = re.compile(r'^ *(def \w+\([^()\n]*\)):\n +[rR]?"""([^\n"]+)', re.MULTILINE)


def stdlib(root=None):
  """Returns the Python standard library of this interpreter as documents, one per file.

  Kept are UTF-8 `*.py` files of at least 200 bytes outside test suites, character tables and
  applications; a byte-order mark is dropped, line ends become LF and the last line gets one. Files
  are sorted by the bytes of their relative path. A file whose path hashes to 0 modulo 20 is for
  validation, so it stays there in every Python version.
  """
  root = pathlib.Path(root or sysconfig.get_paths()['stdlib'])
  corpus = {'train': [], 'validation': []}
  for name in sorted(_python_files(root), key=str.encode):
    text = _source_text((root / name).read_bytes())
    if text is not None:
      digest = hashlib.sha256(name.encode()).digest()
      held_out = int.from_bytes(digest[:4], 'big') % HELD_OUT == 0
      corpus['validation' if held_out else 'train'].append((name, text))
  if not corpus['train'] or not corpus['validation']:
    raise errors.UserError(f'no Python sources under {root} (a frozen or zipped Python?); use task text with '
                           '--config.data.files=FILE')
  return corpus


def text(files, field='', apart=''):
  """Returns the documents of the user's `files` (see documents.py), in order.

  Fewer than 20 documents: every document is divided. The last twentieth of its bytes, from the first line end
  on, is a document for validation and the rest a document for training. A document without a line end there
  is cut between two characters. 20 documents and more stay whole: those with the smallest sha256 of their
  bytes, one in twenty, are for validation. Splits train and validation that `datasets` saved stay as they
  are. Nothing is normalised. All is held in memory.

  Args:
    files:        files, folders and patterns.
    field, apart: see `documents.read`.
  """
  contents, held = ([(str(name), content) for name in names
                     for content in documents.read(name, field, apart)]
                    for names in documents.divided(files))
  if not contents:
    raise errors.UserError(f'data.files={", ".join(map(str, files))}: there is no text in them')
  corpus = {'train': [], 'validation': [(name, content.decode()) for name, content in held]}
  if held:
    corpus['train'] = [(name, content.decode()) for name, content in contents]
  elif len(contents) < HELD_OUT:
    for name, content in contents:
      at = _cut(content)
      corpus['train'].append((name, content[:at].decode()))
      corpus['validation'].append((name, content[at:].decode()))
  else:
    ranked = sorted(contents, key=lambda c: hashlib.sha256(c[1]).digest())
    held_out = set(map(id, ranked[:len(ranked) // HELD_OUT]))
    for item in contents:
      corpus['validation' if id(item) in held_out else 'train'].append((item[0], item[1].decode()))
  corpus = {split: [d for d in parts if d[1]] for split, parts in corpus.items()}
  if not corpus['train'] or not corpus['validation']:
    raise errors.UserError(f'data.files={", ".join(map(str, files))}: too little text to hold some out')
  return corpus


def stdlib_pairs(root=None):
  """Returns pairs from the corpus `stdlib`: the first line of a function's docstring, and its `def` line.

  The functions have parameters that stand on one line without parentheses. The pairs are a small task
  for trying encoder-decoders without any download.
  """
  splits = stdlib(root).items()
  return {split: [(name, part) for name, text in documents for signature, line in _FUNCTION.findall(text)
                  for part in (line.strip(), signature)] for split, documents in splits}


def pairs(files):
  """Returns the pairs in `files` (files ending in .gz decompressed), in order.

  Parallel text: source and target file, a sentence a line; or four files, training source and
  target, then validation source and target. Or jsonl, objects with `inputs` and `targets`: one file,
  or one for training and one for validation. Without validation files the last twentieth of the
  pairs is held out. Pairs of which a side is empty are left out.
  """
  jsonl = [str(name).removesuffix('.gz').endswith('.jsonl') for name in files]
  count = len(files)
  if not (count in (1, 2) and all(jsonl) or count in (2, 4) and not any(jsonl)):
    raise errors.UserError(f'data.files={", ".join(map(str, files))}: task pairs needs SOURCE,TARGET, one '
                           'sentence a line (and maybe SOURCE,TARGET of validation after them), or a .jsonl '
                           'of inputs and targets (and maybe one of validation)')
  if all(jsonl):
    parts = [_json_pairs(name) for name in files]
  else:
    parts = [_line_pairs(*files[at:at + 2]) for at in range(0, count, 2)]
  parts = [[pair for pair in part if all(text.strip() for text in pair)] for part in parts]
  if len(parts) == 1:
    at = len(parts[0]) - max(len(parts[0]) // HELD_OUT, 1)
    parts = [parts[0][:at], parts[0][at:]]
  if not all(parts):
    raise errors.UserError(f'data.files={", ".join(map(str, files))}: too few pairs to train and validate on')
  return {split: [('', text) for pair in part for text in pair]
          for split, part in zip(('train', 'validation'), parts)}


def digest(corpus):
  """Returns a hex digest of the names and texts of a corpus, by split."""
  whole = hashlib.sha256()
  for split, contents in sorted(corpus.items()):
    for name, content in contents:
      content = content.encode()
      whole.update(f'{split} {len(name.encode())} {name} {len(content)} '.encode() + content)
  return whole.hexdigest()


def _python_files(root):
  for folder, folders, names in os.walk(root):
    folders[:] = [f for f in folders if f not in _SKIP and not f.startswith('config-')]
    for name in names:
      if name.endswith('.py') and not name.startswith('_sysconfigdata') and name != 'sitecustomize.py':
        yield (pathlib.Path(folder) / name).relative_to(root).as_posix()


def _source_text(content):
  try:
    content = content.decode().removeprefix('\ufeff').replace('\r\n', '\n').replace('\r', '\n')
  except UnicodeDecodeError:
    return None
  if len(content.encode()) < 200:
    return None
  return content if content.endswith('\n') else content + '\n'


def _lines(path):
  return given.text(path).replace('\r\n', '\n').removesuffix('\n').split('\n')


def _line_pairs(source, target):
  sides = _lines(source), _lines(target)
  if len(sides[0]) != len(sides[1]):
    raise errors.UserError(f'data.files: {source} has {len(sides[0])} lines and {target} has '
                           f'{len(sides[1])}; line i of one must translate line i of the other')
  return list(zip(*sides))


def _json_pairs(path):
  pairs = []
  for number, line in given.lines(path, 'data.files'):
    try:
      fields = files.parse_json(line)
      pairs.append((fields['inputs'], fields['targets']))
      if not all(isinstance(text, str) for text in pairs[-1]):
        raise ValueError('they are no texts')
    except (ValueError, KeyError) as error:
      raise errors.UserError(f'data.files: {path}, line {number} is no object with the texts inputs and '
                             f'targets ({error})') from error
  return pairs


def _cut(content):
  at = len(content) - len(content) // HELD_OUT
  line_end = content.find(b'\n', at - 1)
  if 0 <= line_end < len(content) - 1:
    return line_end + 1
  while 0 < at < len(content) and content[at] & 0xC0 == 0x80:  # inside a character
    at -= 1
  return at
