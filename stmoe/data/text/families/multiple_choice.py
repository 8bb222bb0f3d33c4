"""Questions with answers to choose from: ARC, QASC, Winogrande. The target is the text of the answer.

T5 has no such task; the form is this project's: "<task> question: ... choices: (A) ... (B) ...".
"""

from stmoe.data.text import examples

KEYS = ('A', 'B', 'C', 'D', 'E', 'F', 'G', 'H')


def question(task):
  """Returns the conversion of a row with a question, choices of text and label, and an answerKey.

  The baseline is the longest choice.
  """
  def convert(row):
    texts = list(row['choices']['text'])
    labels = [examples.label(label, KEYS) if not isinstance(label, str) else label
              for label in row['choices']['label']]
    key = row['answerKey'] if isinstance(row['answerKey'], str) else examples.label(row['answerKey'], KEYS)
    if key not in labels:
      raise ValueError(f'answerKey {key!r} is none of {", ".join(labels)}')
    listed = ' '.join(f'({name}) {text}' for name, text in zip(labels, texts, strict=True))
    return [examples.record(f'{task} question: {row["question"]} choices: {listed}', texts[labels.index(key)],
                            choices=texts, baseline=max(texts, key=len))]
  return convert


def question_rows(found):
  """Returns the single row in a line as ARC and QASC are released: the question holds its choices."""
  choices = found['question']['choices']
  sides = {side: [choice[side] for choice in choices] for side in ('text', 'label')}
  return [dict(question=found['question']['stem'], choices=sides, answerKey=found['answerKey'])]


def winogrande(row):
  """Returns the example of a sentence with a gap `_` and two fillings."""
  answer = row['label'] if 'label' in row else int(row['answer']) - 1
  options = (row['option1'], row['option2'])
  text = f'winogrande sentence: {row["sentence"]} option1: {options[0]} option2: {options[1]}'
  return [examples.record(text, examples.label(int(answer), options), choices=options)]


_ACCURACY = ('accuracy',)
FORMS = (
    examples.Form('arc_challenge', question('arc'), _ACCURACY, 'ai2_arc/ARC-Challenge:1.0.0',
                  rows=question_rows, stem='ARC-Challenge'),
    examples.Form('arc_easy', question('arc'), _ACCURACY, 'ai2_arc/ARC-Easy:1.0.0', rows=question_rows,
                  stem='ARC-Easy'),
    examples.Form('qasc', question('qasc'), _ACCURACY, 'qasc:0.1.0', rows=question_rows),
    examples.Form('winogrande', winogrande, _ACCURACY, 'winogrande:1.2.0', ('train_xl', 'validation')),
)
TASKS = {form.name: form.task for form in FORMS}
