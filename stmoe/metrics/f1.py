"""F1 of the second of two labels, of MRPC and QQP."""

from stmoe.metrics import macro_f1


def score(examples, predictions):
  """Returns dict(f1), out of 100, of the second of the two `choices`.

  >>> one = lambda label: dict(references=[label], choices=['no', 'yes'])
  >>> round(score([one('yes'), one('yes'), one('no')], ['yes', 'no', 'maybe'])['f1'], 2)   # 1 of 2, 2 said
  50.0
  """
  pairs = [(example['references'][0], labelled(text, example['references'][0], example['choices']))
           for example, text in zip(examples, predictions, strict=True)]
  return dict(f1=100.0 * macro_f1.f1(pairs, examples[0]['choices'][1]))


def labelled(text, target, labels):
  """Returns prediction `text`; the wrong one of two `labels` where it is no label, as in T5."""
  return text if text in labels else labels[target == labels[0]]
