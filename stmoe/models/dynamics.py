"""Trajectories of dynamical systems: a learned context of each environment, and a stack over first states."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.core.units import trajectories
from stmoe.parts import stack


class Dynamics(nnx.Module):
  """Contexts [N,C] of N environments, and blocks over trajectories that begin as their first states, T times.

  Every environment is a system with numbers of its own; its context is all that tells it from others. A token
  is a trajectory of D = T n numbers. The block of letter m is a `mixer` layer with `ode` experts, whose
  output is what the trajectory adds to its first state. The contexts have the label `context` in section
  `groups`.

  Args:
    d_model:          D, T states of n numbers.
    num_values:       n.
    num_environments: N.
    context:          C.
    context_scale:    deviation of the contexts at first; they begin equal where it is 0, as published.
    layers:           pattern of the stack.
    blocks:           mapping letter -> layer (see `stack.Stack`).
    scan_layers, remat: see `stack.Stack`.
  """

  targets = 'trajectories'

  def __init__(self, *, d_model: ranges.Count, num_values: ranges.Count, num_environments: ranges.Count,
               context: ranges.Count, context_scale: ranges.NonNegative = 0.0,
               layers: ranges.Pattern = (('m', 1),), blocks, scan_layers: ranges.Flag = False,
               remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    self.contexts = Contexts(num_environments, context, context_scale, rngs=rngs)
    self.encoder = stack.Stack(d_model, name='encoder', pattern=layers, blocks=blocks, norm=Same,
                               scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.d_model, self.length, self.num_values = d_model, d_model // num_values, num_values
    self.num_environments = num_environments

  def __call__(self, batch: dict, key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (`trajectories.Predicted` with values f32[B,K,D], aux: dict layer name -> Aux).

    Args:
      batch:  initial f32[B,K,n], or f32[B,K,D] of observed sequences; given/environment i32[B], around
        i32[B]; weights f32[B,K]: 0 where no trajectory is. In training also values f32[B,K,D], by which
        fitted gates learn.
      key:    PRNG key, or None for no randomness.
      train:  training capacities.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    environment, contexts = batch['given/environment'], self.contexts.table[...]
    context = contexts[environment]                                  # [B, C]
    given = contract.given(batch, 'encoder') | dict(context=context[:, None])
    if train:
      given |= dict(wanted=batch['values'])
    ctx = contract.Context(**contract.numbered(batch['weights'] > 0), key=key, step=jnp.asarray(step),
                           train=train, tokens=tokens['encoder'], given=given)
    repeats = self.d_model // batch['initial'].shape[-1]             # 1 of observed sequences
    x, aux = self.encoder(jnp.tile(batch['initial'], (1, 1, repeats)), ctx.fold('encoder'))
    aux, choice = _without_choices(aux)
    place = lambda first, mine: trajectories.ranks(contexts, first)[mine]
    rank = jax.vmap(place)(batch['around'], environment)             # [B]
    return trajectories.Predicted(x, choice, rank, context), aux

  def count_tokens(self, batch: dict) -> dict:
    """Returns the trajectories in `batch`: dict(encoder=f32[])."""
    return {'encoder': jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list:
    """Returns the list of the model's stacks."""
    return [self.encoder]


def _without_choices(aux):
  """(Aux by layer without choices, choice f32[B,K,E] of the first sparse layer)."""
  choices = [report.records['choice'] for report in aux.values() if 'choice' in report.records]
  return {name: report.without('choice') for name, report in aux.items()}, choices[0]


class Contexts(nnx.Module):
  """The table [N,C] of contexts, normal with deviation `scale`; rows are looked up, they multiply nothing."""

  label, products_per_row = 'context', 0

  def __init__(self, number: int, width: int, scale: float, *, rngs):
    init = nnx.initializers.normal(scale) if scale else nnx.initializers.zeros
    self.table = axes.param(init, (number, width), 'unmodeled', 'unmodeled', rngs=rngs)


class Same(nnx.Module):
  """No norm: states are numbers with a meaning."""

  def __init__(self, d_model: int, *, rngs):
    del d_model, rngs

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [B,T,D]."""
    return x
