"""Adversarial NLI (arXiv:1910.14599), in the form T5 gives to MNLI."""

from stmoe.data.text import examples

LABELS = ('entailment', 'neutral', 'contradiction')


def anli(row):
  """Returns the example of a context and a hypothesis, labelled e, n or c."""
  label = row['label'] if not isinstance(row['label'], str) else 'enc'.index(row['label'])
  return [examples.record(f'anli hypothesis: {row["hypothesis"]} premise: {row["context"]}',
                          examples.label(label, LABELS), choices=LABELS)]


FORMS = tuple(examples.Form(f'anli_r{i}', anli, ('accuracy',), f'anli/r{i}:0.1.0', stem=f'R{i}')
              for i in (1, 2, 3))
TASKS = {form.name: form.task for form in FORMS}
