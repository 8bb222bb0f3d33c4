"""BLEU and chrF2 of translations by sacrebleu."""

import itertools


def score(examples, predictions):
  """Returns dict(bleu, bleu_intl, chrf), out of 100.

  bleu: sacrebleu's default signature (13a, mixed case, exp smoothing), which papers compare;
  bleu_intl: with the international tokenisation, as T5 reports it; chrf: chrF2.
  """
  return dict(bleu=bleu(examples, predictions), bleu_intl=bleu(examples, predictions, tokenize='intl'),
              chrf=chrf(examples, predictions))


def bleu(examples, predictions, lowercase=False, tokenize='13a'):
  """Returns corpus BLEU, out of 100."""
  import sacrebleu
  score = sacrebleu.corpus_bleu(list(predictions), _streams(examples), lowercase=lowercase, tokenize=tokenize)
  return score.score


def chrf(examples, predictions):
  """Returns corpus chrF2, out of 100."""
  import sacrebleu
  return sacrebleu.corpus_chrf(list(predictions), _streams(examples)).score


def _streams(examples):
  """The n-th references of all examples, for each n; None where an example has fewer."""
  return list(map(list, itertools.zip_longest(*(example['references'] for example in examples))))
