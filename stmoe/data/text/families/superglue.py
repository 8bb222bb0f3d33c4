"""SuperGLUE (arXiv:1905.00537) as text to text, with the strings of T5's tasks super_glue_*_v102.

"<task> <field>: ... <field>: ...", fields in alphabetical order but for MultiRC and ReCoRD; the target is
the name of the label. WSC asks for the referent of the *pronoun* in stars. WSC is trained on the rows whose
candidate is right, and judged on all. DPR's 1,322 sentences train with WSC.
"""

import re

from stmoe.data.text import examples

YES_NO = ('False', 'True')
ENTAILMENT = ('entailment', 'not_entailment')
BREAKS = {'<br>': ' ', '<b>': '', '</b>': ''}


def fields(task, names, labels):
  """Returns the conversion of a row whose fields `names` follow the task's name."""
  def convert(row):
    text = ' '.join(f'{name}: {row[name]}' for name in names)
    return [examples.record(f'{task} {text}', examples.label(row['label'], labels), choices=labels)]
  return convert


def axb(row):
  """Returns the example of a row of AX-b, a pair of sentences in the form of RTE."""
  return fields('rte', ('hypothesis', 'premise'), ENTAILMENT)(
      dict(hypothesis=row['sentence2'], premise=row['sentence1'], label=row['label']))


def multirc(row):
  """Returns the example of one answer to one question."""
  clean = lambda text: re.sub('<br>|</?b>', lambda found: BREAKS[found.group()], text)
  question, answer, paragraph = (clean(row[name]) for name in ('question', 'answer', 'paragraph'))
  return [examples.record(f'multirc question: {question} answer: {answer} paragraph: {paragraph}',
                          examples.label(row['label'], YES_NO), choices=YES_NO,
                          group=f'{row["idx"]["paragraph"]}/{row["idx"]["question"]}')]


def multirc_rows(found):
  """Returns a row for each answer in a line of MultiRC, which is a passage with its questions."""
  return [dict(paragraph=found['passage']['text'], question=question['question'], answer=answer['text'],
               label=answer.get('label', -1), idx=dict(paragraph=found['idx'], question=question['idx']))
          for question in found['passage']['questions'] for answer in question['answers']]


def record(row):
  """Returns an example for each right entity of a query, all with the same query; they are one group."""
  passage = re.sub(r'([.?!"\'])\n@highlight\n', r'\1 ', row['passage'])
  passage = passage.replace('\n@highlight\n', '. ')
  entities, answers = list(row['entities']), list(row['answers'])
  text = f'record query: {row["query"]} entities: {", ".join(entities)} passage: {passage}'
  often = max(entities, key=passage.count, default='')
  return [examples.record(text, target, references=answers, choices=entities, baseline=often,
                          group=f'{row["idx"]["passage"]}/{row["idx"]["query"]}')
          for target in answers or [examples.UNKNOWN]]


def record_rows(found):
  """Returns a row for each query in a line of ReCoRD, which is a passage with its queries."""
  text = found['passage']['text']
  entities = sorted({text[entity['start']:entity['end'] + 1] for entity in found['passage']['entities']})
  return [dict(passage=text, query=query['query'], entities=entities,
               answers=sorted({answer['text'] for answer in query.get('answers', ())}),
               idx=dict(passage=found['idx'], query=query['idx'])) for query in found['qas']]


def wsc(row):
  """Returns the example of a sentence: which words does the *pronoun* stand for.

  Some indices of the released files are wrong: among the words that are the pronoun the nearest counts.
  """
  words, at, pronoun = row['text'].split(' '), int(row['span2_index']), row['span2_text']
  is_it = re.compile(rf'\b{re.escape(pronoun)}\b', re.IGNORECASE)       # punctuation may stick to it
  places = [number for number, word in enumerate(words) if is_it.search(word)]
  if not places:
    raise ValueError(f'span2_text {pronoun!r} is no word of the text')
  nearest = min(places, key=lambda number: abs(number - at))
  words[nearest] = is_it.sub(lambda match: f'*{match.group()}*', words[nearest], count=1)
  return [examples.record(f'wsc: {" ".join(words)}', row['span1_text'],
                          label=examples.label(row['label'], YES_NO) == 'True', baseline='(nothing)')]


def wsc_rows(found):
  """Returns the single row in a line of WSC, whose spans are together in `target`."""
  return [dict(text=found['text'], label=found.get('label', -1), **found['target'])]


def dpr(row):
  """Returns the example of a sentence of definite pronoun resolution in the form of WSC."""
  text, count = re.subn(rf'\b{re.escape(row["pronoun"])}\b', f'*{row["pronoun"]}*', row['sentence'], count=1)
  if not count:
    raise ValueError(f'the pronoun {row["pronoun"]!r} is not in the sentence')
  return [examples.record(f'wsc: {text}', row['candidates'][int(row['label'])], label=True)]


_GLUE = 'super_glue/{}:1.0.2'
_TEST = ('test', 'test')
_CHOICES = ('choice1', 'choice2')
_CB = ('entailment', 'contradiction', 'neutral')
FORMS = (
    examples.Form('boolq', fields('boolq', ('passage', 'question'), YES_NO), ('accuracy',),
                  _GLUE.format('boolq'), stem='BoolQ'),
    examples.Form('cb', fields('cb', ('hypothesis', 'premise'), _CB), ('macro_f1', 'accuracy'),
                  _GLUE.format('cb'), stem='CB'),
    examples.Form('copa', fields('copa', ('choice1', 'choice2', 'premise', 'question'), _CHOICES),
                  ('accuracy',), _GLUE.format('copa'), stem='COPA'),
    examples.Form('multirc', multirc, ('multirc',), _GLUE.format('multirc'), rows=multirc_rows,
                  stem='MultiRC'),
    examples.Form('record', record, ('squad',), _GLUE.format('record'), rows=record_rows, stem='ReCoRD'),
    examples.Form('rte', fields('rte', ('hypothesis', 'premise'), ENTAILMENT), ('accuracy',),
                  _GLUE.format('rte'), stem='RTE'),
    examples.Form('wic', fields('wic', ('sentence1', 'sentence2', 'word'), YES_NO), ('accuracy',),
                  _GLUE.format('wic'), stem='WiC'),
    examples.Form('wsc', wsc, ('wsc',), _GLUE.format('wsc.fixed'), rows=wsc_rows, stem='WSC',
                  trained=lambda example: example['label']),
    examples.Form('dpr', dpr, ('wsc',), 'definite_pronoun_resolution:1.1.0', ('train', 'test'), stem='DPR'),
    # Diagnostics, without anything to train on: both of our splits are their test set.
    examples.Form('axb', axb, ('accuracy',), _GLUE.format('axb'), _TEST, stem='AX-b'),
    examples.Form('axg', fields('rte', ('hypothesis', 'premise'), ENTAILMENT), ('accuracy',),
                  _GLUE.format('axg'), _TEST, stem='AX-g'),
)
TASKS = {form.name: form.task for form in FORMS}
