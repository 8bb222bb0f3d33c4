"""A teacher: what another model predicts, and its hidden states, are targets beside the data's own."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import ranges
from stmoe import targets
from stmoe.core import hidden
from stmoe.errors import UserError


def squared(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns f32[...], the mean of (x - y)^2 over the last axis of states [...,D]."""
  return jnp.mean(jnp.square(x - y), axis=-1)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns f32[...], 1 - cos(x, y) of states [...,D]; 1 where one of them is 0."""
  size = jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1)
  return 1.0 - jnp.sum(x * y, axis=-1) * jax.lax.rsqrt(jnp.maximum(size, 1e-24))


DISTANCES = {'squared': squared, 'cosine': cosine}


class Teacher:
  """The loss of `inner`, and how far predictions, hidden states or both are from a teacher's.

  Predictions: (1 - weight) times the loss and weight times the distance (knowledge distillation,
  arXiv:1503.02531, section 2). The distance is that of `inner`. For ids it is T^2 KL(teacher || student) of
  both softmaxes at temperature T, a mean over the targets; T^2 keeps its gradient of one size for every T.
  The distance is 0 for equal predictions.

  Hidden states: hidden_weight times the distance of both states after a pair of blocks. The distance is a
  mean over the pairs in `layers` and the real tokens, 0 for equal states. 'squared' with `project` is the
  linear form of FitNets' hint (arXiv:1412.6550, eq. 3), and TinyBERT's loss of hidden states
  (arXiv:1909.10351, section 3.1). 'cosine' is DistilBERT's third loss (arXiv:1910.01108, section 2).

  Args:
    inner:       recipe of the target of the data.
    run:         run directory of the teacher; '' = the data bring the entries `targets.OUTPUTS` and
      `targets.states` themselves. The teacher's model is held beside the model that trains, frozen and
      without capacity noise, and sees batches whole.
    step:        of the teacher's checkpoint; None = the newest.
    temperature: T.
    top:         0, or how many of a prediction's entries are compared: those that the teacher has largest, as
      if there were no others (SlimMoE, arXiv:2506.18349: 8 (u)).
    weight:      share of the distance of predictions in the loss. 0.0 beside `layers`: predictions are not
      compared, and need not be alike.
    layers:      pairs of blocks, of this model and of the teacher, such as ('decoder_01', 'decoder_03').
    distance:    a key of DISTANCES, in float32.
    hidden_weight: coefficient of the distance of states.
    project:     W, width of the teacher; 0 = states are compared as they are. Each of this model's blocks in
      `layers` gets a matrix [D,W], a parameter of the run, by which its states are multiplied.
  Differs: Hinton et al. minimise the cross entropy: this distance plus the teacher's entropy, a constant.
    FitNets trains on the hint first and alone. Its loss is half the sum where this is the mean over widths.
  """

  kinds, passes = (), 1                # those of `inner`
  measures = {'loss/distil': targets.Measure('nats per token'), 'loss/hidden': targets.Measure(''),
              'eval/loss': targets.Measure('')}

  def __init__(self, *, inner: ranges.Named('target'), run: ranges.Text = '',
               step: ranges.Natural | None = None, temperature: ranges.Positive = 1.0,
               top: ranges.Natural = 0, weight: ranges.Share = 0.5,
               layers: ranges.Many(ranges.Row(ranges.Text, ranges.Text)) = (),
               distance: ranges.Choice(*DISTANCES) = 'squared', hidden_weight: ranges.NonNegative = 1.0,
               project: ranges.Natural = 0):
    self.inner = inner()
    self.compares = bool(weight or not layers)
    if self.compares and not hasattr(self.inner, 'apart'):
      near = 'ids' if not layers else 'ids, or loss.weight=0.0 for the states alone'
      raise UserError(f'loss.inner.name: {type(self.inner).__name__} has no distance of two predictions; '
                      f'nearest: {near}')
    if project and not layers:
      raise UserError(f'loss.project={project}: there are no loss.layers to project; nearest: loss.project=0')
    self.run = str(run)
    self.step = step
    self.temperature = temperature
    self.top = top
    self.weight = weight
    self.pairs = tuple((mine, other) for mine, other in layers)
    self.hidden = tuple(dict.fromkeys(mine for mine, _ in self.pairs))
    self.others = tuple(dict.fromkeys(other for _, other in self.pairs))
    self.distance = DISTANCES[distance]
    self.hidden_weight = hidden_weight
    self.project = project
    self.kinds, self.passes = self.inner.kinds, self.inner.passes
    self.measures = self.inner.measures | self._measures()

  def _measures(self):
    """The measures of the distances that there are."""
    found, unit = {}, self.distance.__name__
    if self.compares:
      found |= {'loss/distil': targets.Measure('nats per token'),
                'eval/distil': targets.Measure('nats per token', said='{:.4f} from the teacher')}
    if self.pairs:
      found |= {'loss/hidden': targets.Measure(unit),
                'eval/hidden': targets.Measure(unit, said="states {:.4g} from the teacher's")}
    return found

  def reader(self, d_model: int, rngs: nnx.Rngs) -> 'Reader | None':
    """Returns the projections of the states of a model of width D, or None."""
    return Reader(self.hidden, d_model, self.project, rngs=rngs) if self.project else None

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[...], the weights of `inner`."""
    return self.inner.weights(batch)

  def counts(self, batch: dict) -> tuple:
    """Returns (counts of `inner`, f32[] the sum of the weights)."""
    return self.inner.counts(batch), targets.divisor(self.weights(batch))

  def loss(self, outputs: typing.Any, batch: dict, counts: typing.Any) -> tuple:
    """Returns (f32[], metrics) for outputs [B,...], of several passes [P,B,...]; see `targets.Target`."""
    seen, counts, tokens = (outputs, *counts) if self.pairs else (targets.Seen(outputs, {}), counts, {})
    total, values = self.inner.loss(seen.outputs, batch, counts[0])
    if self.compares:
      each = seen.outputs[None] if self.passes == 1 else seen.outputs
      apart = sum(self._apart(one, batch) for one in each) / counts[1]
      total = (1 - self.weight) * total + self.weight * apart
      values = values | {'loss/distil': apart / self.passes}
    if self.pairs:
      sums, _ = self._states(seen.hidden, batch)
      real = jnp.stack([tokens[mine.rpartition('_')[0]] for mine, _ in self.pairs])
      apart = jnp.mean(sums / jnp.maximum(real, 1.0))
      total += self.hidden_weight * apart
      values = values | {'loss/hidden': apart / self.passes}
    return total, values

  def judge(self, outputs: typing.Any, batch: dict) -> dict:
    """Returns the sums of `inner`, distil f32[], hidden and tokens f32[N], of outputs [B,...]."""
    seen = outputs if self.pairs else targets.Seen(outputs, {})
    sums = self.inner.judge(seen.outputs, batch)
    if self.compares:
      sums |= dict(distil=self._apart(seen.outputs, batch))
    if self.pairs:
      sums |= dict(zip(('hidden', 'tokens'), self._states(seen.hidden, batch)))
    return sums

  def _apart(self, outputs, batch):
    """The weighted sum f32[] of the distances of predictions [B,...]."""
    others = self._given(batch, targets.OUTPUTS)
    if others.shape != outputs.shape:
      raise UserError(f'loss.run={self.run!r}: its model gives {list(others.shape)}, and this one '
                      f'{list(outputs.shape)}; they must be alike, such as in model.vocab_size')
    others = jax.lax.stop_gradient(others)
    if self.top:
      others, kept = jax.lax.top_k(others, min(self.top, others.shape[-1]))
      outputs = jnp.take_along_axis(outputs, kept, -1)
    distance = self.inner.apart(outputs, others, self.temperature)
    return jnp.sum(distance * self.weights(batch))

  def _states(self, found, batch):
    """(sums of the distances of states f32[N], real tokens f32[N]) of the N pairs; passes add up."""
    sums, tokens = [], []
    for mine, name in self.pairs:
      x, mask = found[mine].x, found[mine].mask
      other = self._given(batch, targets.states(name))
      if x.shape[-3:] != other.shape:
        alike = x.shape[-3:-1] == other.shape[:-1]
        near = f'nearest: loss.project={other.shape[-1]}' if alike else 'they must be alike but for the width'
        raise UserError(f'loss.run={self.run!r}: states after its {name} are {list(other.shape)}, and here '
                        f'after {mine} {list(x.shape[-3:])}; {near}')
      apart = self.distance(x.astype(jnp.float32), jax.lax.stop_gradient(other).astype(jnp.float32))
      sums.append(jnp.sum(jnp.where(mask, apart, 0.0)))
      tokens.append(jnp.sum(mask, dtype=jnp.float32))
    return jnp.stack(sums), jnp.stack(tokens)

  def _given(self, batch, entry):
    if entry not in batch:
      raise UserError(f"loss.run='': the data bring no {entry}; set loss.run to the run directory of the "
                      'teacher')
    return batch[entry]

  def metrics(self, totals: dict) -> dict:
    """Returns the metrics of `inner`, and the distances."""
    values = self.inner.metrics(totals)
    if self.compares:
      values |= {'eval/distil': totals['distil'] / totals['weight']}
    if self.pairs:
      values |= {'eval/hidden': float(np.mean(totals['hidden'] / np.maximum(totals['tokens'], 1.0)))}
    return values


class Reader(nnx.Module):
  """States times a matrix w [D,W] of each of the blocks `names`."""

  def __init__(self, names: typing.Sequence[str], d_model: int, width: int, *, rngs):
    for name in names:
      setattr(self, name, Linear(d_model, width, rngs=rngs))

  def __call__(self, found: dict[str, hidden.Hidden]) -> dict[str, hidden.Hidden]:
    """Returns states f32[B,T,W] for states [B,T,D]."""
    return {name: state.replace(x=getattr(self, name)(state.x)) for name, state in found.items()}


class Linear(nnx.Module):
  """x w in float32, w [D,W]."""

  def __init__(self, d_model: int, width: int, *, rngs):
    self.w = axes.param(nnx.initializers.lecun_normal(), (d_model, width), 'embed', 'unmodeled', rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns f32[...,W] for x [...,D]."""
    return x.astype(jnp.float32) @ self.w[...]
