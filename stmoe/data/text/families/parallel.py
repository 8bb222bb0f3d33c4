"""Pairs of source and target, such as translations; scored by BLEU, beside the copied source."""

import platform

from stmoe.data.text import corpus
from stmoe.data.text import tasks



def stdlib_pairs(files=()):
  """Returns the task of docstring lines and `def` lines (corpus.stdlib_pairs); it takes no files."""
  tasks.no_files('stdlib_pairs', files)
  facts = dict(python=platform.python_version())
  return tasks.local('stdlib_pairs', corpus.stdlib_pairs(), facts, tasks.PAIR)


def pairs(files=()):
  """Returns the task of the user's own pairs, such as translations (corpus.pairs)."""
  return tasks.local('pairs', corpus.pairs(files), dict(files=[str(f) for f in files]), tasks.PAIR)


def wmt14_en_de(files=()):
  """Returns the task WMT'14 English to German of TensorFlow Datasets; it takes no files."""
  tasks.no_files('wmt14_en_de', files)
  return tasks.from_tfds('wmt14_en_de', 'wmt14_translate/de-en:1.0.0', ('en', 'de'))


def wmt14_en_fr(files=()):
  """Returns the task WMT'14 English to French of TensorFlow Datasets; it takes no files."""
  tasks.no_files('wmt14_en_fr', files)
  return tasks.from_tfds('wmt14_en_fr', 'wmt14_translate/fr-en:1.0.0', ('en', 'fr'))


TASKS = dict(stdlib_pairs=stdlib_pairs, pairs=pairs, wmt14_en_de=wmt14_en_de, wmt14_en_fr=wmt14_en_fr)
