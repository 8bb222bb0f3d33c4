"""The languages of a translation: that of the texts which a translator reads, and that in which it answers.

The tokenizer of a translator of many languages (NLLB, arXiv:2207.04672) has a special token for each of them.
One stands beside a text that the encoder reads. Another is what the decoder writes first.
"""

import typing

import ml_collections

from stmoe import errors
from stmoe import lookup


def speak(cfg: ml_collections.ConfigDict, vocabulary: typing.Any, source: str | None,
          target: str | None) -> None:
  """Makes `vocabulary` and section `model` of `cfg` those of a translation.

  Args:
    source, target: special tokens such as 'fra_Latn'; None = as the files of the model say.
  Raises:
    UserError: the model is no encoder-decoder, or its vocabulary has no such token, or none beside a text.
  """
  for option, name in (('--source-language', source), ('--target-language', target)):
    if name is None:
      continue
    if not lookup.encodes_inputs(cfg.model.name) or not hasattr(vocabulary, 'first_ids'):
      raise errors.UserError(f'{option} {name}: languages are tokens of an encoder-decoder with a '
                             'tokenizer.json, and this run is none; nearest: without it')
    token = vocabulary.special.get(name)
    if token is None:
      raise errors.UserError(f'{option} {name}: the vocabulary has no such special token'
                             f'{errors.nearest(name, vocabulary.special)}')
    if option == '--target-language':
      with cfg.unlocked():
        cfg.model.forced_id = token
    else:
      _read(vocabulary, token)


def _read(vocabulary, token):
  """Puts `token` in place of the language that `vocabulary` writes beside a text."""
  beside = *vocabulary.first_ids, *vocabulary.last_ids
  languages = [i for i in beside if i != vocabulary.eos_id]
  if len(languages) != 1:
    raise errors.UserError(f'--source-language: {vocabulary.path} adds {len(languages)} tokens to a text '
                           'besides the one that ends it, and the language is one; nearest: without it')
  put = lambda ids: tuple(token if i in languages else i for i in ids)
  vocabulary.first_ids, vocabulary.last_ids = put(vocabulary.first_ids), put(vocabulary.last_ids)
