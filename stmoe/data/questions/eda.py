"""Easy data augmentation of contexts (EDA, arXiv:1901.11196) that keeps the answer where it can be found.

Four operations on the words of a text: `replace` some by synonyms, `insert` synonyms of some at random
places, `swap` pairs, `delete` some. The words that the answer touches are one piece, which is never changed,
though it moves. Everything drawn depends on the seed, the domain, the question's number and the copy's only.

Fields of `cfg.data.eda`:
  files: names of training files (without .json) whose questions get copies, as a rule those of the domains
    with few examples; empty = none.
  copies: of each question, beside it; copy c has operation c modulo 4.
  share: of the words that an operation changes (alpha in the paper), at least one.
  synonyms: a file with lines `word: synonym, synonym`; '' = words used alike in the training contexts.
"""

import collections
import dataclasses
import re

import numpy as np

from stmoe import errors
from stmoe.data import given

_WORD = re.compile(r'(\s*)(\S+)')
COMMON, FEWEST, SIMILAR = 2000, 3, 3     # words of the trained table, uses of each, synonyms of each


@dataclasses.dataclass
class Text:
  """Words with the blanks before each, of which the one numbered `kept` holds the answer."""
  blanks: list
  words: list
  kept: int

  def others(self):
    """Returns the numbers of the words that may change."""
    return [i for i in range(len(self.words)) if i != self.kept]


def replace(text, rng, number, synonyms):
  """Replaces up to `number` words that have synonyms, each by one of them."""
  replaceable = [i for i in text.others() if _core(text.words[i])[1].lower() in synonyms]
  for i in _some(rng, replaceable, number):
    before, word, after = _core(text.words[i])
    text.words[i] = f'{before}{rng.choice(synonyms[word.lower()])}{after}'


def insert(text, rng, number, synonyms):
  """Puts a synonym of a random word at a random place, `number` times."""
  words = [_core(text.words[i])[1].lower() for i in text.others()]
  for word in _some(rng, [word for word in words if word in synonyms], number):
    at = int(rng.integers(1, len(text.words) + 1))                   # the first word keeps its blanks
    text.words.insert(at, str(rng.choice(synonyms[word])))
    text.blanks.insert(at, ' ')
    text.kept += at <= text.kept


def swap(text, rng, number, synonyms):
  """Swaps two random words, `number` times."""
  del synonyms
  movable = text.others()
  for _ in range(number if len(movable) > 1 else 0):
    i, j = rng.choice(movable, 2, replace=False)
    text.words[i], text.words[j] = text.words[j], text.words[i]


def delete(text, rng, number, synonyms):
  """Deletes `number` random words."""
  del synonyms
  for i in sorted(_some(rng, text.others(), number), reverse=True):
    del text.words[i], text.blanks[i]
    text.kept -= i < text.kept


OPERATIONS = (replace, insert, swap, delete)


def _core(word):
  """(punctuation before, word, punctuation after) of a word between blanks."""
  return re.fullmatch(r'(\W*)(.*?)(\W*)', word, re.DOTALL).groups()


def _some(rng, items, number):
  return [items[i] for i in rng.permutation(len(items))[:number]]


def change(context, start, length, rng, operation, share, synonyms):
  """Returns (context, start) after an operation of OPERATIONS; context[start:start + length] is kept."""
  text, inside = _cut(context, start, start + length)
  operation(text, rng, max(1, int(share * len(text.words))), synonyms)
  before = sum(map(len, text.blanks[:text.kept + 1])) + sum(map(len, text.words[:text.kept]))
  return ''.join(b + w for b, w in zip(text.blanks, text.words)), before + inside


def _cut(context, start, end):
  """(Text, where in its kept piece the answer starts) of a context with an answer from start to end."""
  spans = [match.span(2) for match in _WORD.finditer(context)]
  touched = [i for i, (a, b) in enumerate(spans) if b > start and a < end]
  first, last = touched[0], touched[-1]
  begin = min(spans[first][0], start)
  pieces = [*spans[:first], (begin, max(spans[last][1], end)), *spans[last + 1:]]
  blanks = [context[a:b] for a, b in zip([0, *(b for _, b in pieces)], [a for a, _ in pieces])]
  return Text(blanks, [context[a:b] for a, b in pieces], first), start - begin


def augmented(domains, fields, seed):
  """Returns dict domain -> Questions of `domains`, with the copies that section `fields` asks for."""
  for name in fields['files']:
    if name not in domains:
      raise errors.UserError(f'data.eda.files: no training file is called {name!r}'
                             f'{errors.nearest(name, domains)} (there are: {", ".join(domains)})')
  if not 0 < fields['share'] <= 1 or fields['copies'] < 1:
    raise errors.UserError(f'data.eda.share={fields["share"]}, copies={fields["copies"]}: a share is above 0 '
                           'and at most 1, copies are at least 1')
  if not fields['files']:
    return domains
  if fields['synonyms']:
    synonyms = read(fields['synonyms'])
  else:
    synonyms = used_alike(dict.fromkeys(q.context for group in domains.values() for q in group))
  return {name: [*questions, *_copies(name, questions, fields, seed, synonyms)] if name in fields['files']
          else questions for name, questions in domains.items()}


def _copies(name, questions, fields, seed, synonyms):
  key = list(f'{seed} {name}'.encode())
  for number, question in enumerate(questions):
    for copy in range(fields['copies']):
      rng = np.random.default_rng([*key, number, copy])
      context, start = change(question.context, question.start, len(question.answers[0]), rng,
                              OPERATIONS[copy % len(OPERATIONS)], fields['share'], synonyms)
      yield dataclasses.replace(question, context=context, start=start, answers=question.answers[:1])


def read(path):
  """Returns dict word -> list of synonyms of the user's file, in lower case."""
  synonyms = {}
  for number, line in enumerate(given.text(path, 'data.eda.synonyms').splitlines(), 1):
    word, colon, listing = line.partition(':')
    listed = [text for text in re.split(r'[,\s]+', listing) if text]
    if line.strip() and not (colon and word.strip() and listed):
      raise errors.UserError(f'data.eda.synonyms={path}, line {number} is not `word: synonym, synonym`')
    if listed:
      synonyms.setdefault(word.strip().lower(), []).extend(listed)
  return synonyms


def used_alike(texts):
  """Returns dict word -> the SIMILAR words with the most similar neighbours, of the COMMON words of `texts`.

  Similarity is the cosine of rows of positive pointwise mutual information with the words beside.
  """
  words_of_texts = [[w.lower() for w in re.findall(r'[^\W\d_]+', text)] for text in texts]
  counts = collections.Counter(word for words in words_of_texts for word in words)
  common = [word for word, count in sorted(counts.items(), key=lambda e: (-e[1], e[0]))[:COMMON]
            if count >= FEWEST]
  if len(common) <= SIMILAR:
    return {}
  at = {word: i for i, word in enumerate(common)}
  beside = np.zeros((len(common), len(common)), np.float32)
  for words in words_of_texts:
    ids = [at.get(word, -1) for word in words]
    pairs = [(a, b) for a, b in zip(ids, ids[1:]) if a >= 0 and b >= 0]
    for a, b in pairs:
      beside[a, b] += 1
  sides = np.concatenate([beside, beside.T], axis=1)                 # what follows, and what comes before
  expected = sides.sum(1, keepdims=True) * sides.sum(0) / max(sides.sum(), 1)
  information = np.log(np.maximum(sides, 1e-9) / np.maximum(expected, 1e-9))
  rows = np.where(sides > 0, np.maximum(information, 0), 0)
  rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
  cosine = rows @ rows.T
  np.fill_diagonal(cosine, -1)
  best = np.argsort(-cosine, axis=1, kind='stable')[:, :SIMILAR]
  return {word: [common[j] for j in best[i] if cosine[i, j] > 0] for i, word in enumerate(common)
          if (cosine[i, best[i]] > 0).any()}
