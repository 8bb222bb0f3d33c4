"""vocab.json with merges.txt: the ids of the package's own class, and what the files beside them change."""

import json

import pytest
import tokenizers

from stmoe import errors
from stmoe.data.text import tokenizer

TEXTS = ['the cat  sat on the mat.\n', "it's 1234 cats' mats", ' THE CAT\r\n\tsat', 'café cafe\u0301', '',
         '日本 <|endoftext|>x']
END = '<|endoftext|>'


@pytest.fixture
def folder(tmp_path):
  """A function (tokenizer_config.json, other files) -> folder with a vocabulary of 300 pieces."""
  made = tokenizers.ByteLevelBPETokenizer()
  made.train_from_iterator(TEXTS * 4, vocab_size=300, special_tokens=[END], show_progress=False)
  made.save_model(str(tmp_path))

  def with_config(config, **others):
    for name, content in {'tokenizer_config': config, **others}.items():
      (tmp_path / f'{name}.json').write_text(json.dumps(content))
    return tmp_path
  return with_config


def ids(vocabulary, texts):
  return [one.tolist() for one in vocabulary.encode(texts)]


@pytest.mark.parametrize('config', [{}, dict(tokenizer_class='GPT2TokenizerFast', add_prefix_space=True)])
def test_ids_and_texts_are_those_of_the_package(folder, config):
  vocabulary = tokenizer.opened(folder(config))
  blank = config.get('add_prefix_space', False)
  files = (str(folder(config) / name) for name in ('vocab.json', 'merges.txt'))
  wanted = tokenizers.ByteLevelBPETokenizer(*files, add_prefix_space=blank)
  wanted.add_special_tokens([END])
  assert ids(vocabulary, TEXTS) == [wanted.encode(text).ids for text in TEXTS]
  assert [vocabulary.decode(row) for row in ids(vocabulary, TEXTS[:4])] == [
      ' ' * (blank and not text.startswith(' ')) + text for text in TEXTS[:4]]
  assert (vocabulary.eos_id, vocabulary.id('bos_token'), vocabulary.first_ids) == (0, 0, ())
  assert {*vocabulary.files} == {'vocab.json', 'merges.txt', 'tokenizer_config.json'}
  assert tokenizer.within(folder(config)).name == 'vocab.json'


def test_qwens_rule_takes_digits_one_by_one_and_composes_characters(folder):
  vocabulary = tokenizer.opened(folder(dict(tokenizer_class='Qwen2Tokenizer')))
  one, two, both, composed, parted = ids(vocabulary, ['1', '2', '12', 'caf\u00e9', 'cafe\u0301'])
  assert both == one + two and composed == parted
  assert vocabulary.id('bos_token') is None and vocabulary.id('pad_token') == vocabulary.eos_id == 0


def test_added_tokens_are_those_of_their_file(folder):
  size = len(json.loads((folder({}) / 'vocab.json').read_text()))
  added = {'<|user|>': size, '  ': size + 1}
  before = tokenizer.opened(folder({})).digest
  vocabulary = tokenizer.opened(folder(dict(eos_token='<|user|>'), added_tokens=added))
  assert vocabulary.eos_id == size and vocabulary.vocab_size == size + 2 and vocabulary.digest != before
  row, = ids(vocabulary, ['<|user|>  x'])
  assert row[:2] == [size, size + 1] and vocabulary.decode(row) == '  x'            # only one is special


def test_first_and_last_tokens_are_added_where_the_config_says_so(folder):
  vocabulary = tokenizer.opened(folder(dict(add_bos_token=True, add_eos_token=True)))
  assert (vocabulary.first_ids, vocabulary.last_ids) == ((0,), (0,))


def test_vocabularies_of_other_classes_are_refused(folder):
  with pytest.raises(errors.UserError, match="tokenizer_class='RobertaTokenizer' is not read.*GPT2Tokenizer"):
    tokenizer.opened(folder(dict(tokenizer_class='RobertaTokenizerFast')))
  path = folder({})
  (path / 'vocab.json').write_text('{"a": "b"}')
  with pytest.raises(errors.Damaged, match="vocab.json: has the id 'b' for 'a'"):
    tokenizer.opened(path)
  (path / 'merges.txt').unlink()
  with pytest.raises(errors.UserError, match='merges.txt is not beside it'):
    tokenizer.opened(path / 'vocab.json')
  with pytest.raises(errors.UserError, match='the folder has no tokenizer.json'):
    tokenizer.opened(path)
