"""Aggregation of experts: the experts of several sparse models side by side in one (arXiv:2109.10465).

Z-code M3 grows a model so. Models of E experts each, trained apart, become one of n E experts: banks and the
columns of routers are joined, all else is averaged or the first model's. A run with itself has its experts
twice. Details are unverified: the paper's code is not public.

Averages are sensible of models that share a start and a part of their training. A softmax over n times as
many columns divides gates by about n: where a token has one expert, with its probability as it is, the output
shrinks. `scale` = n makes up for that.
"""

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe.surgery import layout
from stmoe.surgery import upcycle

OUTPUT = ('wo', 'bo')                  # what `scale` multiplies: expert outputs are linear in them


def axis(shape, new, models):
  """Returns the axis along which arrays of `shape` are joined to one of shape `new`; None if they are alike.

  >>> axis((4, 8, 16), (8, 8, 16), 2), axis((8, 4), (8, 8), 2), axis((8,), (8,), 2)
  (0, 1, None)
  """
  longer = [at for at, (old, size) in enumerate(zip(shape, new)) if old != size]
  if len(shape) != len(new) or len(longer) > 1 or any(new[at] != models * shape[at] for at in longer):
    raise ValueError(f'{models} arrays {tuple(shape)} do not make {tuple(new)}')
  return longer[0] if longer else None


def aggregate(sources, target, *, scale=1.0, base='average'):
  """Returns the parameters of the model with the experts of all `sources`, shaped like `target`.

  The experts of the first model come first. Optimizer slots may be given instead.

  Args:
    sources: list of n pure dicts of trained models with equally many experts.
    target:  pure dict of the model with n times as many experts; only shapes are used.
    scale:   multiplies the outputs of feed-forward experts.
    base:    a key of `upcycle.BASES`, for what is not joined.
  Raises:
    UserError: a leaf that is not in all models, or of a shape that does not fit.
  """
  scanned = layout.is_scanned(target)
  unrolled = layout.unroll(target) if scanned else target
  leaves_of = [layout.flat(source) for source in sources]
  _check(leaves_of, layout.flat(unrolled))

  def make(path, leaf):
    leaves = [leaves[path] for leaves in leaves_of]
    at = axis(leaves[0].shape, leaf.shape, len(leaves))
    array = upcycle.based(leaves, base, leaf.dtype) if at is None else jnp.concatenate(leaves, axis=at)
    return array * scale if _is_output(path) else array

  model = layout.visit(unrolled, make)
  return layout.roll(model) if scanned else model


def report(source, target, models):
  """Returns dict 'a/b/c' -> 'joined' or 'copied' of every leaf of `target`, see `aggregate`."""
  kinds = {}

  def look(source, target):
    before, after = layout.flat(source), layout.flat(target)
    for path, leaf in after.items():
      joined = axis(before[path].shape, leaf.shape, models) is not None
      kinds[upcycle.text(path)] = 'joined' if joined else 'copied'
  jax.eval_shape(look, source, target)                               # arrays of shapes cannot be unrolled
  return kinds


def _is_output(path):
  return path[-1] in OUTPUT and {'layer', 'experts'} <= {*path}


def _check(sources, target):
  """Raises UserError unless all models, dict path -> leaf, make the model `target`."""
  for source in sources:
    for path in sorted(source.keys() ^ target.keys(), key=upcycle.text):
      raise errors.UserError(f'{upcycle.text(path)} is not in all models; they must differ in their number '
                             'of experts alone')
  for path, leaf in target.items():
    shapes = sorted({tuple(source[path].shape) for source in sources})
    if len(shapes) > 1:
      raise errors.UserError(f'{upcycle.text(path)} is {" and ".join(map(str, shapes))} in the models that '
                             'are to become one')
    try:
      at = axis(shapes[0], leaf.shape, len(sources))
    except ValueError:
      raise _unfit(path, sources, target) from None
    if at is not None and upcycle.ROUTING & {*path}:
      _check_entries(path, shapes[0][at], sources[0])
  of_experts = [path for path in target if 'experts' in path]
  if all(sources[0][path].shape == target[path].shape for path in of_experts):
    raise _unfit(of_experts[0], sources, target)                     # no room for the experts of all


def _check_entries(path, entries, source):
  """Raises UserError for a router's axis of more `entries` than experts: these are in order by kind."""
  shapes = {other: leaf.shape for other, leaf in source.items()}
  if entries > (experts := max(upcycle.numbers_of_experts(path, shapes))):
    raise errors.UserError(f'{upcycle.text(path)} has {entries} entries for {experts} experts, such as '
                           'virtual or negative ones: side by side they would be those of others')


def _unfit(path, sources, target):
  """The UserError for arrays at `path` of models that do not make that of the new one."""
  models, shape = len(sources), tuple(sources[0][path].shape)
  near = f'; nearest: num_experts={models * shape[0]}' if 'experts' in path else ''
  return errors.UserError(f'{upcycle.text(path)} is {shape} in {models} models and '
                          f'{tuple(target[path].shape)} in the new one{near}')
