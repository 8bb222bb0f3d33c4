"""Mean over classes of F1, of CommitmentBank; a class that nobody predicts counts as 0."""

import collections


def score(examples, predictions):
  """Returns dict(f1), out of 100: the classes are the `choices` of the examples.

  >>> one = lambda label: dict(references=[label], choices=['a', 'b'])
  >>> round(score([one('a'), one('a'), one('b')], ['a', 'a', 'a'])['f1'], 2)     # F1 of a is 0.8, of b 0
  40.0
  """
  targets = [example['references'][0] for example in examples]
  classes = list(dict.fromkeys(label for example in examples for label in example['choices']))
  by_class = by_label(list(zip(targets, predictions, strict=True)))
  return dict(f1=100.0 * sum(by_class.get(label, 0.0) for label in classes) / len(classes))


def f1(pairs, label):
  """Returns F1 of class `label`, 0.0 to 1.0, over (target, prediction) pairs; 0.0 without the class."""
  return by_label(pairs).get(label, 0.0)


def by_label(pairs):
  """Returns dict label -> its F1, 0.0 to 1.0, of all labels in a list of (target, prediction) pairs.

  >>> by_label([('a', 'a'), ('a', 'b')]) == dict(a=2 / 3, b=0.0)
  True
  """
  hits = collections.Counter(target for target, prediction in pairs if target == prediction)
  either = collections.Counter(label for pair in pairs for label in pair)
  return {label: 2.0 * hits[label] / number for label, number in either.items()}
