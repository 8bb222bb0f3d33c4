"""Figures of trivial systems on real data, from our tasks and metrics: pytest tests/metrics --data DIR.

DIR/BASELINES.md holds the expected figures; every row of its tables about tasks is computed again here. A
row that no function below knows fails, a folder without DIR is skipped.
"""

import collections
import gzip
import json
import re
import statistics

import pytest

from stmoe import lookup
from stmoe.data.text import tasks
from stmoe.metrics import bleu
from stmoe.metrics import rouge

TOLERANCE = 0.0101                       # of 100; figures are printed with two digits
SECTIONS = ('SuperGLUE slices', 'Other classification and question answering', 'Summarisation', 'Translation')


def rows(folder, section):
  """Yields the cells of the table under '## section'."""
  text = (folder / 'BASELINES.md').read_text().split(f'\n## {section}\n')[1].split('\n## ')[0]
  for line in [line for line in text.splitlines() if line.startswith('|')][2:]:
    yield [cell.strip() for cell in line.strip('|').split('|')]


def lines(path):
  """Returns the lines of a file, `.gz` or not, also where only the other one is there."""
  path = path if path.exists() else path.with_name(path.name + '.gz')
  content = path.read_bytes()
  content = gzip.decompress(content) if path.suffix == '.gz' else content
  return content.decode().rstrip('\n').split('\n')


def objects(path):
  return [json.loads(line) for line in lines(path)]


def scored(metric, examples, text):
  """Returns the scores of saying `text`, or text(example), everywhere."""
  texts = [text(example) if callable(text) else text for example in examples]
  return lookup.module('metric', metric).score(examples, texts)


def near(found, printed, scale=100.0):
  assert abs(found - scale * printed) < TOLERANCE, (found, printed)


def slice_of(folder, task, name):
  """Returns the examples of all rows of one file, unfiltered, through the task's own form."""
  form = tasks.known()[task].__self__
  path = next((folder / 'superglue_fewglue').glob(f'{form.stem}_{name}.jsonl*'))
  found = [row for line in lines(path) for row in form.rows(json.loads(line))]
  return list(form.examples(found, 'validation'))


def mentions(path):
  """Returns dict passage -> the entity that is marked most often in it, the first of several."""
  found = {}
  for one in objects(path):
    text, spans = one['passage']['text'], one['passage']['entities']
    counts = collections.Counter(text[span['start']:span['end'] + 1] for span in spans)
    found[str(one['idx'])] = counts.most_common(1)[0][0]
  return found


def superglue(folder, task, name, text):
  task = task.lower()
  examples = slice_of(folder, task, name)
  if task == 'multirc':
    near(scored('accuracy', examples, 'False')['accuracy'], float(re.search(r'accuracy (\S+);', text)[1]))
    near(scored('multirc', examples, 'True')['f1a'], float(re.search(r'F1a (\S+);', text)[1]))
    near(scored('multirc', examples, 'False')['em'], float(re.search(r'all-zero (\S+);', text)[1]))
    near(scored('multirc', examples, 'True')['em'], float(re.search(r'all-one (\S+)', text)[1]))
    assert len(examples) == int(re.search(r'(\d+) answers', text)[1])
  elif task == 'record':
    often = mentions(folder / 'superglue_fewglue' / f'ReCoRD_{name}.jsonl')
    near(scored('squad', examples, lambda e: often[e['group'].split('/')[0]])['em'],
         float(re.search(r'entity EM (\S+)', text)[1]))
    distinct = {e['group']: len(e['choices']) for e in examples}
    near(statistics.mean(distinct.values()), float(re.search(r'candidates ([\d.]+)', text)[1]), scale=1)
  else:
    label, value = re.search(r'majority (\S+) accuracy ([\d.]+)', text).groups()
    if task == 'wsc':
      said = (lambda e: e['references'][0]) if label == 'True' else (lambda e: e['baseline'])
      near(scored('wsc', examples, said)['accuracy'], float(value))
    else:
      label = dict(copa={'0': 'choice1', '1': 'choice2'}).get(task, {}).get(label, label)
      near(scored('accuracy', examples, label)['accuracy'], float(value))
    if task == 'cb':
      near(scored('macro_f1', examples, label)['f1'], float(re.search(r'class ([\d.]+)', text)[1]))
    assert len(examples) == int(text.split()[0])


def other(folder, file, text):
  path = folder / file
  wanted = lambda pattern: float(re.search(pattern + r' ([\d.]+)', text)[1])
  if 'gsm8k' in file:
    answers = [found['answer'].split('#### ')[1] for found in objects(path)]
    examples = [dict(references=[answer]) for answer in answers]
    near(scored('accuracy', examples, '4')['accuracy'], wanted("'4' accuracy"))
    return
  task = dict(qa_a='arc_challenge', qa_q='qasc', nli_='anli_r1', qa_n='nq_open')[file[:4]]
  form = tasks.known()[task].__self__
  found = objects(path)
  examples = list(form.examples([row for line in found for row in form.rows(line)], 'validation'))
  if task == 'nq_open':
    near(scored('squad', examples, '2017')['em'], wanted("'2017' exact match"))
  elif task == 'anli_r1':
    near(scored('accuracy', examples, 'entailment')['accuracy'], wanted('majority e accuracy'))
  else:
    key = re.search(r'majority key (\S)', text)[1]
    at = iter([[c['label'] for c in one['question']['choices']] for one in found])
    said = lambda e: dict(zip(next(at), e['choices'])).get(key, '')
    near(scored('accuracy', examples, said)['accuracy'], wanted(f'majority key {key} accuracy'))
    near(scored('accuracy', examples, lambda e: e['baseline'])['accuracy'], wanted('longest-choice accuracy'))
    near(100 * statistics.mean(1 / len(e['choices']) for e in examples), wanted('uniform random'))


def summaries(folder, name, system):
  """Returns (examples, texts) of a system on a set."""
  if name == 'T5 metric fixture':
    targets, texts = (lines(folder / 'metric_rouge_t5' / f'{side}_large.txt')
                      for side in ('target', 'prediction'))
    return [dict(references=[target]) for target in targets], texts
  if name.startswith('SciTLDR'):
    found = objects(folder / 'summ_scitldr' / f'{name.split()[-1]}.jsonl.gz')
    pairs = [(one['source'], one['target']) for one in found]
  elif name.startswith('DialogSum'):
    found = objects(folder / 'summ_dialogsum' / 'dev.jsonl.gz')
    pairs = [(one['dialogue'].split('\n'), [one['summary']]) for one in found]
  elif name.startswith('XSum test'):
    found = objects(folder / 'summ_xsum' / 'xsum_test_systems_a.jsonl')
    return [dict(references=[one['gold']]) for one in found], [one[system] for one in found]
  else:
    found = objects(folder / 'summ_xsum' / 'sample.jsonl')
    pairs = [(one['document'].split('\n'), [one['summary']]) for one in found]
  count = int(system.split('-')[1])
  part = (lambda parts: parts[-count:]) if system.startswith('last') else (lambda parts: parts[:count])
  return [dict(references=targets) for _, targets in pairs], ['\n'.join(part(parts)) for parts, _ in pairs]


def summarisation(folder, name, system, count, plain, stemmed):
  examples, texts = summaries(folder, name, system)
  assert len(examples) == int(count.replace(',', ''))
  found = rouge.score(examples, texts)
  for suffix, cell in (('', plain), ('_stemmer', stemmed)):
    for metric, value in zip(rouge.NAMES, cell.split('/')):
      near(found[metric + suffix], float(value), scale=1)


def word_for_word(folder, texts):
  """Returns `texts` with every word replaced by the one of highest Dice coefficient in the training set."""
  count = {side: collections.Counter() for side in ('en', 'de')}
  both = collections.defaultdict(collections.Counter)
  sides = (lines(folder / 'mt_multi30k' / f'train.{side}.gz') for side in ('en', 'de'))
  for source, target in zip(*sides):
    source, target = set(source.split()), set(target.split())
    count['en'].update(source)
    count['de'].update(target)
    for word in source:
      both[word].update(target)
  dice = {word: max(sorted(found), key=lambda t: 2 * found[t] / (count['en'][word] + count['de'][t]))
          for word, found in both.items()}
  return [' '.join(dice.get(word, word) for word in text.split()) for text in texts]


def translation(folder, pair, count, plain, lower, chrf):
  names = dict(eng='eng_Latn', deu='deu_Latn', fra='fra_Latn', ron='ron_Latn')
  if pair.startswith('FLORES'):
    source, target = re.search(r'(\w+)->(\w+)', pair).groups()
    side = lambda name: lines(next((folder / 'mt_flores200').glob(f'dev.{names[name]}*')))
  else:
    source, target = re.search(r'(\w\w)->(\w\w)', pair).groups()
    stem = pair.split()[1]
    side = lambda name: lines(folder / 'mt_multi30k' / f'{stem}.{name}')
  sources, examples = side(source), [dict(references=[text]) for text in side(target)]
  assert len(sources) == int(count.replace(',', ''))
  texts = word_for_word(folder, sources) if 'word-for-word' in pair else sources
  near(bleu.score(examples, texts)['bleu'], float(plain), scale=1)
  near(bleu.bleu(examples, texts, lowercase=True), float(lower), scale=1)
  near(bleu.chrf(examples, texts), float(chrf), scale=1)


@pytest.mark.parametrize('section,check', list(zip(SECTIONS, (superglue, other, summarisation, translation))))
def test_every_figure_is_reproduced(data, section, check):
  wrong = []
  found = list(rows(data, section))
  for cells in found:
    try:
      check(data, *cells)
    except AssertionError as error:
      wrong.append(f'{" ".join(cells)}: {error}')
  print(f'{section}: {len(found)} rows')
  assert found and not wrong, '\n'.join(['', *wrong])
