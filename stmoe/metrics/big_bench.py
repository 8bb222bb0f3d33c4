"""The scores of BIG-bench (arXiv:2206.04615, its JSON tasks) from texts, ranked choices and likelihoods.

Three tables have a function for each metric, by the name that tasks use. WRITTEN takes (examples, texts),
RANKED takes `Ranked`, and LIKELY takes (examples, f64 arrays of log P(target | input)). A function returns
f64[N], a value an example whose mean is the score, or a float, the score of all examples together.
Examples have `references`. Scores are in the units of the benchmark: see `limits`.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib

import numpy as np
from scipy import sparse
from scipy import special

from stmoe.metrics import macro_f1 as f1

BINS = 15                                # of confidence, from 0 to 1
ROWS = 256                               # sets of choices at once, of which a matrix is [ROWS,G]
GRADE = 'multiple_choice_grade'
PER_BYTE = 'multiple_choice_grade_per_byte'   # ours, see `multiple_choice_grade_per_byte`
BRIER = 'calibration_multiple_choice_brier_score'
ECE = 'expected_calibration_error'
SHARED = 'calibration_error_ties_shared'   # ours, see `Ranked.right`
CHOICES = PER_BYTE, BRIER, ECE, SHARED   # of every task with choices
AGGREGATE = 'normalized_aggregate_score'
ROUGES = ('rouge1', 'rouge2', 'rougeLsum')
PADDING = 'O'                            # what a text that is too short is filled up with, see `sequence_f1`


def limits(metric: str) -> tuple[float, float]:
  """Returns (low, high): the scores of `metric` that the benchmark normalises to 0 and to 100.

  The low of GRADE and PER_BYTE is the mean target score instead, see `Ranked.chance`.

  >>> limits('bleu'), limits('exact_str_match'), limits('log_likelihood')
  ((0.0, 100.0), (0.0, 1.0), (-10.0, 0.0))
  """
  if metric in ('bleu', 'sequence_f1', AGGREGATE, *ROUGES):
    return 0.0, 100.0
  if metric == 'weighted_probabilities':
    return -1.0, 1.0
  return (-10.0, 0.0) if metric in LIKELY or metric == 'weighted_log_probabilities' else (0.0, 1.0)


def normalized(score: float, low: float, high: float) -> float:
  """Returns `score` on the scale of 0 (`low`) to 100 (`high`); below `low` the value is negative.

  >>> normalized(0.4, 0.2, 1.0)
  25.0
  """
  return 100 * (score - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class Ranked:
  """Examples of multiple choice and what a system thinks of their choices; C differs between examples.

  absolute: N arrays f64[C] of log P(choice | input).
  scores:   N arrays f64[C] of target scores, in the same order.
  choices:  N lists of the choices' texts.
  log_probs: `absolute` minus their logsumexp, unless made by `of(..., absolute_normalization=True)`.
  """
  absolute: Sequence[np.ndarray]
  scores: Sequence[np.ndarray]
  choices: Sequence[Sequence[str]]
  log_probs: Sequence[np.ndarray]

  @classmethod
  def of(cls, absolute, scores, choices, absolute_normalization: bool = False) -> 'Ranked':
    """Returns the Ranked of a system's log-probabilities; they may be -inf, but not all of an example."""
    absolute = [np.asarray(a, np.float64) for a in absolute]
    relative = absolute if absolute_normalization else [a - special.logsumexp(a) for a in absolute]
    return cls(absolute, [np.asarray(s, np.float64) for s in scores], choices, relative)

  def chosen(self) -> np.ndarray:
    """Returns i32[N]: the likeliest choice. A hash of the log-probabilities decides between equal choices.

    Why no order: in some tasks the right choice is always the first of the file.
    """
    return np.array([_likeliest(log_probs) for log_probs in self.log_probs], np.int32)

  def chosen_per_byte(self) -> np.ndarray:
    """Returns i32[N]: the choice of the largest `absolute` over its bytes of UTF-8, ties as in `chosen`."""
    return np.array([_likeliest(a / size) for a, size in zip(self.absolute, self._bytes())], np.int32)

  def chance(self) -> tuple[float, float]:
    """Returns (mean, standard deviation) of the grade of a system that does not read the questions.

    It prefers texts in an order that is drawn once, all orders alike: see `blind_spread`.
    """
    return float(np.mean([s.mean() for s in self.scores])), blind_spread(self.scores, self.choices)

  def shortest(self) -> tuple[float, float]:
    """Returns `chance` among the choices of fewest bytes: what GRADE is if all bytes are equally likely."""
    kept = [np.flatnonzero(size == size.min()) for size in self._bytes()]
    scores = [s[at] for s, at in zip(self.scores, kept)]
    texts = [[each[i] for i in at.tolist()] for each, at in zip(self.choices, kept)]
    return float(np.mean([s.mean() for s in scores])), blind_spread(scores, texts)

  def _bytes(self):
    return [np.array([max(len(text.encode()), 1) for text in each]) for each in self.choices]

  def right(self, by_order: bool = True) -> np.ndarray:
    """Returns f64[N], 1 where the likeliest choice is the best.

    by_order: of equal choices the first counts, as in the benchmark's calibration error (not in its grade).
      So a system that finds all choices equal is always right in tasks whose first choice is right. Without,
      equally likely choices share the 1.
    """
    best = lambda a: a == a.max()
    if by_order:
      pairs = zip(self.log_probs, self.scores)
      return np.array([np.argmax(p) == np.argmax(s) for p, s in pairs], np.float64)
    return np.array([best(s)[best(p)].mean() for p, s in zip(self.log_probs, self.scores)])

  def confidence(self) -> np.ndarray:
    """Returns f64[N], the largest probability of a choice."""
    return np.exp([log_probs.max() for log_probs in self.log_probs])


def _likeliest(log_probs):
  best = np.flatnonzero(log_probs == log_probs.max())
  number = int(hashlib.sha256(log_probs.tobytes()).hexdigest(), 16) if len(best) > 1 else 0
  return best[number % len(best)]


def blind_spread(scores: Sequence[np.ndarray], choices: Sequence[Sequence[str]]) -> float:
  """Returns the standard deviation of the grade of a system that never reads a question.

  The system puts all texts into an order, drawn uniformly, and takes the first of each question's choices.
  So questions that offer the same texts are not answered independently: with the same two choices everywhere
  one draw decides all. Question i has choices C_i and grade g_i; s_i(A) is the sum of its scores over A.
    `E[g_i g_j] = (sum over a in C_i ∩ C_j of s_i(a) s_j(a) + s_i(C_i - C_j) s_j(C_j) / |C_j|
                   + s_i(C_i) s_j(C_j - C_i) / |C_i|) / |C_i ∪ C_j|`
  Each text of C_i ∪ C_j is equally likely the first. A shared one answers both, and one of i alone leaves j a
  uniform choice. The variance is the mean over i, j of `E[g_i g_j] - E[g_i] E[g_j]`. Without shared texts
  that is random guessing.

  Args:
    scores:  N arrays f64[C] of target scores. choices: N lists of different texts, in the same order.
  """
  sets: dict[frozenset, collections.Counter] = collections.defaultdict(collections.Counter)
  for each, values in zip(choices, scores):
    sets[frozenset(each)].update(dict(zip(each, values.tolist())))   # the sum is bilinear in s_i, s_j
  place = {text: i for i, text in enumerate(sorted(set().union(*sets)))}
  rows, columns, total = zip(*[(row, place[text], value) for row, found in enumerate(sets.values())
                               for text, value in found.items()])
  matrix = lambda values: sparse.csr_array((values, (rows, columns)), (len(sets), len(place)))
  s, member = matrix(np.asarray(total, np.float64)), matrix(np.ones(len(rows)))     # [G,T] sets, texts
  variance = sum(_covariance(s, member, slice(at, at + ROWS)) for at in range(0, len(sets), ROWS))
  return float(np.sqrt(max(variance, 0.0)) / len(scores))


def _covariance(s, member, part):
  """The sum of E[g_i g_j] - E[g_i] E[g_j] over sets i in `part` and all j; [i,j] below."""
  dense = lambda a, b: (a[part] @ b.T).toarray()
  whole, size = s.sum(1), member.sum(1)
  both, with_j = dense(member, member), dense(s, member)             # |C_i ∩ C_j|, s_i(C_i ∩ C_j)
  with_i = dense(member, s)                                          # s_j(C_i ∩ C_j)
  either = size[part, None] + size - both
  alone = ((whole[part, None] - with_j) * (whole / size) +
           (whole / size)[part, None] * (whole - with_i))
  return np.sum((dense(s, s) + alone) / either - np.outer((whole / size)[part], whole / size))


def multiple_choice_grade(ranked: Ranked) -> np.ndarray:
  """Returns f64[N], the target score of the choice that was chosen."""
  return np.array([scores[at] for scores, at in zip(ranked.scores, ranked.chosen())])


def multiple_choice_grade_per_byte(ranked: Ranked) -> np.ndarray:
  """Returns f64[N], the target score of the choice that is likeliest per byte.

  Not of the benchmark. GRADE sums over the tokens of a choice, so a model that finds all tokens equally
  likely takes the shortest choice. lm-evaluation-harness has the two as `acc` and `acc_bytes`, for one
  right choice (its `acc_norm` divides by characters); of equally likely choices it takes the first.
  """
  return np.array([scores[at] for scores, at in zip(ranked.scores, ranked.chosen_per_byte())])


def brier(ranked: Ranked) -> float:
  """Returns the mean of q (p - 1)^2 + (1 - q) p^2 over all choices; q are target scores over their sum.

  The score is (c - 1) / c^2 for equal probabilities of c choices, one of them right.
  """
  p, count = [np.exp(log_probs) for log_probs in ranked.log_probs], sum(map(len, ranked.scores))
  q = [scores / scores.sum() for scores in ranked.scores]
  return float(sum(np.sum(b * (a - 1) ** 2 + (1 - b) * a ** 2) for a, b in zip(p, q)) / count)


def calibration(ranked: Ranked, by_order: bool = False) -> list[tuple[int, float, float]]:
  """Returns BINS times (examples, sum of `Ranked.right`, sum of their confidence), by confidence."""
  confidence, right = ranked.confidence(), ranked.right(by_order)
  edges = np.arange(1, BINS + 1) / BINS
  place = np.minimum(np.searchsorted(edges, confidence, 'right'), BINS - 1)      # conf < (j + 1) / BINS
  total = lambda a: np.bincount(place, a, BINS)
  return list(zip(np.bincount(place, minlength=BINS).tolist(), total(right).tolist(),
                  total(confidence).tolist()))


def calibration_error(bins: Sequence[tuple[int, float, float]]) -> float:
  """Returns the mean over examples of |accuracy - confidence| of their bin, of what `calibration` returns.

  >>> calibration_error([(2, 1.0, 0.5), (2, 2.0, 1.5)])
  0.25
  """
  return sum(abs(right - confidence) for _, right, confidence in bins) / sum(count for count, *_ in bins)


def _weighted(ranked, values):
  return np.array([np.sum(s[s != 0] * v[s != 0]) for s, v in zip(ranked.scores, values)])   # 0 * -inf is 0


def macro_f1(ranked: Ranked) -> float:
  """Returns the mean F1, 0 to 1, of texts that are right or chosen; NaN unless one choice a row is right."""
  if any((scores > 0).sum() != 1 for scores in ranked.scores):
    return np.nan
  at = lambda places: [choices[place] for choices, place in zip(ranked.choices, places)]
  pairs = list(zip(at([np.argmax(scores) for scores in ranked.scores]), at(ranked.chosen())))
  return float(np.mean([value for _, value in sorted(f1.by_label(pairs).items())]))


RANKED: dict[str, Callable] = {
    GRADE: multiple_choice_grade,
    PER_BYTE: multiple_choice_grade_per_byte,
    BRIER: brier,
    ECE: lambda ranked: calibration_error(calibration(ranked, by_order=True)),
    SHARED: lambda ranked: calibration_error(calibration(ranked)),
    'macro_f1': macro_f1,
    'weighted_probabilities': lambda ranked: _weighted(ranked, [np.exp(a) for a in ranked.absolute]),
    'weighted_log_probabilities': lambda ranked: _weighted(ranked, ranked.absolute),
}


def _best(one, examples, texts):
  """f64[N], the largest one(reference, text) over the references of each example."""
  return np.array([max(one(reference, text) for reference in example['references'])
                   for example, text in zip(examples, texts, strict=True)], np.float64)


def numeric_match(target: str, text: str) -> bool:
  """Returns whether the number `text` is within a tenth of `target`.

  The error is divided by the target, not by its size: a negative target passes always. For 0 the error is not
  divided.

  >>> numeric_match('100', '109'), numeric_match('100', '89'), numeric_match('-4', '7')
  (True, False, True)
  """
  try:
    value, wanted = float(text), float(target)
  except ValueError:
    return False
  return abs(value - wanted) / (wanted or 1.0) <= 0.1


def sequence_f1(target: str, text: str) -> float:
  """Returns the share of the words of `target`, out of 100, that `text` has in the same places.

  Of several targets the first counts.

  >>> sequence_f1('a b c d', 'a x c'), sequence_f1('a', 'a b')
  (50.0, 100.0)
  """
  wanted, words = target.split(' '), text.split(' ')
  words = (words + [PADDING] * len(wanted))[:len(wanted)]
  return 100.0 * sum(a == b for a, b in zip(wanted, words)) / len(wanted)


def bleu(examples: Sequence[dict], texts: Sequence[str]) -> float:
  """Returns corpus BLEU out of 100 by sacrebleu, tokenizer intl; missing references are the first again."""
  import sacrebleu
  most = max(len(example['references']) for example in examples)
  filled = [(list(example['references']) + [example['references'][0]] * most)[:most] for example in examples]
  return sacrebleu.corpus_bleu(list(texts), list(map(list, zip(*filled))), tokenize='intl',
                               smooth_method='exp').score


def _rouge(name, examples, texts):
  """f64[N], F of one kind of ROUGE out of 100, the best over references.

  Differs: the benchmark takes the middle of a bootstrap instead of the mean.
  """
  from rouge_score import rouge_scorer

  from stmoe.metrics import rouge
  scorer = rouge_scorer.RougeScorer([name], use_stemmer=False)
  one = lambda reference, text: 100 * scorer.score(rouge.lines(reference), rouge.lines(text))[name].fmeasure
  return _best(one, examples, texts)


WRITTEN: dict[str, Callable] = {
    'exact_str_match': functools.partial(_best, lambda target, text: target == text),
    'case_insensitive_str_match': functools.partial(
        _best, lambda target, text: target.strip().lower() == text.strip().lower()),
    'numeric_match_with_0_1_relative_error': functools.partial(_best, numeric_match),
    'sequence_f1': lambda examples, texts: np.array(
        [sequence_f1(example['references'][0], text) for example, text in zip(examples, texts, strict=True)]),
    'bleu': bleu,
    **{name: functools.partial(_rouge, name) for name in ROUGES},
}


def _per(length, examples, log_probs):
  """f64[N] of log-probabilities over the length of the target; NaN for several targets."""
  return np.array([a[0] / length(example['references'][0]) if len(a) == 1 else np.nan
                   for example, a in zip(examples, log_probs)])


LIKELY: dict[str, Callable] = {
    'log_likelihood': lambda examples, log_probs: np.array([special.logsumexp(a) for a in log_probs]),
    'log_likelihood_per_word': functools.partial(_per, lambda text: len(text.split())),
    'log_likelihood_per_char': functools.partial(_per, len),
}


def score(examples: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
  """Returns dict of the mean of every metric of WRITTEN, for other tasks than the benchmark's.

  >>> score([dict(references=['a b'])], ['A b'])['case_insensitive_str_match']
  1.0
  """
  return {name: float(np.mean(metric(examples, predictions))) for name, metric in WRITTEN.items()}


def aggregate(subtasks: Sequence[dict]) -> dict:
  """Returns dict(scores, preferred, low, high) of a task from these dicts of its subtasks.

  A metric is the mean over the subtasks that have the metric. AGGREGATE is the mean of the normalised
  preferred scores, and is preferred unless all subtasks prefer GRADE.
  """
  names = dict.fromkeys(name for task in subtasks for name in task['scores'])
  mean = lambda values: float(np.mean(values))
  scores = {name: mean([task['scores'][name] for task in subtasks if name in task['scores']])
            for name in names}
  scores[AGGREGATE] = mean([normalized(task['scores'][task['preferred']], task['low'], task['high'])
                            for task in subtasks])
  if all(task['preferred'] == GRADE for task in subtasks):
    return dict(scores=scores, preferred=GRADE, low=mean([task['low'] for task in subtasks]), high=1.0)
  return dict(scores=scores, preferred=AGGREGATE, low=0.0, high=100.0)
