"""Translations: the language of a text beside it, and the forced first token of an answer."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tokenizers

from stmoe import errors
from stmoe import lookup
from stmoe.answer import infer
from stmoe.answer import languages
from stmoe.data.text import tokenizer
from stmoe.interop import fields

ENGLISH, FRENCH, EOS = 5, 6, 2


@pytest.fixture
def vocabulary(tmp_path):
  """One of words, with the special tokens and the post-processor of NLLB's form."""
  named = ['<s>', '<pad>', '</s>', '<unk>', 'good', 'eng_Latn', 'fra_Latn', 'day']
  words = {word: i for i, word in enumerate(named)}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='<unk>'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.add_special_tokens(['<s>', '<pad>', '</s>', '<unk>', 'eng_Latn', 'fra_Latn'])
  made.post_processor = tokenizers.processors.TemplateProcessing(
      single='eng_Latn $A </s>', special_tokens=[('eng_Latn', ENGLISH), ('</s>', EOS)])
  made.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(dict(eos_token='</s>')))
  return tokenizer.opened(tmp_path)


def config(**model):
  model = dict(name='t5', forced_id=None) | model
  return ml_collections.ConfigDict(dict(model=model, data=dict(inputs_length=8, vocab='')))


def test_a_text_is_read_with_its_language(vocabulary):
  cfg = config()
  read = lambda: infer.tokens(cfg, vocabulary, 'here', 'good day')
  assert read() == [ENGLISH, 4, 7, EOS]
  languages.speak(cfg, vocabulary, None, None)
  assert read() == [ENGLISH, 4, 7, EOS] and cfg.model.forced_id is None
  languages.speak(cfg, vocabulary, 'fra_Latn', 'eng_Latn')
  assert read() == [FRENCH, 4, 7, EOS] and cfg.model.forced_id == ENGLISH


def test_languages_that_are_none(vocabulary):
  with pytest.raises(errors.UserError, match='--target-language fra_Lat: .*nearest: fra_Latn'):
    languages.speak(config(), vocabulary, None, 'fra_Lat')
  with pytest.raises(errors.UserError, match='--source-language good: the vocabulary has no such'):
    languages.speak(config(), vocabulary, 'good', None)
  with pytest.raises(errors.UserError, match='tokens of an encoder-decoder'):
    languages.speak(config(name='lm'), vocabulary, None, 'fra_Latn')
  vocabulary.first_ids = ()
  with pytest.raises(errors.UserError, match='adds 0 tokens to a text'):
    languages.speak(config(), vocabulary, 'fra_Latn', None)


@pytest.mark.slow
def test_the_first_token_is_forced_and_read():
  """What comes after it is what comes after the same token, chosen freely."""
  blocks = dict(d=dict(layer='dense', d_ff=8))
  section = dict(name='t5', vocab_size=12, d_model=8, encoder=(('d', 1),), decoder=(('d', 1),), num_heads=2,
                 head_dim=4, start_id=EOS, scan_layers=False)
  make = lambda **more: lookup.recipe('model', section | more)(blocks=blocks, rngs=nnx.Rngs(3))
  forced, free = make(forced_id=FRENCH), make()
  ids = jnp.array([[ENGLISH, 4, 7, EOS]])
  batch = dict(encoder_input_tokens=ids, encoder_segment_ids=jnp.ones_like(ids),
               encoder_positions=jnp.arange(4)[None])
  greedy = jax.jit(lambda model: lookup.recipe('strategy', dict(name='greedy', eos_id=(EOS,)))()(
      model, batch, 4, jax.random.key(0)))
  written = np.asarray(greedy(forced))[0]
  logits, cache = free.begin(batch, 4)
  assert written[0] == FRENCH != int(jnp.argmax(logits))
  logits, _ = free.step(jnp.array([FRENCH]), jnp.ones(1, bool), cache)
  assert written[1] == int(jnp.argmax(logits))
  with pytest.raises(errors.UserError, match='forced_id=12 is no id.*nearest: 11'):
    make(forced_id=12)


def test_the_forced_token_of_config_files_is_read():
  model = dict(name='t5', vocab_size=12)
  assert fields.ids(dict(forced_bos_token_id=3), dict(forced_bos_token_id=4), model) == dict(forced_id=4)
  assert fields.ids(dict(forced_bos_token_id=3), {}, dict(name='lm', vocab_size=12)) == {}
  with pytest.raises(errors.UserError, match='forced_bos_token_id is no id'):
    fields.ids(dict(forced_bos_token_id=12), {}, model)
