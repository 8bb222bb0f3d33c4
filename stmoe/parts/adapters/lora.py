"""LoRA: low-rank parts beside frozen matrices (arXiv:2106.09685), rank-stabilised or with magnitudes."""

import fnmatch
import typing

from flax import nnx

from stmoe import errors
from stmoe import ranges
from stmoe.parts import adapting


class Lora:
  """W + s A B in place of chosen matrices W of a model: of attention, dense layers, experts or the head.

  Args:
    targets:      which matrices: words with + between them. A word is a part of a matrix's path ('wq',
      'attention', 'experts'), or a pattern of whole paths ('decoder/*/attention/w[qv]').
    rank, alpha:  r and alpha of s = alpha / r.
    dropout_rate: of what enters A, per element, in training only.
    rslora:       s = alpha / sqrt(r) (arXiv:2312.03732).
    dora:         with a magnitude a column (arXiv:2402.09353), see `core/units/adapted.py`.
    gaussian:     A is drawn from N(0, 1 / r^2), not from U(-1 / sqrt(in), 1 / sqrt(in)).
  """

  def __init__(self, *, targets: ranges.Text = 'attention', rank: ranges.Count = 8, alpha: ranges.Any = 16.0,
               dropout_rate: ranges.Below1 = 0.0, rslora: ranges.Flag = False, dora: ranges.Flag = False,
               gaussian: ranges.Flag = False):
    self.targets, self.rank = targets, rank
    self.fields: dict[str, typing.Any] = dict(
        rank=rank, scale=scale(alpha, rank, rslora), dropout_rate=dropout_rate, gaussian=gaussian, dora=dora)

  def attach(self, model: nnx.Module, rngs: nnx.Rngs) -> None:
    """Puts low-rank parts beside the chosen matrices of `model`, in place.

    Raises UserError for a target that names no matrix, and for a rank above a matrix's width.
    """
    found = adapting.matrices(model)
    for path in self.chosen(list(found)):
      wide = min(found[path].shape[-2:])
      if self.rank > wide:
        shape = ' x '.join(map(str, found[path].shape[-2:]))
        raise errors.UserError(f'adapter.rank={self.rank}: {_text(path)} is {shape}, a rank of which is at '
                               f'most {wide}; nearest: {wide}')
      part = adapting.owner(model, path)
      if not hasattr(part, adapting.PLACE):
        part.adapters = nnx.Dict()
      part.adapters[path[-1]] = adapting.LowRank(found[path], rngs=rngs, **self.fields)

  def chosen(self, paths: list[tuple]) -> list[tuple]:
    """Returns those of `paths` that the targets name, in their order."""
    return [path for path, _ in matching(self.targets, paths)]


def matching(targets: str, paths: list[tuple]) -> list[tuple[tuple, str]]:
  """Returns (path, the first word of `targets` that names it) of all paths that are named, in their order.

  Raises UserError for a word that names none.

  >>> matching('wq+mlp', [('a', 'wq'), ('a', 'wk'), ('mlp', 'wi')])
  [(('a', 'wq'), 'wq'), (('mlp', 'wi'), 'mlp')]
  """
  words = targets.split('+')
  for word in words:
    if not any(_names(word, path) for path in paths):
      there = sorted({key for path in paths for key in path if isinstance(key, str)} - {'segments', 'blocks'})
      raise errors.UserError(f'adapter.targets={targets!r}: no matrix is in {word!r}'
                             f'{errors.nearest(word, there)} (there are: {", ".join(there)}; a pattern of '
                             'paths has a / or *)')
  named = ((path, next((word for word in words if _names(word, path)), None)) for path in paths)
  return [(path, word) for path, word in named if word is not None]


def scale(alpha: float, rank: int, rslora: bool = False) -> float:
  """Returns alpha / r, or alpha / sqrt(r) if rank-stabilised.

  >>> scale(8.0, 4), scale(8.0, 4, True)
  (2.0, 4.0)
  """
  return alpha / (rank ** 0.5 if rslora else rank)


def _names(word, path):
  if '*' in word or '/' in word:
    return fnmatch.fnmatchcase(_text(path), word)
  return word in path


def _text(path):
  return '/'.join(map(str, path))
