"""The exception for mistakes of the user: a readable line, never a traceback."""

import contextlib
import difflib
import os
import re
import traceback
import typing

MANY = 40                                # names are too many for a message
LONG = 4                                 # names of a difference that a message shows
# What XLA, CUDA and PyTorch say; the shared memory of a GPU's block is the matter of one kernel.
MEMORY = re.compile(r'out.of.memory|RESOURCE_EXHAUSTED(?!: *Shared memory)', re.IGNORECASE)


class UserError(Exception):
  """A mistake in what the user gave; the command line prints it alone and exits with 2."""


class Damaged(UserError):
  """A file that cannot be used as it is: `file` and `reason`, which together are the line."""

  def __init__(self, file, reason):
    super().__init__(f'{file}: {reason}')
    self.file, self.reason = str(file), reason


def of_memory(error: BaseException | str) -> bool:
  """Returns whether an error, or the text of an error, says that memory did not suffice."""
  return isinstance(error, MemoryError) or bool(MEMORY.search(str(error)))


@contextlib.contextmanager
def of_file(path: typing.Any, *imported: typing.Any) -> typing.Iterator[None]:
  """Makes a UserError of what the user's code in file `path` raises; it names the line there.

  imported: files of the user's own, too, in which a line may be the innermost.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:             # whatever the code of somebody else does
    raise UserError(placed(error, [path, *imported]) or f'{path}: {in_words(error)}') from error


def placed(error: BaseException, paths: typing.Iterable) -> str:
  """Returns 'FILE, line N: KIND: TEXT' of an error that the code in files `paths` met; '' of any other."""
  wanted = {os.path.abspath(path): path for path in paths}
  found = [(wanted[file], frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
           if (file := os.path.abspath(frame.filename)) in wanted]
  return '{}, line {}: {}'.format(*found[-1], in_words(error)) if found else ''


def in_words(error: BaseException) -> str:
  """Returns 'KIND: TEXT' of an error, in a line."""
  return f'{type(error).__name__}: {" ".join(str(error).split())}'


def nearest(name, choices, n=3):
  """Returns '; nearest: a, b' for the entries of `choices` most like `name`, or ''."""
  by_lower = {str(choice).lower(): str(choice) for choice in choices}
  matches = difflib.get_close_matches(str(name)[:200].lower(), by_lower, n=n, cutoff=0.5)
  return f'; nearest: {", ".join(by_lower[match] for match in matches)}' if matches else ''


def closest(number, choices):
  """Returns the texts of the next of the numbers `choices` at or below and above `number`, the closer first.

  >>> closest(7, [1, 2, 4, 8]), closest(6, [4, 8]), closest(9, [1, 2, 4, 8])
  ('8 or 4', '4 or 8', '8')
  """
  ordered = sorted(choices)
  below, above = ([n for n in ordered if (n > number) == over] for over in (False, True))
  return ' or '.join(map(str, sorted(below[-1:] + above[:1], key=lambda n: abs(n - number))))


def around(number, choices):
  """Returns the texts of the three of the numbers `choices` that are closest to `number`, in rising order.

  >>> around(7, [1, 2, 4, 8]), around(3, [1, 2])
  ('2, 4, 8', '1, 2')
  """
  by_distance = sorted(sorted(choices), key=lambda n: abs(n - number))
  return ', '.join(map(str, sorted(by_distance[:3])))


def divisors(number):
  """Returns the whole numbers that divide `number`."""
  return [n for n in range(1, number + 1) if number % n == 0]


def difference(there, here):
  """Returns in a few words how two lists of texts differ: what only one of them has.

  >>> difference(['dense', 'switch'], ['dense', 'hash', 'base'])
  'only there: switch; only here: hash, base'
  >>> difference(['dense', 'switch'], ['switch', 'dense'])
  'in another order'
  """
  def only(place, mine, other):
    names = [name for name in mine if name not in other]
    more = f' and {len(names) - LONG} more' if len(names) > LONG else ''
    return f'only {place}: {", ".join(names[:LONG])}{more}' if names else ''
  parts = only('there', there, here), only('here', here, there)
  return '; '.join(filter(None, parts)) or 'in another order'
