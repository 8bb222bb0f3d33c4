"""Chunks of a corpus: consecutive documents of so many bytes of text, in memory."""

from typing import NamedTuple

from stmoe.data.large import corpora
from stmoe.data.text import cache as caches
from stmoe.data.text import stream as streams


class Chunk(NamedTuple):
  """Texts of consecutive documents, and the place (corpora.py) behind them."""
  texts: list
  ends: tuple


def of(task, size, place=corpora.START, count=lambda read: None):
  """Gives the Chunks of the training documents of `task` from `place` on.

  A chunk ends with the document with which it has `size` bytes of text; the last may have less.

  Args:
    count: called with numbers of bytes of the files that were read.
  """
  texts, held = [], 0
  ends = place
  for text, ends in task.since(place, count):
    texts.append(text)
    held += len(text.encode())
    if held >= size:
      yield Chunk(texts, ends)
      texts, held = [], 0
  if texts:
    yield Chunk(texts, ends)


def held(texts, vocabulary, eos):
  """Returns (the tokens of texts as a `streams.Held`, their sizes, as `cache.write_texts` says)."""
  sizes = caches.Sizes(vocabulary)
  documents = [sizes.add(text, ids) for text, ids in caches.encoded(texts, vocabulary)]
  return streams.Held(documents, eos) if documents else None, sizes.facts()
