"""Matthews correlation of labels, of CoLA."""

import collections
import math


def score(examples, predictions):
  """Returns dict(matthews), -100 to 100; 0 where all targets or all predictions are the same.

  For more than two labels the generalisation of Gorodkin (2004). Texts that are no label count together as
  one more label, as in T5.

  >>> one = lambda label: dict(references=[label], choices=['no', 'yes'])
  >>> round(score([one('yes'), one('yes'), one('no'), one('no')], ['yes', 'yes', 'no', 'yes'])['matthews'], 2)
  57.74
  """
  targets = [example['references'][0] for example in examples]
  said = [text if text in example['choices'] else None
          for example, text in zip(examples, predictions, strict=True)]
  of_targets, of_said = collections.Counter(targets), collections.Counter(said)
  right = sum(target == text for target, text in zip(targets, said))
  # N² less the pairs of which each has a label in common by chance, of two lists of labels.
  apart = lambda a, b: len(targets)**2 - sum(count * b[label] for label, count in a.items())
  spread = apart(of_targets, of_targets) * apart(of_said, of_said)
  covariance = len(targets) * right - len(targets)**2 + apart(of_targets, of_said)
  return dict(matthews=100.0 * covariance / math.sqrt(spread) if spread else 0.0)
