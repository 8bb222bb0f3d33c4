"""GLUE (arXiv:1804.07461) as text to text, with the strings of T5's tasks glue_*_v002.

"<task> <field>: ... <field>: ...", fields in alphabetical order; the target is the name of the label, in
STS-B the similarity, 0 to 5, rounded to fifths. RTE is called glue_rte here: SuperGLUE's has other fields.
`mnli` is judged on the matched part, `mnli_mismatched` on the other one; they train on the same rows.

Files are those of GLUE, tables with tabs between cells, or jsonl with the fields of TensorFlow Datasets.
Differs: T5 reads version 1.0.0 of TensorFlow Datasets, this file 2.0.0, whose QQP has another address. T5
asks WNLI's questions in the form of WSC; the form here is that of the other tasks.
"""

import numpy as np

from stmoe.data.text import examples
from stmoe.data.text.families import superglue

PAIR = ('sentence1', 'sentence2')
NLI = ('entailment', 'neutral', 'contradiction')
FIFTHS = tuple(f'{number / 5:.1f}' for number in range(26))           # '0.0', '0.2', ..., '5.0'


def stsb(row):
  """Returns the example of two sentences; float32 decides ties between fifths, as in T5."""
  score = float(row['label'])
  if not 0 <= score <= 5:
    raise ValueError(f'label {row["label"]} is no similarity from 0 to 5')
  number = int(np.rint(np.float32(score) * np.float32(5)))
  text = ' '.join(f'{name}: {row[name]}' for name in PAIR)
  return [examples.record(f'stsb {text}', FIFTHS[number], choices=FIFTHS)]


def rows(columns=None):
  """Returns the conversion of a released line into its row; `columns`: dict released name -> our name."""
  names = columns or {}

  def convert(found):
    row = {names.get(name, name): cell for name, cell in found.items()}
    label = row.get('label')
    return [row | dict(label=int(label)) if isinstance(label, str) and label.isdigit() else row]
  return convert


def whole_rows(found):
  """Returns the row of a line of QQP; none of a line that the end of a line within a question has cut."""
  return [row for row in rows(dict(is_duplicate='label'))(found) if 'label' in row and 'question2' in row]


def _form(name, fields, labels, metrics=('accuracy',), *, stem, prefix='', columns=None, **more):
  """The Form of a task whose rows have `fields` and a label."""
  convert = superglue.fields(prefix or name, fields, labels)
  return examples.Form(name, convert, metrics, f'glue/{name.removeprefix("glue_")}:2.0.0', stem=stem,
                       **dict(rows=rows(columns)) | more)


def _mnli(name, split, **more):
  columns = dict(sentence1='premise', sentence2='hypothesis', gold_label='label')
  return examples.Form(name, superglue.fields('mnli', ('hypothesis', 'premise'), NLI), ('accuracy',),
                       'glue/mnli:2.0.0', ('train', split), rows=rows(columns), stem='MNLI', **more)


FORMS = (
    _form('cola', ('sentence',), ('unacceptable', 'acceptable'), ('matthews',), stem='CoLA',
          columns=dict(judgment='label'), header=('source', 'judgment', 'star', 'sentence')),
    _form('sst2', ('sentence',), ('negative', 'positive'), stem='SST-2'),
    _form('mrpc', PAIR, ('not_equivalent', 'equivalent'), ('f1', 'accuracy'), stem='MRPC',
          columns={'#1 String': 'sentence1', '#2 String': 'sentence2', 'Quality': 'label'}),
    _form('qqp', ('question1', 'question2'), ('not_duplicate', 'duplicate'), ('f1', 'accuracy'), stem='QQP',
          rows=whole_rows),
    examples.Form('stsb', stsb, ('correlation',), 'glue/stsb:2.0.0', rows=rows(dict(score='label')),
                  stem='STS-B'),
    _mnli('mnli', 'validation_matched'),
    _mnli('mnli_mismatched', 'validation_mismatched', held_out=('dev_mismatched', 'validation_mismatched')),
    _form('qnli', ('question', 'sentence'), superglue.ENTAILMENT, stem='QNLI'),
    _form('glue_rte', PAIR, superglue.ENTAILMENT, stem='RTE', prefix='rte'),
    _form('wnli', PAIR, ('not_entailment', 'entailment'), stem='WNLI'),
)
TASKS = {form.name: form.task for form in FORMS}
