"""The vocabulary in a tokenizer.json, as transformers 5 reads it, and what opens any vocabulary in files.

Beside tokenizer.json a folder may have OTHERS. They name special tokens, and say how decoding tidies blanks
and how a conversation is written. Nothing is downloaded, and nothing in the files runs here; for templates
see chat.py.
"""

from collections.abc import Iterable
import contextlib
import functools
import hashlib
import json
import pathlib
import re
import typing

import numpy as np
import tokenizers

from stmoe import errors
from stmoe import files
from stmoe.data.text import detokenize
from stmoe.data.text import merges
from stmoe.data.text import vocab

FILE, CONFIG, MAP, GENERATION = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
                                 'generation_config.json')
TEMPLATE = 'chat_template.jinja'
OTHERS = (CONFIG, MAP, GENERATION, TEMPLATE)
PIECES = ('spiece.model', 'tokenizer.model')                         # SentencePiece
MOST = 1 << 24                           # ids
NAMED = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
BPE_TOO = 'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output'
BYTE = re.compile('<0x[0-9A-F]{2}>')     # a piece of byte fallback
# What follows a blank that is left out, and what replaces what, in this order.
TIDY = (' .', '.'), (' ?', '?'), (' !', '!'), (' ,', ','), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (
    " 's", "'s"), (" 've", "'ve"), (" 're", "'re")


def opened(path: str | pathlib.Path, extra_ids: int = 0) -> typing.Any:
  """Returns the vocabulary in file or folder `path`: Tokens, or `vocab.Pieces` of a SentencePiece model.

  Raises UserError for a folder that has neither; vocab.json and merges.txt (`merges.py`) are Tokens, too.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return (Tokens if path.suffix == '.json' else vocab.Pieces)(path, extra_ids)
  file = within(path)
  if file is None:
    raise errors.UserError(f'data.vocab={str(path)!r}: the folder has no {FILE} and no SentencePiece model '
                           f'({", ".join(PIECES)})')
  return opened(file, extra_ids)


def within(folder: str | pathlib.Path) -> pathlib.Path | None:
  """Returns the path of the vocabulary in `folder`, or None.

  That is tokenizer.json, else a SentencePiece model, else vocab.json with merges.txt.
  """
  folder = pathlib.Path(folder)
  names = (FILE, *PIECES, *[merges.VOCAB] * merges.there(folder))
  return next((folder / name for name in names if (folder / name).is_file()), None)


class Tokens:
  """The tokenizer in file tokenizer.json; the interface is that of vocab.py, with what a model's files say.

  The ids are those of the package `tokenizers`, without the first and last tokens that the file's
  post-processor adds. A special token that is written in a text is that token, as in the reference.

  Attributes:
    files:    dict name -> path of tokenizer.json (or vocab.json, merges.txt) and OTHERS, what a run has to
      keep.
    named:    dict 'bos_token', ... -> its text, of special tokens that the files name.
    first_ids, last_ids: what the post-processor adds to a text.
    template: Jinja text that writes conversations, or None.
    adds_bos: what `add_bos_token` says, which transformers 5 does not look at; None = nothing.

  Args:
    extra_ids: sentinels that are wanted. Where the file has none, they are added above its ids.
  Raises:
    UserError: the file is no tokenizer.json, or has sentinels, but fewer.
  """

  def __init__(self, path: str | pathlib.Path, extra_ids: int = 0):
    self.path = pathlib.Path(path)
    found = {name: self.path.parent / name for name in OTHERS if (self.path.parent / name).is_file()}
    own = merges.used(self.path) if self.path.name == merges.VOCAB else {FILE: self.path}
    self.files, config = own | found, _config(found)
    content = b''.join(vocab.read(file) for file in own.values())
    with self._sound():
      if self.path.name == merges.VOCAB:
        config, self._tokenizer = merges.opened(self.path, config)
      else:
        self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
      self._tokenizer.no_truncation()    # which the file may ask for
      self._tokenizer.no_padding()
    self.named = {name: _text(token) for name, token in _named(config).items()}
    self.template = files.read_text(found[TEMPLATE]) if TEMPLATE in found else _template(config, found)
    self.adds_bos = config.get('add_bos_token')
    with self._sound():
      _add(self._tokenizer, config)
      if self.path.name == merges.VOCAB:
        merges.surround(self._tokenizer, config)
    self.extra_ids, added = self._sentinels(extra_ids)
    self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
    if not 0 < self.vocab_size <= MOST:
      raise errors.UserError(f'data.vocab={str(path)!r} has {self.vocab_size:,} ids; at least 1 and at most '
                             f'{MOST:,}')
    self._sides = {side: config.get(f'{side}_side', 'right') for side in ('padding', 'truncation')}
    bpe = type(self._tokenizer.model).__name__ == 'BPE'
    self._tidy = config.get('clean_up_tokenization_spaces') is True and not (bpe and not config.get(BPE_TOO))
    self.first_ids, self.last_ids = self._around()
    self._eos_id = self._ending(found)
    self.digest = f'{hashlib.sha256(content).hexdigest()}+{added}+{self._special(config)}'

  @property
  def eos_id(self) -> int:
    """Returns the id behind every text of training; raises UserError where the files name none."""
    if self._eos_id is None:
      raise errors.UserError(f'{self.path} has no token that ends a text: no eos_token in {CONFIG} or {MAP}, '
                             f'no eos_token_id in {GENERATION} beside it')
    return self._eos_id

  def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns for each text the i32[tokens] ids, without `first_ids` and `last_ids`."""
    with self._sound():
      found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(one.ids, np.int32) for one in found]

  def rows(self, texts: Iterable[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids i32[B,T], mask i32[B,T]) of texts with `first_ids` and `last_ids`, padded to the longest.

    Sides of padding and cutting are those that tokenizer_config.json names, else the right.

    Args:
      length: most ids of a text; None = no text is cut.
    Raises:
      UserError: texts of several lengths, and no pad_token.
    """
    room = None if length is None else max(length - len(self.first_ids) - len(self.last_ids), 0)
    cut = slice(None) if room is None else slice(room) if self._sides['truncation'] == 'right' else slice(
        -room or None, None if room else 0)
    rows = [[*self.first_ids, *ids[cut].tolist(), *self.last_ids] for ids in self.encode(texts)]
    longest, pad = max(map(len, rows), default=0), self.id('pad_token')
    if pad is None and any(len(row) < longest for row in rows):
      raise errors.UserError(f'{self.path} has no pad_token for texts of several lengths')
    ids = np.full((len(rows), longest), pad or 0, np.int32)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
      where = slice(len(row)) if self._sides['padding'] == 'right' else slice(longest - len(row), None)
      ids[at, where], mask[at, where] = row, 1
    return ids, mask

  def decode(self, ids: typing.Any, special: bool = False) -> str:
    """Returns the text of all `ids`, with special tokens or without; ids that are no token bring none."""
    text = self._decode(np.asarray(ids).tolist(), special)
    for old, new in TIDY if self._tidy else ():
      text = text.replace(old, new)
    return text

  def stream(self) -> detokenize.Stream:
    """Returns the `detokenize.Stream` of a text, without special tokens and before blanks are tidied."""
    added = self._tokenizer.get_added_tokens_decoder()
    return detokenize.Stream(self._decode, frozenset(i for i, token in added.items() if token.special))

  def id(self, name: str) -> int | None:
    """Returns the id of the special token `name`, such as 'bos_token', or None."""
    return self._tokenizer.token_to_id(self.named[name]) if name in self.named else None

  @functools.cached_property
  def special(self) -> dict[str, int]:
    """Returns dict text -> id of the special tokens."""
    added = self._tokenizer.get_added_tokens_decoder()
    return {token.content: i for i, token in added.items() if token.special}

  def sentinel(self, i: typing.Any) -> typing.Any:
    """Returns the id of sentinel `i` (an int or an array)."""
    found = self._sentinel_ids[i]
    return found if np.ndim(found) else int(found)

  def num_bytes(self, ids: np.ndarray) -> np.ndarray:
    """Returns for each of `ids` (an array) the bytes of text that the id stands for, 0 of special tokens."""
    return self._sizes[np.minimum(ids, self.vocab_size)]

  def _decode(self, ids, special=False):
    with self._sound():
      return self._tokenizer.decode(ids, skip_special_tokens=not special)

  @contextlib.contextmanager
  def _sound(self):
    """Context in which a file that `tokenizers` cannot work with is a UserError."""
    try:
      yield
    except errors.UserError:
      raise
    except BaseException as error:       # plain exceptions are raised, and what ends a thread of Rust
      if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
        raise
      raise errors.UserError(f'data.vocab={str(self.path)!r} is no {FILE} that can be read: '
                             f'{" ".join(str(error).split())[:200]}') from error

  def _sentinels(self, wanted):
    """(how many of <extra_id_0>, <extra_id_1>, ... there are now, how many of them are added here)."""
    ids = self._tokenizer.get_vocab()
    own = next(i for i in range(len(ids) + 1) if f'<extra_id_{i}>' not in ids)
    if 0 < own < wanted:
      raise errors.UserError(f'data.extra_ids={wanted}: {self.path} has {own} sentinels; nearest: {own}')
    added = 0 if own else wanted
    self._tokenizer.add_special_tokens([f'<extra_id_{i}>' for i in reversed(range(added))])
    return own or wanted, added

  @functools.cached_property
  def _sentinel_ids(self):
    return np.asarray([self._tokenizer.token_to_id(f'<extra_id_{i}>') for i in range(self.extra_ids)])

  @functools.cached_property
  def _sizes(self):
    """i64[V + 1]: bytes of each token, 0 of special tokens, ids without a token and ids above."""
    decoder = json.loads(self._tokenizer.to_str()).get('decoder') or {}
    kinds = {part.get('type') for part in (decoder, *decoder.get('decoders', ()))}
    added = self._tokenizer.get_added_tokens_decoder()
    sizes = np.zeros(self.vocab_size + 1, np.int64)
    anchor = next((i for i in range(self.vocab_size) if i not in added and self._decode([i]).isalpha()), None)
    context = [] if anchor is None else [anchor]           # where a word's blank is not the first of a text
    before = len(self._decode(context).encode())
    for token, i in self._tokenizer.get_vocab().items():
      if i in added:
        sizes[i] = 0 if not self._decode([i]) else len(token.encode())
      elif 'ByteLevel' in kinds:
        sizes[i] = len(token)              # a character of such a piece is a byte
      elif 'ByteFallback' in kinds and BYTE.fullmatch(token):
        sizes[i] = 1
      else:
        sizes[i] = max(len(self._decode([*context, i]).encode()) - before, 0)
    return sizes

  def _around(self):
    """(ids before a text, ids behind it) that the post-processor adds."""
    with self._sound():
      found = self._tokenizer.encode('a', add_special_tokens=True)
    own = [at for at, sequence in enumerate(found.sequence_ids) if sequence is not None]
    first, last = (own[0], own[-1] + 1) if own else (len(found.ids), len(found.ids))
    return tuple(found.ids[:first]), tuple(found.ids[last:])

  def _ending(self, found):
    """The id of eos_token, else the first eos_token_id of generation_config.json, else None."""
    if (named := self.id('eos_token')) is not None or GENERATION not in found:
      return named
    ends = files.read_json(found[GENERATION]).get('eos_token_id')
    first = ends[0] if isinstance(ends, list) and ends else ends
    return first if type(first) is int and 0 <= first < self.vocab_size else None

  def _special(self, config):
    """8 hex digits of what else decides the ids of a text: tokens that the other files name, and EOS."""
    added = sorted((i, str(token.content)) for i, token in self._tokenizer.get_added_tokens_decoder().items())
    parts = [added, self._eos_id, config.get('split_special_tokens') is True]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _config(found):
  """tokenizer_config.json, with the tokens of special_tokens_map.json where the former lists none."""
  config = files.read_json(found[CONFIG]) if CONFIG in found else {}
  if MAP in found and 'added_tokens_decoder' not in config:
    config = config | files.read_json(found[MAP])
  return config


def _named(config):
  """dict name -> token, a text or a dict, of the special tokens with a name; NAMED first."""
  names = [*NAMED, *(key for key in config if key.endswith('_token') and key not in NAMED)]
  extra = config.get('extra_special_tokens')
  named = {name: config.get(name) for name in names} | (extra if isinstance(extra, dict) else {})
  return {name: token for name, token in named.items() if _text(token)}


def _text(token):
  """The text of a token of tokenizer_config.json, or None where it is none."""
  text = token.get('content') if isinstance(token, dict) else token
  return text if isinstance(text, str) else None


def _add(tokenizer, config):
  """Adds to `tokenizer` the tokens that its folder's other files name, and makes the named ones special.

  A name alone has the flags of the token that is listed, or is in the file already.
  """
  listed = config.get('added_tokens_decoder')
  listed = listed if isinstance(listed, dict) and all(key.isdecimal() for key in listed) else {}
  in_order = [listed[key] for key in sorted(listed, key=lambda key: (len(key), key))]
  tokens = [_token(token) for token in in_order if _text(token)]
  known = {token.content: token for token in [*tokenizer.get_added_tokens_decoder().values(), *tokens]}
  extra = config.get('extra_special_tokens') or config.get('additional_special_tokens')
  special = [*_named(config).values(), *(extra if isinstance(extra, list) else ())]
  tokenizer.add_tokens(tokens)
  tokenizer.add_special_tokens([isinstance(token, str) and known.get(token) or _token(token, special=True)
                                for token in special if _text(token)])
  tokenizer.encode_special_tokens = config.get('split_special_tokens') is True


def _token(token, special=False):
  """The AddedToken of a token of tokenizer_config.json."""
  flags = token if isinstance(token, dict) else dict(normalized=False)
  chosen = {flag: flags[flag] for flag in ('single_word', 'lstrip', 'rstrip', 'normalized')
            if isinstance(flags.get(flag), bool)}
  return tokenizers.AddedToken(_text(token), special=special or flags.get('special') is True, **chosen)


def _template(config, found):
  """The template in tokenizer_config.json, the one called default of several, or None."""
  template = config.get('chat_template')
  if isinstance(template, list):
    named = {entry.get('name'): entry.get('template') for entry in template if isinstance(entry, dict)}
    template = named.get('default')
  if template is not None and not isinstance(template, str):
    raise errors.Damaged(found[CONFIG], 'has a chat_template that is no text')
  return template
