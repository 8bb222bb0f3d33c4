"""Exact match and token F1 of closed-book TriviaQA: as SQuAD's, but punctuation separates words."""

import string

from stmoe.metrics import squad

PUNCTUATION = frozenset(string.punctuation + '‘’´`_')


def score(examples, predictions):
  """Returns dict(em, f1), out of 100.

  >>> score([dict(references=['Jean-Luc'], group=0)], ['jean luc'])
  {'em': 100.0, 'f1': 100.0}
  """
  return squad.best(examples, predictions, normalize)


def normalize(text):
  """Returns `text` in lower case without articles, with blanks for punctuation and some more quotes."""
  return squad.without_articles(''.join(' ' if c in PUNCTUATION else c for c in text.lower()))
