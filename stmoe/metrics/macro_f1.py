"""Mean over classes of F1, of CommitmentBank; a class that nobody predicts counts as 0."""


def score(examples, predictions):
  """Returns dict(f1), out of 100: the classes are the `choices` of the examples.

  >>> one = lambda label: dict(references=[label], choices=['a', 'b'])
  >>> round(score([one('a'), one('a'), one('b')], ['a', 'a', 'a'])['f1'], 2)     # F1 of a is 0.8, of b 0
  40.0
  """
  targets = [example['references'][0] for example in examples]
  classes = list(dict.fromkeys(label for example in examples for label in example['choices']))
  pairs = list(zip(targets, predictions, strict=True))
  return dict(f1=100.0 * sum(f1(pairs, label) for label in classes) / len(classes))


def f1(pairs, label):
  """Returns F1 of class `label`, 0.0 to 1.0, over (target, prediction) pairs; 0.0 without the class."""
  hits = sum(target == prediction == label for target, prediction in pairs)
  either = sum((target == label) + (prediction == label) for target, prediction in pairs)
  return 2.0 * hits / either if either else 0.0
