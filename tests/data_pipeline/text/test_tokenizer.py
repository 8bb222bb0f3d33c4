"""tokenizer.json as a vocabulary: what its folder's files change, caches and runs, sentinels, bad files.

That ids and texts are the reference's is tested in tests/interop/test_tokenizers.py.
"""

import functools
import json
import pathlib
import shutil

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.data.text import cache
from stmoe.data.text import chat
from stmoe.data.text import detokenize
from stmoe.data.text import tasks
from stmoe.data.text import tokenizer
from stmoe.data.text import vocab
from tests.train import tiny_run

DATA = pathlib.Path(__file__).parents[2] / 'data'
BPE, T5 = DATA / 'tokenizers' / 'bpe_mixtral', DATA / 'tokenizers' / 'unigram_t5'
TEXT = 'Who goes there?\n\tSpeak! naïve café — 日本語 🙂 '


@pytest.fixture
def changed(tmp_path):
  """A function (case, file -> function that changes its JSON) -> folder of a copy."""
  def make(case, **changes):
    folder = tmp_path / f'{case.name}-{len(list(tmp_path.iterdir()))}'
    folder.mkdir()
    for name in ('tokenizer.json', *tokenizer.OTHERS):
      if (case / name).is_file():
        content = json.loads((case / name).read_text())
        changes.get(name.removesuffix('.json'), lambda _: None)(content)
        (folder / name).write_text(json.dumps(content))
    return folder
  return make


def test_file_and_folder_are_the_same_vocabulary(tmp_path):
  file, folder = tokenizer.opened(BPE / 'tokenizer.json'), tokenizer.opened(BPE)
  assert file.digest == folder.digest and (file.vocab_size, file.eos_id) == (480, 2)
  assert [*folder.files] == ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
                             'generation_config.json']
  shutil.copyfile(DATA / 'sentencepiece' / 'seqio_test_26.model', tmp_path / 'tokenizer.model')
  assert isinstance(tokenizer.opened(tmp_path), vocab.Pieces)
  shutil.copyfile(BPE / 'tokenizer.json', tmp_path / 'tokenizer.json')     # comes first, as in transformers
  assert isinstance(tokenizer.opened(tmp_path), tokenizer.Tokens)


@pytest.mark.parametrize('case', [BPE, DATA / 'checkpoints' / 'with_text_olmoe'], ids=['fallback', 'bytes'])
@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=('Cs',)), max_size=40))
def test_streams_are_the_text(case, text):
  used = opened(case)
  ids = used.encode([text])[0]
  stream = used.stream()
  assert ''.join(map(stream, ids)) + stream.rest() == used.decode(ids)


@functools.cache
def opened(case):
  return tokenizer.opened(case)


def test_a_broken_character_comes_in_the_end():
  used = opened(BPE)
  ids = used.encode(['a\u00e9'])[0].tolist()
  stream = used.stream()
  assert ''.join(map(stream, ids[:-1])) == 'a'
  assert stream.rest() == detokenize.BROKEN and stream.rest() == ''


def test_bytes_of_ids():
  """By hand: byte pieces are 1, special tokens 0, pieces with a blank in front count it."""
  used = opened(BPE)
  size = lambda text: used.num_bytes(used.encode([text])[0]).sum()
  assert size('\u65e5') == 4 and size('x \u65e5 y') == 8             # with the blank before the text
  assert used.num_bytes(np.array([0, 1, 2, 480, 10**6])).tolist() == [0] * 5


def test_sentinels_are_the_file_s_own_or_above():
  own = opened(T5)
  assert own.extra_ids == 8 and own.vocab_size == 408
  assert own.sentinel(0) == 407 and own.sentinel(np.arange(3)).tolist() == [407, 406, 405]
  assert tokenizer.opened(T5, 8).digest == own.digest
  with pytest.raises(errors.UserError, match='has 8 sentinels; nearest: 8'):
    tokenizer.opened(T5, 100)
  above = tokenizer.opened(BPE, 10)
  assert above.vocab_size == 490 and above.sentinel(0) == 489 and above.sentinel(9) == 480
  assert above.encode(['a <extra_id_0>'])[0][-1] == 489 and above.digest != opened(BPE).digest


def test_what_decides_ids_is_in_the_digest(changed):
  plain = changed(BPE)
  digest = tokenizer.opened(plain).digest
  others = [
      changed(BPE, tokenizer=lambda c: c['model']['vocab'].update(zz=480)),
      changed(BPE, tokenizer_config=lambda c: c.update(eos_token='<unk>')),
      changed(BPE, tokenizer_config=lambda c: c.update(pad_token='[PAD]')),
      changed(BPE, tokenizer_config=lambda c: c.update(split_special_tokens=True))]
  found = [tokenizer.opened(folder).digest for folder in others]
  assert len({digest, *found}) == 5
  same = changed(BPE, tokenizer_config=lambda c: c.update(chat_template='x', padding_side='right'))
  assert tokenizer.opened(same).digest == digest


def test_settings_of_the_file_that_would_cut_and_pad_are_not_kept(changed):
  cut = dict(direction='Right', max_length=3, strategy='LongestFirst', stride=0)
  pad = dict(strategy=dict(Fixed=9), direction='Right', pad_to_multiple_of=None, pad_id=0, pad_type_id=0,
             pad_token='<unk>')
  folder = changed(BPE, tokenizer=lambda c: c.update(truncation=cut, padding=pad))
  texts = ['a', TEXT]
  for mine, ids in zip(tokenizer.opened(folder).encode(texts), opened(BPE).encode(texts), strict=True):
    assert mine.tolist() == ids.tolist()


def test_ends_of_other_files(changed):
  drop = lambda c: c.pop('eos_token')
  folder = changed(BPE, tokenizer_config=drop, special_tokens_map=drop,
                   generation_config=lambda c: c.update(eos_token_id=[7, 2]))
  assert tokenizer.opened(folder).eos_id == 7
  (folder / 'generation_config.json').unlink()
  used = tokenizer.opened(folder)
  assert used.encode(['a'])[0].size      # ids need no end
  with pytest.raises(errors.UserError, match='no token that ends a text'):
    _ = used.eos_id


def test_templates_are_programs_in_a_box(changed):
  used = tokenizer.opened(changed(BPE))
  talk = dict(messages=[dict(role='user', content='hi', name=None)])
  said = lambda template, **more: (setattr(used, 'template', template), chat.text(used, talk | more))[1]
  assert said('{% for m in messages %}{{ m.role }}{{ m.name is defined }}{% endfor %}') == 'userFalse'
  assert said('{{ bos_token }}{{ tools | tojson }}', tools=[{'a': '<é>'}]) == '<s>[{"a": "<é>"}]'
  block = '{% generation %}{% set n.x = 2 %}{% endgeneration %}'
  assert said('{% set n = namespace(x=1) %}' + block + '{{ n.x }}') == '2'
  for template in ('{{ raise_exception("no\nsystem") }}', '{% for %}', '{{ missing.field }}', '{{ 1 / 0 }}',
                   '{{ messages.append(1) }}', '{{ "".__class__.__mro__ }}{{ "".__class__.__mro__[1] }}',
                   '{{ namespace.__init__.__globals__ }}', '{{ raise_exception.__globals__["json"] }}',
                   '{% set n = namespace(__html__=1) %}', '{% set n = namespace() %}{% set n.__x__ = 1 %}',
                   '{% for i in range(10**9) %}{% endfor %}', '{% include "/etc/passwd" %}'):
    with pytest.raises(errors.UserError, match='the chat template says: .') as caught:
      said(template)
    assert '\n' not in str(caught.value)
  with pytest.raises(errors.UserError, match='no chat template'):
    chat.text(opened(T5), talk)
  with pytest.raises(errors.UserError, match='no chat template'):
    chat.text(vocab.Bytes(), talk)


def test_the_template_in_a_file_of_its_own_comes_first(changed):
  several = [dict(name='rag', template='no'), dict(name='default', template='yes')]
  folder = changed(BPE, tokenizer_config=lambda c: c.update(chat_template=several))
  assert tokenizer.opened(folder).template == 'yes'
  (folder / 'chat_template.jinja').write_text('{{ 1 }}')
  used = tokenizer.opened(folder)
  assert used.template == '{{ 1 }}' and 'chat_template.jinja' in used.files


def test_bad_files_are_one_line(tmp_path, changed):
  for content in (b'', b'{}', b'[]', b'\x80', b'{"model": {"type": "BPE"}}', json.dumps(dict(
      json.loads((BPE / 'tokenizer.json').read_text()), model=dict(type='WordLevel', vocab={}))).encode(),
      (BPE / 'tokenizer.json').read_bytes()[:4000]):
    (tmp_path / 'tokenizer.json').write_bytes(content)
    with pytest.raises(errors.UserError) as caught:
      _ = tokenizer.opened(tmp_path).eos_id
    assert 'tokenizer.json' in str(caught.value) and '\n' not in str(caught.value)
  with pytest.raises(errors.UserError, match='tokenizer_config.json: has a chat_template that is no text'):
    tokenizer.opened(changed(BPE, tokenizer_config=lambda c: c.update(chat_template=5)))
  with pytest.raises(errors.UserError, match='no tokenizer.json that can be read'):
    tokenizer.opened(changed(T5, tokenizer=lambda c: c['post_processor'].update(special_tokens={})))
  with pytest.raises(errors.UserError, match='at most 16,777,216'):
    tokenizer.opened(changed(BPE, tokenizer=lambda c: c['model']['vocab'].update(zz=1 << 30)))
  (tmp_path / 'none').mkdir()
  with pytest.raises(errors.UserError, match='the folder has no tokenizer.json and no SentencePiece model'):
    cache.vocabulary_of(str(tmp_path / 'none'), ())
  with pytest.raises(errors.UserError, match="^data.vocab='' names no vocabulary; nearest: data.vocab=bytes"):
    cache.vocabulary_of('', ())
  with pytest.raises(errors.UserError, match='choose bytes, train:N or the path of a tokenizer.json'):
    cache.vocabulary_of(str(tmp_path / 'tokenizer_2.json'), ())


def test_a_run_keeps_the_files(tmp_path, changed):
  """Its rows are the same when the tokenizer's folder has changed or is gone, and the run was moved."""
  folder = changed(BPE)
  corpus = tiny_run.write_corpus(tmp_path)
  cfg = tiny_run.config(corpus, **{'data.vocab': str(folder)})
  opened_first = pipeline.source(cfg)
  (tmp_path / 'run').mkdir()
  record.write(tmp_path / 'run', cfg, opened_first)
  (folder / 'tokenizer_config.json').write_text('{}')
  (tmp_path / 'run').rename(tmp_path / 'moved')
  again = pipeline.source(cfg, tmp_path / 'moved')
  assert again.recorded and again.vocabulary.digest == opened_first.vocabulary.digest
  assert again.vocabulary.path == tmp_path / 'moved' / 'data' / 'tokenizer.json'
  batches = [pipeline.eval_batches(cfg, opened=found) for found in (opened_first, again)]
  batch, other = (of[len(of) - 1] for of in batches)
  assert all(np.array_equal(batch[name], other[name]) for name in batch)
  assert (batch['decoder_target_tokens'] == 2).any()                 # documents end with </s>
  (tmp_path / 'moved' / 'data' / 'tokenizer_config.json').write_text('{}')   # no longer the run's
  assert pipeline.vocabulary(cfg, record.read(tmp_path / 'moved')).path == folder / 'tokenizer.json'


def test_another_file_makes_another_cache(tmp_path, changed):
  corpus = tiny_run.write_corpus(tmp_path)
  task = tasks.get('text', (str(corpus / 'a.txt'),))
  keys = [cache.of(task, tokenizer.opened(folder), tmp_path).key for folder in (
      changed(BPE), changed(BPE), changed(BPE, tokenizer=lambda c: c['model'].update(ignore_merges=True)))]
  assert keys[0] == keys[1] != keys[2]


def test_a_pair_that_holds_the_end_is_refused(tmp_path):
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(dict(
      inputs=f'is {i} </s> even', targets='yes')) + '\n' for i in range(60)))
  task = tasks.get('pairs', (str(tmp_path / 'a.jsonl'),))
  with pytest.raises(errors.UserError, match="holds the token that ends texts: 'is 0 </s> even'"):
    cache.of(task, opened(BPE), tmp_path)
