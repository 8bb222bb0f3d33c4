"""The one exception for mistakes of the user: a readable line, never a traceback."""

import difflib


class UserError(Exception):
  """A mistake in what the user gave; the command line prints it alone and exits with 2."""


def nearest(name, choices, n=3):
  """Returns '; nearest: a, b' for the entries of `choices` most like `name`, or ''."""
  found = difflib.get_close_matches(str(name), [str(c) for c in choices], n=n, cutoff=0.5)
  return f'; nearest: {", ".join(found)}' if found else ''
