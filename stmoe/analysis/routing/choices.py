"""Where tokens go: the choices of every router of a model, read from its Assignments.

`trace` wraps each router (`routers/wrappers/trace.py`) so that its edges come back in Aux. The
wrapped model is the same model: it runs under scan, rematerialisation and jit as before.
"""

import dataclasses
import math

import jax
import numpy as np

from stmoe import lookup
from stmoe import modules
from stmoe.core import contract

SEGMENTS = '_segment_ids'                # end of the name of a stack's segments in a batch of texts


@dataclasses.dataclass(frozen=True)
class Choices:
  """What a sparse layer did with a batch.

  experts: [B][T] list of (expert, weight) of each token, largest weight first, whatever its sign; an
    empty list for a token that no expert took, and for padding.
  num_experts: E.
  """
  layer: str
  experts: list
  num_experts: int


def trace(model):
  """Returns a copy of `model` whose routers record their edges; `model` is unchanged."""
  return modules.wrapped(model, lookup.constructor('router', 'trace'))


def choices(model, batch):
  """Returns dict layer name -> Choices for a batch, as at evaluation (no noise).

  The Choices of a layer with several routers are called NAME.0, NAME.1, ...
  Layers whose router mixes all tokens instead of choosing are left out. So are those that choose for others
  than the tokens of a stack: heads, once a row, and sparse gMLPs, for channels.

  Args:
    model: a model of `stmoe.models`.
    batch: dict of i32[B,T], the names of the data pipeline.
  """
  masks = _masks(batch)
  tokens = numbered({stack: mask.shape for stack, mask in masks.items()})
  aux = jax.device_get(_reported(trace(model), batch | tokens))
  return {name: Choices(name, per_token(**edges, mask=mask, num_experts=num_experts), num_experts)
          for name, edges, mask, num_experts in recorded(aux, masks)}


@jax.jit
def _reported(model, batch):
  return model(batch)[1]


def numbered(shapes):
  """Returns the entries of a batch that number the tokens [B,T] of each stack, for routers of `trace`.

  Args:
    shapes: dict stack -> (B, T).
  """
  return {f'{stack}_given/{contract.TOKEN_NUMBER}': np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
          for stack, shape in shapes.items()}


def recorded(aux, masks):
  """Yields (name, edges, mask bool[B,T], E) of every router that recorded the edges of a stack's tokens.

  Args:
    aux:   dict layer name -> Aux of a model of `trace`, on the host, for a batch with `numbered`.
    masks: dict stack -> bool[B,T] real tokens.
  """
  for name, edges, num_experts in _edges(aux):
    if stack_of(name) in masks and 'number' in edges:
      yield name, edges, masks[stack_of(name)], num_experts


def elsewhere(aux):
  """Returns the names of routers in `aux`, see `recorded`, that choose for others than a stack's tokens."""
  return [name for name, edges, _ in _edges(aux) if 'number' not in edges]


def _edges(aux):
  """Yields (name, edges, E) of every router that recorded edges."""
  for layer, report in aux.items():
    for record, edges, num_experts in report.edges():
      yield f'{layer}.{record}'.removesuffix('.edges'), edges, num_experts


def _masks(batch):
  """dict stack -> bool[B,T] real tokens of a batch of texts."""
  named = {name: a for name, a in batch.items() if name.endswith(SEGMENTS)}
  return {name.removesuffix(SEGMENTS): np.asarray(a) > 0 for name, a in named.items()}


def stack_of(layer):
  """Returns 'encoder' or 'decoder' for a layer name such as 'decoder_03'."""
  return layer.split('_')[0]


def per_token(token, expert, weight, number, mask, num_experts):
  """Returns [B][T] lists of (expert, weight) from edges, largest weight first, whatever its sign.

  Args:
    token, expert: i32[G,N]; weight: f32[G,N]. Expert ids >= num_experts are dead edges.
    number: i32[G,S], which of the B*T tokens the tokens of groups are; mask: bool[B,T] real tokens.
  """
  place = np.take_along_axis(number, token, axis=1).ravel()          # [G*N] in [0, B*T)
  choices_of = [[] for _ in range(mask.size)]
  for where, e, w in zip(place, expert.ravel(), weight.ravel()):
    if e < num_experts and mask.flat[where]:
      choices_of[where].append((int(e), float(w)))
  choices_of = [sorted(t, key=lambda pair: -abs(pair[1])) for t in choices_of]
  return [choices_of[row * mask.shape[1]:(row + 1) * mask.shape[1]] for row in range(mask.shape[0])]


def specialisation(chosen, ids, top=8):
  """Returns, for each expert, (share of all choices, [(token id, count, lift), ...]).

  Tokens are ranked by the G statistic n log(n/m). n is a token's count at the expert, m the count that
  independence of token and expert would give. lift is n/m: 1.0 for a token
  that the expert gets as often as any other token.

  Args:
    chosen: Choices.
    ids:    i32[B,T] token ids.
  """
  ids = np.asarray(ids)
  pairs = np.array([(e, ids[b, t]) for b, row in enumerate(chosen.experts) for t, of_token in enumerate(row)
                    for e, _ in of_token], dtype=np.int64).reshape(-1, 2)
  counts = np.zeros((chosen.num_experts, int(ids.max()) + 1))        # [E, V]
  np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
  total = max(counts.sum(), 1)
  expected = counts.sum(1, keepdims=True) * counts.sum(0) / total    # [E, V]
  lift = counts / np.maximum(expected, 1e-9)
  score = counts * np.log(np.maximum(lift, 1e-9))
  table = []
  for e in range(chosen.num_experts):
    best = [v for v in np.argsort(-score[e], kind='stable')[:top] if score[e, v] > 0]
    table.append((float(counts[e].sum() / total),
                  [(int(v), int(counts[e, v]), float(lift[e, v])) for v in best]))
  return table
