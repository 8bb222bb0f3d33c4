"""Winograd schemas as generation: whether the predicted words name the candidate, against the label."""

DETERMINERS = frozenset((
    'a an few her his each every many much my our some that the their these this those which whose '
    'your').split())


def score(examples, predictions):
  """Returns dict(accuracy), out of 100: how often naming the candidate is what `label` (bool) says.

  >>> one = dict(references=['the fuzzy bunny'], label=True)
  >>> score([one] * 4, ['The bunny', 'his fuzzy bunny', '', "bunny's"])
  {'accuracy': 50.0}
  """
  right = [bool(words(text)) and names(text, example['references'][0]) == example['label']
           for example, text in zip(examples, predictions, strict=True)]
  return dict(accuracy=100.0 * sum(right) / len(right))


def names(text, candidate):
  """Returns whether the words of one text are among the words of another; a possessive is another thing."""
  predicted, referent = words(text), words(candidate)
  if any("'" in word for word in predicted) != any("'" in word for word in referent):
    return False
  return predicted <= referent or referent <= predicted


def words(text):
  """Returns the set of lower-case words of `text` that are no determiners."""
  return {word for word in text.strip().lower().split(' ') if word not in DETERMINERS} - {''}
