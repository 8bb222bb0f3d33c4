"""Share of predictions that are a reference, letter for letter; a text that is no label is wrong."""


def score(examples, predictions):
  """Returns dict(accuracy), out of 100.

  >>> score([dict(references=['True']), dict(references=['False'])], ['True', 'true'])
  {'accuracy': 50.0}
  """
  right = [text in example['references'] for example, text in zip(examples, predictions, strict=True)]
  return dict(accuracy=100.0 * sum(right) / len(right))
