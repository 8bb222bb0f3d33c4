"""Texts from the checkpoint of a run: prompts in, generated texts out, batch by batch."""

import collections.abc
import itertools

import jax
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe.answer import languages
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.data.text import chat
from stmoe.decode import generate
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import opened
from stmoe.train import state as states

SHORTEST = 16                        # see `width`


def read(lines, where, jsonl=False, talk=False):
  """Yields (place, prompt, fields) of an iterable of lines without their ends; fields is {} for plain text.

  Args:
    where: name of the file, for messages.
    jsonl: whether a line is a JSON object with a text `inputs`.
    talk:  a prompt is a conversation for `chat.text`: a line, or `inputs`, is what a user says. An object may
      have `messages` instead.
  Raises:
    UserError: naming file and line.
  """
  for number, line in enumerate(lines, 1):
    place, fields = f'{where}:{number}', {}
    if jsonl:
      try:
        fields = files.parse_json(line)
      except ValueError as error:
        raise errors.UserError(f'{place} {error}') from None
    yield place, prompted(place, fields if jsonl else dict(inputs=line), talk), fields


def prompted(place, fields, talk=False):
  """Returns the text `inputs` of a line, or its conversation; raises UserError, naming `place`, for none."""
  try:
    if talk and 'messages' in fields:
      return chat.checked(fields)
    if not isinstance(fields, dict) or not isinstance(fields.get('inputs'), str):
      raise ValueError('is no object with a text "inputs"' + ' or with "messages"' * talk)
  except ValueError as error:
    raise errors.UserError(f'{place} {error}') from None
  said = fields['inputs']
  return dict(messages=[dict(role='user', content=said)]) if talk else said


def width(longest):
  """Returns the length to which rows of at most `longest` ids are padded: SHORTEST times 1, 2, 4, ...

  >>> width(0), width(16), width(17)
  (16, 16, 32)
  """
  padded = SHORTEST
  while padded < longest:
    padded *= 2
  return padded


def prompt_batch(cfg, prompts, length):
  """Returns the batch of `prompts`, lists of ids, padded to `length`: of the encoder, or of the decoder."""
  side = 'encoder' if 'inputs_length' in cfg.data else 'decoder'
  mask = np.arange(length) < np.array([len(ids) for ids in prompts])[:, None]
  ids = np.zeros(mask.shape, np.int32)
  ids[mask] = np.concatenate(prompts)
  batch = dict(input_tokens=ids, segment_ids=mask.astype(np.int32),
               positions=(np.arange(length) * mask).astype(np.int32))
  if pipeline.objective(cfg).prefix:
    batch['causal_attention'] = mask.astype(np.int32)                # prompts see themselves both ways
  return {f'{side}_{name}': a for name, a in batch.items()}


def given(cfg, asked, size):
  """Returns dict 'given/NAME' -> array [size,...]: what the source of data gives of rows, as the lines say.

  Args:
    asked: entries (place, ids, fields), at most `size`; rows behind them are as the last of them. What no
      line has is left out.
  Raises:
    UserError: naming a line that lacks what others have, or has it in another shape or by another name.
  """
  shapes = {name: entry for name, entry in lookup.source(cfg.data).shapes(size).items()
            if name.startswith('given/')}
  for place, _, fields in asked:
    for name in fields:
      if name.startswith('given/') and name not in shapes:
        raise errors.UserError(f'{place}: {lookup.titled(cfg.data)} has no {name!r}'
                               f'{errors.nearest(name, shapes)} (it has: {", ".join(shapes) or "none"})')
  arrays = {}
  for name, (shape, dtype) in shapes.items():
    if any(name in fields for _, _, fields in asked):
      wanted = f'{np.dtype(dtype)}{list(shape[1:])}'
      values = [_value(place, fields, name, shape[1:], dtype, wanted) for place, _, fields in asked]
      arrays[name] = np.stack(values + [values[-1]] * (size - len(values)))
  return arrays


def _value(place, fields, name, shape, dtype, wanted):
  """The array `name` of a line; raises UserError unless it is there, of this shape and type."""
  if name not in fields:
    raise errors.UserError(f'{place} has no {name!r}, which other lines have; wanted: {wanted}')
  try:
    said = np.asarray(fields[name])
    value = said.astype(dtype, casting='same_kind')
  except (TypeError, ValueError, OverflowError):
    value = None
  if value is None or value.shape != tuple(shape) or value.dtype.kind in 'iu' and np.any(value != said):
    raise errors.UserError(f'{place}: {name}={fields[name]!r}; wanted: {wanted}')
  return value


def tokens(cfg, vocabulary, place, prompt):
  """Returns the list of ids that the model reads of a prompt; raises UserError, naming `place`, if too many.

  See `_ids`.
  """
  ids = _ids(cfg, vocabulary, place, prompt)
  _fit(cfg, [(place, ids, {})], cfg)
  return ids


def _ids(cfg, vocabulary, place, prompt):
  """The list of ids that the model reads of a prompt, however many.

  An encoder reads the text and what the tokenizer's files put around it, or EOS behind it. What a decoder
  reads is said by `around`. A conversation (`chat.text`) is read as its template writes it, and no more.
  """
  try:
    text = prompt if isinstance(prompt, str) else chat.text(vocabulary, prompt)
    text.encode()
  except UnicodeEncodeError:
    raise errors.UserError(f'{place}: the prompt holds half a surrogate pair, no character') from None
  except errors.UserError as error:
    raise errors.UserError(f'{place}: {error}') from None
  ids = vocabulary.encode([text])[0].tolist()
  if 'inputs_length' in cfg.data:
    first, last = (getattr(vocabulary, f'{side}_ids', ()) for side in ('first', 'last'))
    ids = [*first, *ids, *(last or [vocabulary.eos_id])]
  elif isinstance(prompt, str):
    first, last = around(cfg, vocabulary)
    ids = [*first, *ids, *last]
  return ids or [cfg.model.get('start_id', 0)]


def _fit(cfg, asked, trained):
  """Raises UserError, naming the longest, where entries (place, ids, fields) of `asked` are too long.

  trained: the configuration before it was changed for these texts.
  """
  field = 'inputs_length' if 'inputs_length' in cfg.data else 'length'
  most, usual = cfg.data[field], trained.data[field]
  too_long = sorted((len(ids), place) for place, ids, _ in asked if len(ids) > most)
  if not too_long:
    return
  longest, place = too_long[-1]
  others = f', the most of {len(too_long)} prompts that are too long' if too_long[1:] else ''
  now = '' if most == usual else f', and data.{field}={most} now'
  raise errors.UserError(f'{place}: the prompt has {longest} tokens{others}; the model was trained with data.'
                         f'{field}={usual}{now}; shorten it, or set --config.data.{field}={longest}')


def around(cfg, vocabulary):
  """Returns (ids before a prompt, ids behind it) for a decoder.

  A decoder that learned to answer in rows of pairs reads start_id before and EOS behind. Others read start_id
  before. Where the tokenizer's files say the same, or start_prompts is False, they read all that the files
  say: `Tokens.first_ids`, unless start_prompts is False, and `last_ids`.
  """
  start, prompted = (cfg.model.get('start_id', 0),), cfg.model.get('start_prompts', True)
  if pipeline.objective(cfg).paired:
    return start, (vocabulary.eos_id,)
  first = getattr(vocabulary, 'first_ids', ())
  if prompted and first[-1:] != start:
    return start, ()
  return first if prompted else (), getattr(vocabulary, 'last_ids', ())


def texts(cfg, path, prompts, decode, length, batch_size, say, step=None, devices=None, watch=None,
          tell=None, source=None, target=None):
  """Yields lists of (fields, generated text) in the order of `prompts`, a batch as soon as it is done.

  Args:
    cfg:     the run's configuration; path: its directory.
    prompts: iterable of (place, prompt, fields), see `read`. Of a sequence all are looked at before anything
      is compiled, else the first.
    decode:  name and fields of a strategy; eos_id is the model's, see `generate.ending`.
    length:  most tokens of a text. batch_size: prompts at once.
    say:     called with lines of text. step: of the checkpoint; None = the newest.
    watch:   called with every batch, see `recorder.Texts`.
    tell:    called with each part of a text as soon as it is there, '' for a token that brings none. Prompts
      are then answered one by one.
    source, target: languages of a translation, see `languages.speak`.
  """
  if batch_size < 1:
    raise errors.UserError(f'--batch-size {batch_size}: at least 1')
  loop.keep_compilations()
  with states.on_mesh(cfg.mesh, devices) as mesh:
    shards = axes.num_shards('batch')
    number, batch_size = (1, shards) if tell else (batch_size, batch_size)        # prompts, rows
    if batch_size % shards:
      raise errors.UserError(f'--batch-size {batch_size} is not divisible by the {shards} devices that share '
                             f'a batch; nearest: {-(-batch_size // shards) * shards}')
    record = records.read(path)
    vocabulary = pipeline.vocabulary(cfg, found=record)
    languages.speak(cfg, vocabulary, source, target)
    plan = states.blueprint(record.located(cfg), mesh)
    check.vocabulary(cfg, plan, vocabulary)
    trained = rundir.load(path)
    asked = _tokenised(cfg, vocabulary, prompts, trained)
    ends = generate.ends(cfg, vocabulary)
    told = Told(vocabulary, ends, tell) if tell else None
    program = generate.make(plan, generate.ending(decode, cfg, vocabulary), length, told)
    at, state, _, _ = opened.restore(plan, path, vocabulary, say, step)
    say(f'generating from the checkpoint of step {at:,}')
    limit = cfg.data.get('inputs_length') or cfg.data.length
    warn = _warner(cfg, length, say)
    for turn in itertools.count():
      rows = list(itertools.islice(asked, number))
      if not rows:
        return
      _fit(cfg, rows, trained)
      ids = [ids for _, ids, _ in rows]
      longest = max(map(len, ids))
      warn(longest)
      padded = ids + [ids[-1]] * (batch_size - len(ids))
      batch = prompt_batch(cfg, padded, min(width(longest), limit)) | given(cfg, rows, batch_size)
      key = jax.random.fold_in(states.fold(cfg.seed, 'decode'), turn)
      generated = np.asarray(program(state['params'], state['router_state'], check.place(batch, mesh), key))
      if told is not None:
        told.end()
      if watch is not None:
        watch(plan, state, at, vocabulary, padded, generated, len(rows))
      yield [(fields, generate.text(cfg, vocabulary, output))
             for (_, _, fields), output in zip(rows, generated)]


def _tokenised(cfg, vocabulary, prompts, trained):
  """Iterator of (place, ids, fields) of `prompts`; of a sequence all are made now, else the first."""
  asked = ((place, _ids(cfg, vocabulary, place, text), fields) for place, text, fields in prompts)
  begun = list(asked if isinstance(prompts, collections.abc.Sequence) else itertools.islice(asked, 1))
  _fit(cfg, begun, trained)
  given(cfg, begun, len(begun))
  return itertools.chain(begun, asked)


class Told:
  """Hears of the tokens of a batch's first row, and calls `tell` with the text that each of them brings.

  Args:
    ends: ids that end a text.
  """

  def __init__(self, vocabulary, ends, tell):
    self._vocabulary, self._ends, self._tell = vocabulary, ends, tell
    self._begin()

  def __call__(self, i, ids):
    """Hears of token number `i` of all rows, i32[B], in any order of the numbers."""
    self._heard[int(i)] = int(ids[0])
    while self._next in self._heard:
      token = self._heard.pop(self._next)
      self._next += 1
      self._ended |= token in self._ends
      if not self._ended:
        self._tell(self._stream(token))

  def end(self):
    """Tells what was held back of the text, which is whole now."""
    jax.effects_barrier()
    self._tell(self._stream.rest())
    self._begin()

  def _begin(self):
    self._stream = self._vocabulary.stream()
    self._heard, self._next, self._ended = {}, 0, False


def _warner(cfg, length, say):
  """A function of a batch's longest prompt, which says once that texts go past what was trained."""
  field = 'targets_length' if 'inputs_length' in cfg.data else 'length'
  warned = []

  def warn(longest):
    tokens = length if field == 'targets_length' else longest + length - 1     # that the decoder reads
    if tokens > cfg.data[field] and not warned:
      warned.append(tokens)
      say(f'note: texts of --length {length} reach token {tokens:,}, past data.{field}={cfg.data[field]} in '
          'training: what comes after it is a guess of the positions')
  return warn
