"""Exact match and token F1 of SQuAD, the best over the accepted answers; of ReCoRD, too."""

import collections
import re
import string


def score(examples, predictions):
  """Returns dict(em, f1), out of 100.

  Of the examples of one `group` (a query of ReCoRD comes once for each of its answers) the first counts.

  >>> score([dict(references=['the Eiffel Tower', 'Eiffel'], group=0)], ['Eiffel tower!'])
  {'em': 100.0, 'f1': 100.0}
  """
  return best(examples, predictions, normalize)


def best(examples, predictions, normalized):
  """Returns what `score` does, with texts compared after `normalized`."""
  answers = {}
  for example, text in zip(examples, predictions, strict=True):
    answers.setdefault(example['group'], (normalized(text), [normalized(r) for r in example['references']]))
  match = [float(text in references) for text, references in answers.values()]
  overlap = [max(token_f1(text, r) for r in references) for text, references in answers.values()]
  return dict(em=100.0 * sum(match) / len(match), f1=100.0 * sum(overlap) / len(overlap))


def normalize(text):
  """Returns `text` in lower case without punctuation and articles, single blanks between words."""
  return without_articles(''.join(c for c in text.lower() if c not in string.punctuation))


def without_articles(text):
  """Returns lower-case `text` without a, an, the and superfluous blanks."""
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def token_f1(text, reference):
  """Returns F1, 0.0 to 1.0, of the words of two normalised texts as bags; 0.0 without a common word."""
  words, reference_words = text.split(), reference.split()
  common = sum((collections.Counter(words) & collections.Counter(reference_words)).values())
  return 2.0 * common / (len(words) + len(reference_words)) if common else 0.0
