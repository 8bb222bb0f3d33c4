"""Vocabularies: text to ids and back, with T5's extra ids on top.

Two kinds are here, a third in tokenizer.py. Their interface: `encode(texts) -> list of i32 arrays` (no EOS),
`decode(ids) -> text`, `stream()` (detokenize.py), `vocab_size`, `eos_id`, `sentinel(i)`, `num_bytes(ids)`,
`digest` and `files`. The digest covers what decides the ids of a text. `files` are those that the vocabulary
was read from, dict name -> path. Of the two kinds here id 0 is padding and the decoder's start. Their extra
ids (sentinels of span corruption) are the last ids, counted downwards: sentinel 0 is `vocab_size - 1`, as in
T5 and seqio.
"""

import functools
import hashlib
import io
import itertools
import os
import re

import numpy as np
import sentencepiece

from stmoe import errors
from stmoe.data.text import detokenize

NUM_SPECIAL = 3  # padding 0, EOS 1, unknown 2
SAMPLE = 1 << 26
LONGEST = 1 << 20  # bytes of a line that SentencePiece trains on; it leaves out longer lines
PART = 1 << 15  # characters of a part of a longer line
FILE = 'pieces.model'                    # what a SentencePiece model is called where it is kept
RECIPE = 1  # of `train`; a change of the recipe makes other vocabularies


class Bytes:
  """UTF-8 bytes: byte b is id b + 3; 259 ids and the extra ids. Any text survives a round trip."""

  def __init__(self, extra_ids=0):
    self.extra_ids = extra_ids
    self.vocab_size = NUM_SPECIAL + 256 + extra_ids
    self.eos_id = 1
    self.digest = 'bytes'
    self.files = {}

  def encode(self, texts):
    """Returns for each text the i32[bytes] ids of its UTF-8 bytes."""
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + NUM_SPECIAL for text in texts]

  def decode(self, ids):
    """Returns the text of ids up to the first EOS; ids that are no byte and broken UTF-8 are dropped."""
    ids = _until_eos(ids, self.eos_id) - NUM_SPECIAL
    return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes().decode(errors='ignore')

  def stream(self):
    """Returns the `detokenize.Stream` of a text."""
    return detokenize.Stream(self.decode)

  def num_bytes(self, ids):
    """Returns for each of `ids` (an array) the bytes of text that the id stands for."""
    return ((ids >= NUM_SPECIAL) & (ids < NUM_SPECIAL + 256)).astype(np.int64)

  def sentinel(self, i):
    """Returns the id of sentinel `i` (an int or an array)."""
    return self.vocab_size - 1 - i


class Pieces:
  """The SentencePiece model in file `path`, with `extra_ids` ids above its pieces.

  As in seqio, the extra ids are also pieces `<extra_id_i>`, so a sentinel may be written in a text.
  """

  def __init__(self, path, extra_ids=0):
    model = read(path)
    self.path = path
    self.files = {FILE: path}
    self.extra_ids = extra_ids
    self.digest = f'{hashlib.sha256(model).hexdigest()}+{extra_ids}'
    try:
      if not model:
        raise ValueError
      self._model = sentencepiece.SentencePieceProcessor(model_proto=_extend(model, extra_ids))
    except (RuntimeError, ValueError, TypeError) as e:
      raise errors.UserError(f'data.vocab={str(path)!r} is not a SentencePiece model') from e
    self.vocab_size = self._model.vocab_size()
    self.eos_id = self._model.eos_id()
    self.threads = os.cpu_count()
    if self.eos_id < 0:
      raise errors.UserError(f'data.vocab={str(path)!r} has no end-of-sentence piece (eos_id is -1)')

  def encode(self, texts):
    """Returns for each text the i32[pieces] ids."""
    all_ids = self._model.encode(list(texts), out_type=int, num_threads=self.threads)
    return [np.asarray(ids, np.int32) for ids in all_ids]

  def decode(self, ids):
    """Returns the text of ids up to the first EOS."""
    ids = _until_eos(ids, self.eos_id)
    return self._model.decode(np.where(ids < self.vocab_size, ids, self._model.unk_id()).tolist())

  def stream(self):
    """Returns the `detokenize.Stream` of a text."""
    return detokenize.Stream(self.decode)

  def num_bytes(self, ids):
    """Returns for each of `ids` (an array) the bytes of its piece, as SentencePiece writes text."""
    return self._sizes[np.minimum(ids, self.vocab_size)]

  @functools.cached_property
  def _sizes(self):
    """i64[V + 1]: bytes of each piece, 0 of pieces that are no text and of ids above the pieces."""
    model = self._model
    size = lambda i: (0 if model.is_control(i) or model.is_unknown(i) else 1 if model.is_byte(i)
                      else len(model.id_to_piece(i).replace('\u2581', ' ').encode()))
    return np.asarray([*map(size, range(self.vocab_size)), 0])

  def sentinel(self, i):
    """Returns the id of sentinel `i` (an int or an array)."""
    return self.vocab_size - 1 - i


def train(texts, num_pieces):
  """Returns the bytes of a SentencePiece model (BPE) with `num_pieces` ids, trained on `texts`.

  The model keeps every text exactly, but for the character U+2581, which SentencePiece uses for the
  blank. Nothing is normalised. Runs of blanks are kept (and learned, which serves indented code), and line
  ends and tabs are pieces. What was never seen falls back to bytes. The model is deterministic in the order
  of the texts. Of more than SAMPLE characters the first are taken, lines of more than LONGEST bytes in parts.
  Ids: 0 padding, 1 EOS, 2 unknown.
  """
  lines = itertools.chain.from_iterable(map(_parts, (
      line for text in _first(texts, SAMPLE) for line in text.split('\n'))))
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=filter(None, lines), model_writer=model, vocab_size=num_pieces, model_type='bpe',
        normalization_rule_name='identity', remove_extra_whitespaces=False, add_dummy_prefix=False,
        allow_whitespace_only_pieces=True, byte_fallback=True, user_defined_symbols=['\n', '\t'],
        split_digits=True, character_coverage=0.9995, max_sentence_length=LONGEST,
        shuffle_input_sentence=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2)
  except RuntimeError as e:
    few, many = re.search(r'vs (\d+)', str(e)), re.search(r'<= (\d+)', str(e))
    why = (f'this text needs at least {few.group(1)} pieces' if few else
           f'this text has no more than {many.group(1)} pieces' if many else str(e).splitlines()[-1])
    raise errors.UserError(f'data.vocab=train:{num_pieces}: {why}') from e
  return model.getvalue()


def _first(texts, size):
  for text in texts:
    yield text[:size]
    size -= len(text)
    if size <= 0:
      return


def _parts(line):
  """[line], or its parts if the trainer would leave the line out."""
  if len(line.encode()) <= LONGEST:
    return [line]
  return [line[at:at + PART] for at in range(0, len(line), PART)]


def read(path):
  """Returns the bytes of the file of a vocabulary; raises UserError where there is no such file."""
  try:
    with open(path, 'rb') as f:
      return f.read()
  except OSError as e:
    raise errors.UserError(f'data.vocab={str(path)!r}: {e.strerror}; choose bytes, train:N or the path of '
                           'a tokenizer.json or a SentencePiece model') from e


def _until_eos(ids, eos_id):
  ids = np.asarray(ids, np.int64)
  ends = np.flatnonzero(ids == eos_id)
  return ids[:ends[0]] if len(ends) else ids


def _extend(model, extra_ids):
  if not extra_ids:
    return model
  from google.protobuf import message
  from sentencepiece import sentencepiece_model_pb2
  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  except message.DecodeError as error:
    raise ValueError(str(error)) from error
  for i in reversed(range(extra_ids)):
    proto.pieces.add(piece=f'▁<extra_id_{i}>', score=0.0,
                     type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED)
  return proto.SerializeToString()
