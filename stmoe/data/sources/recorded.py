"""Recorded routing: texts with the experts of their tokens, which routers are told (arXiv:2510.11370)."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.data import arrays
from stmoe.data import record as records
from stmoe.data import recording
from stmoe.data.text import cache as caches
from stmoe.data.text import pack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
  """The rows of a recording (data/recording.py), for training and evaluation alike, and the routes they took.

  `--replay FILE` of `stmoe train`, `eval` and `finetune` writes these fields. In every step the routers weigh
  the recorded experts by their present logits (routers/wrappers/replay.py).

  objective: of which the rows were made, with its fields.
  files:     the recording.
  vocab, extra_ids, cache_dir: as for text.
  routers:   what the recorded model had: 'NAME:E:k' of each router.
  choices:   n, recorded experts of a token in a layer.
  """
  objective: ranges.Chosen('objective')
  files: ranges.Many(ranges.Text, least=1)
  vocab: ranges.Text
  routers: ranges.Many(ranges.Text, least=1)
  choices: ranges.Count
  extra_ids: ranges.Natural = 0
  cache_dir: ranges.Text = ''

  kind = 'recorded'

  @property
  def rule(self) -> typing.Any:
    """The class of the objective."""
    return self.objective.func

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return dict(files=self.files, routers=self.routers, choices=self.choices)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch: i32[rows,T] of each stack, routes i32[rows,T,L,n]."""
    batch, lengths = pack.empty(self.lengths(), 0, self.rule.prefix), self.lengths()
    shapes = {name: ((rows, *array.shape[1:]), array.dtype) for name, array in batch.items()}
    for side, length in lengths.items():
      number = sum(name.startswith(f'{side}_') for name in self.routers)
      if number:
        shapes[f'{side}_given/{contract.ROUTES}'] = ((rows, length, number, self.choices), np.dtype(np.int32))
    return shapes

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> tokens of a row."""
    return {side: self.objective.keywords[field] for side, field in self.rule.sides.items()}

  def fits(self, model: typing.Any, reported: dict) -> None:
    """Raises UserError for a model with other routers than the recorded one.

    Args:
      reported: dict name -> Aux of shapes of `model`.
    """
    here = recording.routers(model, reported)
    differing = sorted({*here} ^ {*self.routers})
    if differing:
      name = differing[0].partition(':')[0]
      of = lambda names: next((text.partition(':')[2] for text in names if text.startswith(f'{name}:')), '')
      said = lambda text: '{} experts, k={}'.format(*text.split(':')) if text else 'no router'
      raise errors.UserError(f'{self.files[0]} is a recording of another model: {name} has '
                             f'{said(of(here))} here and {said(of(self.routers))} there; nearest: '
                             f'{recording.COMMAND} of this model')

  def vocabulary(self, found: records.Record = records.NONE) -> typing.Any:
    """Returns the vocabulary: the run's own, if Record `found` has it."""
    return found.vocabulary(self, lambda: caches.vocabulary_of(self.vocab, (), self.extra_ids,
                                                               self.cache_dir))

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the rows; of a run's Record `found` if they are the same."""
    return Opened(self, found)


class Opened(arrays.Opened):
  """The rows of a recording; data/batches.py says what opened data need."""

  def __init__(self, source: Recorded, found: records.Record):
    super().__init__(source, found, lambda: _read(source))
    self.vocabulary = source.vocabulary(found)
    if self.facts['vocabulary'] != self.vocabulary.digest:
      raise errors.UserError(f'{source.files[0]} was recorded with another vocabulary '
                             f'({self.facts["vocabulary"][:12]}) than data.vocab={source.vocab!r} is '
                             f'({self.vocabulary.digest[:12]})')

  def info(self) -> dict:
    """Returns the facts of the data; see `info` of data/batches.py."""
    return super().info() | dict(vocab=self.vocabulary, vocab_size=self.vocabulary.vocab_size) | (
        self.facts['text'])

  def num_bytes(self, batch: dict) -> int | None:
    """Returns the bytes of the pieces scored in a batch; None if only a part of a text is predicted."""
    if not self.facts['text']:
      return None
    return int((batch['decoder_loss_weights'] * self.vocabulary.num_bytes(
        batch['decoder_target_tokens'])).sum())


def _read(source):
  """(dict split -> arrays, facts) of the recording of a source; both splits are the same rows."""
  about, batch, routes = recording.read(source.files[0])
  rows = batch | {f'{side}_given/{contract.ROUTES}': array for side, array in routes.items()}
  wanted = {name: shape for name, (shape, _) in source.shapes(len(next(iter(rows.values())))).items()}
  if {name: array.shape for name, array in rows.items()} != wanted or list(source.routers) != about.routers:
    raise errors.UserError(f'data.files: {source.files[0]} is a recording of another model or batch than '
                           'section data says; nearest: --replay, which writes the section')
  return dict(train=rows, validation=rows), dict(vocabulary=about.vocabulary, text=about.text)
