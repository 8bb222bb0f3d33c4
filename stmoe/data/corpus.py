"""Text that is on the machine: the Python standard library, and files of the user.

A corpus is `{split: [(name, text)]}` with the splits 'train' and 'validation'. Everything here is
plain Python and deterministic; nothing is normalised beyond what a docstring says.
"""

import gzip
import hashlib
import os
import pathlib
import sysconfig

from stmoe import errors

_SKIP = frozenset((
    '__pycache__ site-packages dist-packages test tests idlelib tkinter turtledemo lib2to3 distutils '
    'ensurepip encodings lib-dynload msilib __phello__ pyrepl _pyrepl').split())
HELD_OUT = 20  # one part in twenty goes to validation


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


def text(files):
  """Returns the UTF-8 `files` (those ending in .gz decompressed) as documents, one per file, in order.

  Fewer than 20 files: of each, the last twentieth of its bytes, from the first line end on, is a
  document for validation and the rest one for training (a file without a line end there is cut
  between two characters). 20 files and more stay whole: those with the smallest sha256 of their
  bytes, one in twenty, are for validation. Nothing is normalised. All is held in memory.
  """
  if not files:
    raise errors.UserError('data.files is empty: task text needs --config.data.files=FILE (comma separated)')
  contents = [(str(name), _read(name)) for name in files]
  if not any(content for _, content in contents):
    raise errors.UserError(f'data.files={", ".join(map(str, files))}: there is no text in them')
  contents = [(name, content) for name, content in contents if content]
  corpus = {'train': [], 'validation': []}
  if len(contents) < HELD_OUT:
    for name, content in contents:
      at = _cut(content)
      corpus['train'].append((name, content[:at].decode()))
      corpus['validation'].append((name, content[at:].decode()))
  else:
    ranked = sorted(contents, key=lambda c: hashlib.sha256(c[1]).digest())
    held_out = set(map(id, ranked[:len(ranked) // HELD_OUT]))
    for item in contents:
      corpus['validation' if id(item) in held_out else 'train'].append((item[0], item[1].decode()))
  corpus = {split: [d for d in documents if d[1]] for split, documents in corpus.items()}
  if not corpus['train'] or not corpus['validation']:
    raise errors.UserError(f'data.files={", ".join(map(str, files))}: too little text to hold some out')
  return corpus


def digest(corpus):
  """Returns a hex digest of the names and texts of a corpus, by split."""
  whole = hashlib.sha256()
  for split, documents in sorted(corpus.items()):
    for name, content in documents:
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


def _read(path):
  try:
    content = pathlib.Path(path).read_bytes()
    content = gzip.decompress(content) if str(path).endswith('.gz') else content
    content.decode()
  except FileNotFoundError as e:
    raise errors.UserError(f'data.files: no file {str(path)!r}{_near(path)}') from e
  except UnicodeDecodeError as e:
    raise errors.UserError(f'data.files: {str(path)!r} is not UTF-8 (byte {e.start})') from e
  except (OSError, EOFError) as e:
    reason = getattr(e, 'strerror', None) or e
    raise errors.UserError(f'data.files: cannot read {str(path)!r}: {reason}') from e
  return content


def _near(path):
  folder = pathlib.Path(path).parent
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return errors.nearest(pathlib.Path(path).name, names)


def _cut(content):
  at = len(content) - len(content) // HELD_OUT
  line_end = content.find(b'\n', at - 1)
  if 0 <= line_end < len(content) - 1:
    return line_end + 1
  while 0 < at < len(content) and content[at] & 0xC0 == 0x80:  # inside a character
    at -= 1
  return at
