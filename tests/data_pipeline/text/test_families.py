"""Tasks with metrics: the text of every form, from rows as released; mistakes in a file; mixtures."""

import json
import sys

import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.data.text import cache
from stmoe.data.text import tasks
from stmoe.data.text import vocab
from stmoe.data.text.families import glue
from stmoe.data.text.families import qa
from stmoe.data.text.families import superglue

MULTIRC = dict(idx=3, passage=dict(text='A <b>dog</b><br>ran.', questions=[
    dict(idx=7, question='Who?', answers=[dict(text='a dog', label=1), dict(text='a cat', label=0)])]))
RECORD = dict(idx=5, passage=dict(
    text='Bob met Ann\n@highlight\nAnn left.\n@highlight\nBob stayed',
    entities=[dict(start=0, end=2), dict(start=8, end=10)]), qas=[
        dict(idx=9, query='@placeholder left', answers=[dict(text='Ann', start=8, end=10)])])
WSC = dict(text='Tom told Max that he, alone, lost.', label=True, idx=0, target=dict(
    span1_index=0, span1_text='Tom', span2_index=5, span2_text='he'))            # the index is off by one
# task -> (a line as released, inputs of the first example, its target)
LINES = dict(
    boolq=(dict(question='is it', passage='It', label=True), 'boolq passage: It question: is it', 'True'),
    cb=(dict(premise='p', hypothesis='h', label='neutral'), 'cb hypothesis: h premise: p', 'neutral'),
    copa=(dict(premise='p', choice1='a', choice2='b', question='cause', label=1),
          'copa choice1: a choice2: b premise: p question: cause', 'choice2'),
    multirc=(MULTIRC, 'multirc question: Who? answer: a dog paragraph: A dog ran.', 'True'),
    record=(RECORD, 'record query: @placeholder left entities: Ann, Bob passage: '
            'Bob met Ann. Ann left. Bob stayed', 'Ann'),
    rte=(dict(premise='p', hypothesis='h', label='entailment'), 'rte hypothesis: h premise: p', 'entailment'),
    wic=(dict(word='w', sentence1='a', sentence2='b', label=False, start1=0),
         'wic sentence1: a sentence2: b word: w', 'False'),
    wsc=(WSC, 'wsc: Tom told Max that *he*, alone, lost.', 'Tom'),
    dpr=(dict(sentence='The cat saw it, the dog.', pronoun='it', candidates=['cat', 'dog'], label=1),
         'wsc: The cat saw *it*, the dog.', 'dog'),
    axb=(dict(sentence1='p', sentence2='h', label='not_entailment'), 'rte hypothesis: h premise: p',
         'not_entailment'),
    xsum=(dict(document='One. Two.', summary='1'), 'summarize: One. Two.', '1'),
    cnn_dailymail=(dict(article='One.', highlights='1'), 'summarize: One.', '1'),
    scitldr=(dict(source=['One.', 'Two.'], target=['1', '2']), 'summarize: One. Two.', '1'),
    dialogsum=(dict(dialogue='a: hi\nb: ho', summary='they greet'), 'summarize: a: hi\nb: ho', 'they greet'),
    squad=(dict(question="Who's he?", context='(He)', answers=dict(text=['a b', 'b'])),
           "question: Who ' s he ? context: ( He )", 'a b'),
    nq_open=(dict(question='who', answer=['Ann', 'Bob']), 'nq question: who', 'Ann'),
    web_questions=(dict(question='who', answers=['Ann']), 'wq question: who', 'Ann'),
    trivia_qa=(dict(Question='who', Answer=dict(Value='Ann', Aliases=['A', 'Ann'])),
               'trivia question: who', 'Ann'),
    arc_challenge=(dict(answerKey='2', question=dict(
        stem='why', choices=[dict(text='x', label='1'), dict(text='yy', label='2')])),
                   'arc question: why choices: (1) x (2) yy', 'yy'),
    winogrande=(dict(sentence='_ ran', option1='Ann', option2='Bob', answer='1'),
                'winogrande sentence: _ ran option1: Ann option2: Bob', 'Ann'),
    anli_r3=(dict(context='p', hypothesis='h', label='c'), 'anli hypothesis: h premise: p', 'contradiction'),
    jsonl=(dict(inputs='a', targets='b', extra=1), 'a', 'b'))

# task of GLUE -> (lines of .tsv as released, inputs of the first example, its target)
TABLES = dict(
    cola=('gj04\t0\t*\tThey "drank.', 'cola sentence: They "drank.', 'unacceptable'),
    sst2=('sentence\tlabel\na fine film \t1', 'sst2 sentence: a fine film ', 'positive'),
    mrpc=('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tp\tq\r',
          'mrpc sentence1: p sentence2: q', 'equivalent'),
    qqp=('id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tp?\tq?\t0',
         'qqp question1: p? question2: q?', 'not_duplicate'),
    stsb=('index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tp\tq\t3.300',
          'stsb sentence1: p sentence2: q', '3.2'),
    mnli=('index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tp\th\tneutral\tcontradiction',
          'mnli hypothesis: h premise: p', 'contradiction'),
    qnli=('index\tquestion\tsentence\tlabel\n0\tq\ts\tnot_entailment', 'qnli question: q sentence: s',
          'not_entailment'),
    glue_rte=('index\tsentence1\tsentence2\tlabel\n0\tp\tq\tentailment', 'rte sentence1: p sentence2: q',
              'entailment'),
    wnli=('index\tsentence1\tsentence2\tlabel\n0\tp\tq\t1', 'wnli sentence1: p sentence2: q', 'entailment'))
TABLES['mnli_mismatched'] = TABLES['mnli']


def write(folder, name, *lines):
  (folder / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return str(folder / name)


@pytest.mark.parametrize('name', LINES)
def test_a_released_line_becomes_text_to_text(tmp_path, name):
  line, inputs, targets = LINES[name]
  task = tasks.get(name, [write(tmp_path, 'a.jsonl', line), write(tmp_path, 'b.jsonl', line)])
  example = next(iter(task.examples('validation')))
  assert (example['inputs'], example['targets']) == (inputs, targets)
  assert list(task.documents('train'))[:2] == [inputs, targets]
  assert not example['choices'] or targets in example['choices']


@pytest.mark.parametrize('form', glue.FORMS, ids=lambda form: form.name)
def test_glue_is_read_from_its_tables_and_from_jsonl(tmp_path, form):
  table, inputs, targets = TABLES[form.name]
  folder, held_out = tmp_path / form.stem, 'dev_mismatched' if form.name == 'mnli_mismatched' else 'dev'
  folder.mkdir()
  for name in ('train', held_out):
    (folder / f'{name}.tsv').write_text(table + '\n')
  task = tasks.get(form.name, [str(tmp_path)])
  assert list(task.documents('validation')) == [inputs, targets]
  [example] = task.examples('train')
  assert targets in example['choices'] and example['references'] == [targets]
  assert task.facts['files'][1].endswith(f'{held_out}.tsv')
  # The same row as TensorFlow Datasets has it: labels are numbers, columns have other names.
  [row] = form.rows(dict(zip(form.header or table.split('\n')[0].strip('\r\ufeff').split('\t'),
                             table.split('\n')[-1].strip('\r').split('\t'))))
  row['label'] = float(row['label']) if form.name == 'stsb' else example['choices'].index(targets)
  path = write(tmp_path, 'a.jsonl', row, row)
  assert next(tasks.get(form.name, [path]).documents('train')) == inputs


def test_similarities_are_rounded_to_fifths_halves_to_even():
  said = lambda label: glue.stsb(dict(sentence1='p', sentence2='q', label=label))[0]['targets']
  assert [said(label) for label in (0, '5.000', 2.5, 0.1, '0.3', 3.91)] == [
      '0.0', '5.0', '2.4', '0.0', '0.4', '4.0']
  with pytest.raises(ValueError, match='label 5.1 is no similarity from 0 to 5'):
    said(5.1)


def test_lines_of_qqp_that_are_cut_are_left_out_and_others_are_named(tmp_path):
  table = TABLES['qqp'][0] + '\n6\t1\t2\tbroken\nwithin\tq?\t0\n7\t1\t2\tr?\ts?\t1\n'
  (tmp_path / 'a.tsv').write_text(table)
  task = tasks.get('qqp', [str(tmp_path / 'a.tsv')] * 2)
  assert [example['targets'] for example in task.examples('train')] == ['not_duplicate', 'duplicate']
  (tmp_path / 'test.tsv').write_text('id\tquestion1\tquestion2\n0\tp?\tq?\n')
  with pytest.raises(errors.UserError, match='test.tsv has no row of task qqp'):
    tasks.get('qqp', [str(tmp_path / 'test.tsv')])
  (tmp_path / 'a.tsv').write_text('sentence\tlabel\nfine\t1\nbad')
  with pytest.raises(errors.UserError, match="a.tsv, line 3 is no row of task sst2: the field 'label' is"):
    tasks.get('sst2', [str(tmp_path / 'a.tsv')])


def test_examples_of_one_question_are_a_group_and_answers_are_expanded():
  twice = dict(RECORD['qas'][0], answers=[dict(text='Ann'), dict(text='Bob')])
  rows = superglue.record_rows(RECORD | dict(qas=[twice]))
  found = [example for row in rows for example in superglue.record(row)]
  assert [example['targets'] for example in found] == ['Ann', 'Bob']
  assert {example['group'] for example in found} == {'5/9'}
  assert found[0]['references'] == ['Ann', 'Bob']
  groups = [superglue.multirc(row)[0]['group'] for row in superglue.multirc_rows(MULTIRC)]
  assert groups == ['3/7', '3/7']
  unknown = superglue.record(dict(rows[0], answers=[]))
  assert unknown[0]['targets'] == '<unk>'


def test_wsc_trains_on_right_referents_and_judges_all(tmp_path):
  wrong = WSC | dict(label=False)
  files = [write(tmp_path, name, WSC, wrong) for name in ('a.jsonl', 'b.jsonl')]
  task = tasks.get('wsc', files)
  assert [len(list(task.examples(split))) for split in tasks.SPLITS] == [1, 2]


def test_closed_book_keeps_every_answer():
  assert qa.trivia_answers(dict(answer=dict(value='b', aliases=['a', 'b']))) == {'b': None, 'a': None}


def test_files_of_a_folder_are_found_as_they_are_released(tmp_path):
  line = LINES['boolq'][0]
  (tmp_path / 'CB').mkdir()
  write(tmp_path, 'BoolQ_train.jsonl', line)
  write(tmp_path, 'BoolQ_val_a.jsonl', line, line)
  write(tmp_path / 'CB', 'train.jsonl', LINES['cb'][0])
  write(tmp_path / 'CB', 'val.jsonl', LINES['cb'][0])
  assert len(list(tasks.get('boolq', [tmp_path]).examples('validation'))) == 2
  assert len(list(tasks.get('cb', [tmp_path]).examples('validation'))) == 1
  with pytest.raises(errors.UserError, match='no RTE_train.jsonl'):
    tasks.get('rte', [tmp_path])


@pytest.mark.parametrize('name,second,said', [
    ('boolq', '{"question": "a", "label": true}', "the field 'passage' is missing"),
    ('boolq', '{"question": "a", "passage": "b", "label": 2}', 'label 2 is no number from 0 to 1'),
    ('cb', '{"premise": "a", "hypothesis": "b", "label": "maybe"}', "label 'maybe' is none of entailment"),
    ('jsonl', '{"inputs": "a"', 'not JSON'),
    ('jsonl', '{"inputs": "a", "targets": 3}', 'are texts'),
    ('jsonl', '{"inputs": " ", "targets": "b"}', 'are empty'),
    ('jsonl', '{"inputs": "a", "targets": "b", "references": "b"}', "references is 'b', which must be"),
    ('jsonl', '{"inputs": "a", "targets": "b", "choices": "bc"}', "choices is 'bc', which must be a list"),
    ('jsonl', '[1]', 'another type'),
])
def test_a_bad_line_is_named(tmp_path, name, second, said):
  good = write(tmp_path, 'good.jsonl', LINES[name][0])
  (tmp_path / 'bad.jsonl').write_text(json.dumps(LINES[name][0]) + '\n\n' + second + '\n')
  wanted = f'bad.jsonl, line 3 is no row of task {name}: .*{said}'
  with pytest.raises(errors.UserError, match=wanted) as caught:
    tasks.get(name, [good, str(tmp_path / 'bad.jsonl')])
  assert '\n' not in str(caught.value)


def test_other_mistakes(tmp_path):
  with pytest.raises(errors.UserError, match="no task is called 'bolq'; nearest: boolq"):
    tasks.get('bolq')
  with pytest.raises(errors.UserError, match='--config.data.jsonl=TRAIN'):
    tasks.get('scitldr')
  with pytest.raises(errors.UserError, match='no metric is called'):
    tasks.get('jsonl', [write(tmp_path, 'a.jsonl', *[LINES['jsonl'][0]] * 2)], ['rogue'])
  with pytest.raises(errors.UserError, match='no file'):
    tasks.get('jsonl', [str(tmp_path / 'none.jsonl')])


def test_a_cache_keeps_the_examples(tmp_path):
  path = write(tmp_path, 'a.jsonl', *[dict(inputs=f'{i}', targets='b', choices=['b', 'c']) for i in range(3)])
  task = tasks.get('jsonl', [path], ['macro_f1'])
  found = cache.of(task, vocab.Bytes(), tmp_path / 'cache')
  assert cache.records(found) == list(task.examples('validation'))
  assert cache.records(found)[0]['inputs'] == '2' and task.metrics == ('macro_f1',)


def test_a_mixture_of_names_is_weighed_by_size_up_to_the_cap(tmp_path, config):
  for name, count in (('boolq', 6), ('cb', 2)):
    stem = tasks.known()[name].__self__.stem
    write(tmp_path, f'{stem}_train.jsonl', *[LINES[name][0]] * count)
    write(tmp_path, f'{stem}_val.jsonl', LINES[name][0])
  cfg = config(task='', objective='seq2seq', join=False, mixture=('cb', 'boolq'), mixture_cap=4,
               jsonl=(str(tmp_path),), files=(), inputs_length=64, targets_length=16)
  assert pipeline.source(cfg).weights == [4.0, 2.0]
  assert pipeline.eval_batches(cfg).num_rows == 2
  batches = pipeline.train_iterator(cfg)
  assert next(batches)['decoder_loss_weights'].any()
  batches.close()


@pytest.mark.parametrize('name, instead', [
    ('c4', '--config.data.task=text --config.data.files=FILE'), ('wmt14_en_de', '--config.data.task=pairs'),
    ('boolq', '--config.data.jsonl=TRAIN,VALIDATION')])
def test_a_set_that_is_not_there_is_said_in_our_words(monkeypatch, name, instead):
  said = "raise AssertionError('Dataset: could not find data in /nowhere. Call download_and_prepare().')"
  monkeypatch.setattr(tasks, 'READER', (sys.executable, '-c', said))
  with pytest.raises(errors.UserError, match='the set is not there, and nothing is downloaded') as caught:
    list(tasks.get(name).documents('train'))
  assert instead in str(caught.value) and f'task {name}' in str(caught.value)
  assert 'AssertionError' not in str(caught.value) and '\n' not in str(caught.value)


def test_a_set_without_its_packages_names_the_extra(monkeypatch):
  monkeypatch.setattr(tasks, 'READ_WITH', ('jax', 'seqio_that_nobody_has'))
  with pytest.raises(errors.UserError, match=r'task boolq: .* not installed: seqio_that_nobody_has; pip '
                                             r'install "stmoe\[seqio\]", or give'):
    list(tasks.get('boolq').examples('train'))
