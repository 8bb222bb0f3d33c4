"""ROUGE-1, -2 and -Lsum of summaries by rouge-score, without a stemmer, as in T5, and with a stemmer."""

NAMES = ('rouge1', 'rouge2', 'rougeLsum')


def score(examples, predictions):
  """Returns dict of the F of NAMES without stemmer, and of 'NAME_stemmer', out of 100, means over examples.

  A sentence ends at ' . '. Of several references the reference of highest ROUGE-1 counts. Differs: T5 reports
  the middle of a bootstrap, which is random.
  """
  plain, stemmed = (scores(examples, predictions, stemmer) for stemmer in (False, True))
  return plain | {f'{name}_stemmer': value for name, value in stemmed.items()}


def scores(examples, predictions, stemmer):
  """Returns dict of the F of NAMES with or without Porter's stemmer."""
  from rouge_score import rouge_scorer
  scorer = rouge_scorer.RougeScorer(NAMES, use_stemmer=stemmer)
  total = dict.fromkeys(NAMES, 0.0)
  for example, text in zip(examples, predictions, strict=True):
    by_reference = (scorer.score(lines(reference), lines(text)) for reference in example['references'])
    best = max(by_reference, key=lambda one: one['rouge1'].fmeasure)
    total = {name: total[name] + best[name].fmeasure for name in NAMES}
  return {name: 100.0 * value / len(predictions) for name, value in total.items()}


def lines(text):
  """Returns `text` with a line for each sentence, which ROUGE-Lsum asks for.

  >>> lines('one . two .')
  'one .\\ntwo .'
  """
  return text.replace(' . ', ' .\n')
