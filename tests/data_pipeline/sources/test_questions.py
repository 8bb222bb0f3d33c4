"""Questions with spans: files, windows and targets, predictions, augmentation, mistakes."""

import json
import re

import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.data import batches as pipeline
from stmoe.data.questions import eda
from stmoe.data.questions import squad
from stmoe.data.sources import questions
from stmoe.metrics import squad as metric

CONTEXTS = ['Ada Lovelace was born in London, in 1815. She wrote the first program for a machine by Babbage.',
            'The river Aare (291 km) flows through Bern; it joins the Rhine near Koblenz, in the north.']
QUESTIONS = [[('Where was Ada born?', 'London'), ('Who built it?', 'Babbage')],
             [('How long is the Aare?', '291 km'), ('Where does it join the Rhine?', 'Koblenz')]]


def article(context, asked):
  answers = lambda a: [dict(text=a, answer_start=context.index(a))]
  qas = [dict(id=f'{context[:3]}{i}', question=q, answers=answers(a)) for i, (q, a) in enumerate(asked)]
  return dict(title='', paragraphs=[dict(context=context, qas=qas)])


@pytest.fixture
def files(tmp_path):
  """A folder of one domain for training, and two files of validation."""
  (tmp_path / 'train').mkdir()
  for name, articles in [('train/ada.json', [article(CONTEXTS[0], QUESTIONS[0])]),
                         ('river.json', [article(CONTEXTS[1], QUESTIONS[1])]),
                         ('ada.json', [article(CONTEXTS[0], QUESTIONS[0])])]:
    (tmp_path / name).write_text(json.dumps(dict(version='1.1', data=articles)))
  return str(tmp_path / 'train'), f'{tmp_path}/river.json+{tmp_path}/ada.json'


def config(files, *overrides):
  cfg = experiment.load('robust_qa/moe_head:smoke', overrides)[0].unlock()
  cfg.data.update(task='squad', files=files, inputs_length=64, stride=16, question_length=32)
  cfg.eval.batch_size = cfg.train.batch_size = 4
  return cfg


def text_of(row, vocabulary):
  return vocabulary.decode([i for i in row if i > 1])


def test_windows_cover_the_context_and_targets_point_at_the_answer(files):
  cfg = config(files)
  source = pipeline.source(cfg)
  vocabulary = pipeline.info(cfg)['vocab']
  answers, covered = {}, {}
  for batch in pipeline.eval_batches(cfg):
    for at in range(4):
      row, real = batch['encoder_input_tokens'][at], batch['encoder_segment_ids'][at].sum()
      if not real:
        assert not batch['decoder_loss_weights'][at].any()
        continue
      assert row[0] == 0 and row[real - 1] == vocabulary.eos_id and not row[real:].any()
      asked, context, _ = np.split(row[1:real], np.flatnonzero(row[1:real] == vocabulary.eos_id) + 1)[:3]
      asked = text_of(asked, vocabulary)
      part = text_of(context, vocabulary)
      covered[asked] = covered[asked] + part[16:] if asked in covered else part      # 16 tokens are shared
      start, end = batch['decoder_target_tokens'][at]
      assert batch['decoder_loss_weights'][at].tolist() == [1, 1] and start <= end
      if end:
        answers.setdefault(asked, set()).add(text_of(row[start:end + 1], vocabulary).strip(' ('))
  assert answers == {q: {a} for asked in QUESTIONS for q, a in asked}
  assert covered == {q: context for context, asked in zip(CONTEXTS, QUESTIONS) for q, _ in asked}
  [first, second, *_] = source.judged()[0]['ada'].examples[0]['windows']
  assert first.last - second.first == 16 and len(first.example(1)['encoder']) == 64


def test_the_best_span_over_windows_is_the_answer(files):
  """Logits that know the targets give EM 100; without them the answer is short and in order."""
  source = pipeline.source(config(files))
  judged, rower = source.judged()
  assert rower is source
  assert list(judged) == ['river', 'ada']
  for examples in (these.examples for these in judged.values()):
    predictions, rng = [], np.random.default_rng(0)
    for example in examples:
      logits = rng.normal(size=(len(example['windows']), 2, 64))
      for one, window in zip(logits, example['windows']):
        targets = window.example(1)['decoder']
        one[[0, 1], targets] += 10 * (targets > 0)
        one[:, 0] = 99                                               # no answer here: not among the spans
      predictions.append(source.answer(example['windows'], logits))
    assert metric.score(examples, predictions) == dict(em=100.0, f1=100.0)


def test_best_span_is_that_of_all_pairs():
  rng = np.random.default_rng(1)
  for longest in (1, 3, 40):
    start, end = rng.normal(size=(2, 12))
    wanted = max((start[i] + end[j], i, j) for i in range(12) for j in range(i, min(i + longest, 12)))
    np.testing.assert_allclose(questions.best_span(start, end, longest), wanted)


def test_words_in_several_tokens(files, tmp_path):
  """A trained vocabulary: an answer is whole words, whatever pieces they have."""
  cfg = config(files, '--config.data.vocab=train:310', f'--config.data.cache_dir={tmp_path}')
  for example in pipeline.source(cfg).judged()[0]['river'].examples:
    window = example['windows'][0]
    first, last = window.answer
    assert window.context.text[window.context.begin[first]:window.context.end[last]] == example['targets']


def augmenting(files, **fields):
  cfg = config(files)
  cfg.data.eda.update(dict(files=('ada',), copies=4, share=0.3) | fields)
  return cfg


def test_augmentation_keeps_answers_and_is_deterministic(files, tmp_path):
  (tmp_path / 'synonyms').write_text('born: created, made\nBabbage: Charles\n\nmachine: device\n')
  fields = dict(synonyms=str(tmp_path / 'synonyms'), copies=8)

  def load(seed=0, **more):
    cfg = augmenting(files, **fields | more)
    cfg.seed = seed
    return pipeline.source(cfg)._questions
  found = load()
  assert [len(each) for each in found['train'].values()] == [2 + 2 * 8]
  assert [len(each) for each in found['validation'].values()] == [2, 2]
  assert found == load() and len({q.context for q in found['train']['ada']}) > 10
  for question in found['train']['ada']:
    assert question.context[question.start:].startswith(question.answers[0])
  replaced, inserted, swapped, deleted = (q.context for q in found['train']['ada'][2:6])
  words = lambda text: sorted(re.findall(r'\S+', text))
  plain = words(CONTEXTS[0])
  assert len(words(replaced)) == len(plain) and {'device', 'Charles.'} <= set(words(replaced))
  assert len(words(inserted)) > len(plain) > len(words(deleted))
  assert words(swapped) == plain and swapped != CONTEXTS[0]


def test_copies_depend_on_seed_and_number_only():
  questions = [squad.Question(str(i), 'Where?', CONTEXTS[0], ('London',), CONTEXTS[0].index('London'))
               for i in range(3)]
  fields = dict(files=('a',), copies=4, share=0.2, synonyms='')
  make = lambda questions, seed=0: eda.augmented(dict(a=questions), fields, seed)['a'][len(questions):]
  assert make(questions)[:8] == make(questions[:2]) and make(questions) != make(questions, seed=1)


def test_synonyms_of_a_text_are_words_used_alike():
  rng = np.random.default_rng(0)
  animals, verbs = ['cat', 'dog', 'cow', 'pig'], ['ran', 'sat', 'ate', 'hid']
  text = ' '.join(f'the {rng.choice(animals)} {rng.choice(verbs)} here' for _ in range(400))
  found = eda.used_alike([text])
  assert set(found['cat']) == set(animals) - {'cat'} and set(found['sat']) == set(verbs) - {'sat'}


@pytest.mark.parametrize('change, said', [
    (lambda qa: qa['answers'][0].update(answer_start=1), "the answer 'London' of question 'Ada0' is not"),
    (lambda qa: qa.pop('question'), "a field 'question' is missing"),
    (lambda qa: qa.update(answers=[]), "question 'Ada0' has no answer"),
    (lambda qa: qa.update(answers=3), 'a field has another type'),
])
def test_broken_questions(change, said, tmp_path):
  found = article(CONTEXTS[0], QUESTIONS[0])
  change(found['paragraphs'][0]['qas'][0])
  (tmp_path / 'a.json').write_text(json.dumps(dict(data=[found])))
  with pytest.raises(errors.UserError, match=said) as caught:
    squad.read(tmp_path / 'a.json')
  assert '\n' not in str(caught.value) and 'a.json' in str(caught.value)


@pytest.mark.parametrize('fields, said', [
    (dict(files=()), 'needs TRAIN,VALIDATION'),
    (dict(files=('a.json', 'b.json')), "no file 'a.json'"),
    (dict(task='squat'), "no set of questions is called 'squat'; nearest: squad"),
    (dict(task='stdlib_questions'), 'task stdlib_questions reads none'),
    (dict(stride=60), 'inputs_length=64, stride=60'),
    (dict(targets_length=3), 'targets_length=3'),
    (dict(eda=dict(files=('ad',), copies=1, share=0.1, synonyms='')), "called 'ad'; nearest: ada"),
    (dict(eda=dict(files=('ada',), copies=0, share=0.1, synonyms='')), 'copies=0'),
    (dict(eda=dict(files=('ada',), copies=1, share=0.1, synonyms='no')), "synonyms: no file 'no'"),
])
def test_mistakes(fields, said, files):
  cfg = config(files)
  cfg.data.update(fields)
  with pytest.raises(errors.UserError, match=said) as caught:
    pipeline.info(cfg)
  assert '\n' not in str(caught.value)


def test_files_that_are_no_json(tmp_path):
  for content, said in [('{', 'is not JSON'), ('[]', 'a list where a dict'),
                        ('{"data": []}', 'holds no question')]:
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(errors.UserError, match=said):
      squad.read(tmp_path / 'a.json')


def test_domains_of_the_standard_library_show_few_questions_of_two(monkeypatch):
  code = 'class {0}(Base):\n  {0}_size = {0}(3)\n\n  def {0}_at(self, x):\n    """Returns {0}."""\n\n'
  documents = [(f'file{n}.py', ''.join(code.format(f'name{n}_{i}') for i in range(20))) for n in range(40)]
  monkeypatch.setattr(squad.corpus, 'stdlib', lambda: dict(train=documents[:30], validation=documents[30:]))
  found = squad.stdlib_domains(())
  assert {domain: len(group) for domain, group in found['train'].items()} == dict(
      arguments=len(found['train']['docstring']), docstring=len(found['train']['docstring']), bases=squad.FEW,
      value=squad.FEW)
  assert len(found['validation']['bases']) == len(found['validation']['arguments']) == 800 - len(
      found['train']['arguments'])
  files = {split: {q.name.split(':')[0] for group in domains.values() for q in group}
           for split, domains in found.items()}
  assert not files['train'] & files['validation'] and len(files['validation']) in range(2, 20)
  question = next(q for q in found['train']['value'])
  assert question.context[question.start:].startswith(question.answers[0]) and '(3)' in question.answers[0]
  with pytest.raises(errors.UserError, match='task stdlib_domains reads none'):
    squad.stdlib_domains(('a.json',))
