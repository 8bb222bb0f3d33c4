"""Tars of samples, as WebDataset has them: members whose names differ behind their first dot are a sample.

A sample is a document: the text of its member .txt, or the field of its member .json that holds its text.
Members are read one after the other, and nothing is unpacked onto the disk.
"""

import tarfile

from stmoe import errors
from stmoe import files
from stmoe.data import given
from stmoe.data.formats import columnar

TAR = '.tar'
TEXT, JSON = 'txt', 'json'


def texts(path, column='', count=lambda read: None):
  """Gives the texts, bytes, of the samples of the tar `path`, packed or not, in their order.

  A sample without such a member has no text, and is left out. A tar without any text is a UserError.

  Args:
    column: the field of the member .json; '' = the member .txt or, where there is none, the field `text`.
    count:  called with numbers of bytes of the file that were read.
  """
  found, endings = False, set()
  for key, members in _samples(path, column, count):
    endings |= set(members)
    text = _text(members, column, f'{path}, sample {key!r}')
    if text is not None:
      found = True
      yield text
  if not found:
    wanted = f'.{JSON}' if column else f'.{TEXT} and no .{JSON}'
    raise errors.UserError(f'data.files: {str(path)!r} has no member {wanted} (its members: '
                           f'{", ".join(sorted(f".{e}" for e in endings)[:8]) or "none"})')


def _text(members, column, where):
  if TEXT in members and not column:
    return given.utf8(members[TEXT], where)
  if JSON not in members:
    return None
  try:
    row = files.parse_json(given.utf8(members[JSON], where).decode())
  except ValueError as error:
    raise errors.UserError(f'data.files: {where} {error}') from error
  return columnar.of_object(row, column or columnar.FIELD, where).encode()


def _samples(path, column, count):
  """Gives (key, dict ending -> bytes, of endings without text None) of consecutive members of one key."""
  wanted = {JSON} if column else {TEXT, JSON}
  before, members = None, {}
  for key, ending, content in _members(path, wanted, count):
    if key != before and members:
      yield before, members
      members = {}
    before, members[ending] = key, content
  if members:
    yield before, members


def _members(path, wanted, count):
  """Gives (key, ending, bytes) of the files in a tar; of endings that are not `wanted` None for bytes."""
  with given.opened(path, 'data.files', 'tar', count) as file:
    try:
      with tarfile.open(fileobj=file, mode='r|') as tar:
        for member in tar:
          folder, slash, name = member.name.rpartition('/')
          stem, _, ending = name.partition('.')
          about = not stem or stem.startswith('__')                  # hidden, or about the tar
          if member.isreg() and not member.issparse() and not about:
            content = tar.extractfile(member).read() if ending.lower() in wanted else None
            yield folder + slash + stem, ending.lower(), content
          tar.members = []               # it would keep them all
    except (tarfile.TarError, *files.BROKEN) as error:
      raise errors.UserError(f'data.files: cannot read {str(path)!r}: {files.reason(error)}') from error
