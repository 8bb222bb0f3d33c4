"""Questions answered from a context (SQuAD) or from memory (closed book, arXiv:2002.08910)."""

import re

from stmoe.data.text import examples


def spaced(text):
  """Returns `text` with blanks around what is neither letter, digit nor underscore, as T5 gives it SQuAD.

  >>> spaced("Who's he?")
  "Who ' s he ?"
  """
  return ' '.join(re.sub(r'(\W)', r' \1 ', text).split())


def squad(row):
  """Returns the example of a question with its context; the first of its answers is learned."""
  answers = row['answers']['text']
  return [examples.record(f'question: {spaced(row["question"])} context: {spaced(row["context"])}',
                          spaced(answers[0]), references=answers)]


def closed_book(prefix, answers):
  """Returns the conversion of a question alone; `answers` gives the answers of a row."""
  def convert(row):
    accepted = list(answers(row))
    return [examples.record(f'{prefix} question: {row["question"]}', accepted[0], references=accepted)]
  return convert


def trivia_answers(row):
  """Returns the answer of a row of TriviaQA and its other names, the answer first."""
  return dict.fromkeys([row['answer']['value'], *row['answer']['aliases']])


def _webquestions(row):
  return row['answers']


def _nq(row):
  return row['answer']


def _questions(found):
  """Row of a line in the format of TriviaQA's release, whose fields have other names."""
  lower = {key.lower(): value for key, value in found.items()}
  answer = {key.lower(): value for key, value in lower['answer'].items()}
  return [dict(question=lower['question'], answer=answer)]


FORMS = (
    examples.Form('squad', squad, ('squad',), 'squad/v1.1:3.0.0'),
    examples.Form('nq_open', closed_book('nq', _nq), ('squad',), 'natural_questions_open:1.0.0'),
    examples.Form('web_questions', closed_book('wq', _webquestions), ('squad',), 'web_questions:1.0.0',
                  ('train', 'test')),
    examples.Form('trivia_qa', closed_book('trivia', trivia_answers), ('trivia_qa',),
                  'trivia_qa/unfiltered.nocontext:1.1.0', rows=_questions),
)
TASKS = {form.name: form.task for form in FORMS}
