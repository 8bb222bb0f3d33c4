"""The byte-level BPE in vocab.json and merges.txt, for folders of GPT-2's kind that have no tokenizer.json.

The two files have the pieces and the merges alone. How a text is cut before comes with the class that
tokenizer_config.json names; the rules of the classes here are those of transformers 5.
"""

import pathlib
import typing

import tokenizers

from stmoe import errors
from stmoe import files

VOCAB, MERGES, ADDED = FILES = 'vocab.json', 'merges.txt', 'added_tokens.json'
END = '<|endoftext|>'
# Classes, and the special tokens of each where the folder names none.
CLASSES = {'GPT2Tokenizer': dict(unk_token=END, bos_token=END, eos_token=END),
           'Qwen2Tokenizer': dict(unk_token=END, eos_token=END, pad_token=END)}
# Qwen's rule: contractions, words with what stands before them, digits one by one, marks, line ends, blanks.
PARTS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", r'[^\r\n\p{L}\p{N}]?\p{L}+', r'\p{N}',
         r' ?[^\s\p{L}\p{N}]+[\r\n]*', r'\s*[\r\n]+', r'\s+(?!\S)', r'\s+')


def there(folder: pathlib.Path) -> bool:
  """Returns whether `folder` has both files."""
  return all((folder / name).is_file() for name in (VOCAB, MERGES))


def used(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns dict name -> path of the files beside vocab.json `path`, with itself, that `opened` reads."""
  return {name: path.parent / name for name in FILES if (path.parent / name).is_file()}


def opened(path: pathlib.Path, config: dict) -> tuple[dict, typing.Any]:
  """Returns (tokenizer_config.json with what it leaves out, Tokenizer without added tokens).

  Args:
    path:   of vocab.json, beside which merges.txt is.
    config: tokenizer_config.json.
  Raises:
    UserError: another class, or no merges.txt.
  """
  name = str(config.get('tokenizer_class') or 'GPT2Tokenizer').removesuffix('Fast')
  if name not in CLASSES:
    raise errors.UserError(f'{path}: without tokenizer.json a vocabulary of tokenizer_class={name!r:.60} is '
                           f'not read{errors.nearest(name, CLASSES)} (there are: {", ".join(CLASSES)})')
  if not (path.parent / MERGES).is_file():
    raise errors.UserError(f'data.vocab={str(path)!r}: {MERGES} is not beside it')
  pieces = files.read_json(path)
  wrong = next((piece for piece, i in pieces.items() if type(i) is not int or i < 0), None)
  if wrong is not None:
    raise errors.Damaged(path, f'has the id {pieces[wrong]!r:.40} for {wrong!r:.40}')
  made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(path), str(path.parent / MERGES)))
  blank = config.get('add_prefix_space') is True
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=blank)
  made.decoder = tokenizers.decoders.ByteLevel()
  if name == 'Qwen2Tokenizer':
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex('|'.join(PARTS)), 'isolated'),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=False)])
  config = CLASSES[name] | {key: value for key, value in config.items() if value is not None}
  return _listed(config, path.parent / ADDED), made


def surround(made: typing.Any, config: dict) -> None:
  """Lets the Tokenizer `made` add the first and last tokens that add_bos_token and add_eos_token ask for."""
  first, last = ([_text(config[f'{side}_token'])] if config.get(f'add_{side}_token') is True
                 and config.get(f'{side}_token') else [] for side in ('bos', 'eos'))
  if first or last:
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*first, '$A', *last],
        special_tokens=[(token, made.token_to_id(token)) for token in first + last])


def _text(token):
  return token.get('content') if isinstance(token, dict) else token


def _listed(config, file):
  """`config` with the tokens of added_tokens.json, where it does not list any itself."""
  if 'added_tokens_decoder' in config or not file.is_file():
    return config
  special = {_text(value) for key, value in config.items() if key.endswith('_token')}
  extra = config.get('additional_special_tokens')
  special |= {_text(token) for token in extra} if isinstance(extra, list) else set()
  tokens = {str(i): dict(content=token, special=token in special, normalized=token not in special)
            for token, i in files.read_json(file).items()}
  return config | dict(added_tokens_decoder=tokens)
