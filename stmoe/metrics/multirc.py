"""MultiRC: F1 of the right answers over all answers (F1a), and questions with every answer right (EM)."""

from stmoe.metrics import f1
from stmoe.metrics import macro_f1

LABELS = ('False', 'True')


def score(examples, predictions):
  """Returns dict(f1a, em), out of 100; a question is the answers of one `group`.

  A prediction that is no label counts as the wrong label, as in T5.
  """
  pairs, questions = [], {}
  for example, text in zip(examples, predictions, strict=True):
    target = example['references'][0]
    text = f1.labelled(text, target, LABELS)
    pairs.append((target, text))
    questions.setdefault(example['group'], []).append(target == text)
  return dict(f1a=100.0 * macro_f1.f1(pairs, 'True'),
              em=100.0 * sum(map(all, questions.values())) / len(questions))
