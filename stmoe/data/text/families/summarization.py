"""Summaries, "summarize: <text>" as in T5; beside each stands the lead of the text, the trivial summary.

T5 has no task XSum; its form here is that of CNN/DailyMail. SciTLDR and DialogSum are read from their jsonl.
"""

import re

from stmoe.data.text import examples


def summary(text, target, sentences, references=None):
  """Returns the example of a text; its first of `sentences` is the baseline."""
  return [examples.record(f'summarize: {text}', target, references=references, baseline=sentences[0])]


def split(text):
  """Returns the sentences of `text`, roughly: what ends with . ! or ? and a blank, or a line."""
  return [sentence for sentence in re.split(r'(?<=[.!?])\s+|\n+', text) if sentence.strip()] or ['']


def xsum(row):
  """Returns the example of an article of XSum (arXiv:1808.08745)."""
  return summary(row['document'], row['summary'], split(row['document']))


def cnn_dailymail(row):
  """Returns the example of an article of CNN/DailyMail; its baseline is the usual lead of three sentences."""
  return summary(row['article'], row['highlights'], [' '.join(split(row['article'])[:3])])


def scitldr(row):
  """Returns the example of an abstract, a list of sentences, with one reference or several."""
  return summary(' '.join(row['source']), row['target'][0], row['source'], row['target'])


def dialogsum(row):
  """Returns the example of a dialogue; its baseline is its first three lines."""
  return summary(row['dialogue'], row['summary'], [' '.join(row['dialogue'].split('\n')[:3])])


_ROUGE = ('rouge',)
FORMS = (examples.Form('xsum', xsum, _ROUGE, 'xsum:1.1.0'),
         examples.Form('cnn_dailymail', cnn_dailymail, _ROUGE, 'cnn_dailymail:3.4.0'),
         examples.Form('scitldr', scitldr, _ROUGE),
         examples.Form('dialogsum', dialogsum, _ROUGE))
TASKS = {form.name: form.task for form in FORMS}
