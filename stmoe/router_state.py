"""Router state that lives across optimizer steps and that only `commit` changes.

The forward pass reads a RouterState and never writes the state. The pass returns this batch's load and
statistics in `Aux`. Once per optimizer step `commit` lets every router that owns state update the state from
the numbers of the whole batch. An update in the forward would come once per microbatch, and once more under
rematerialisation.
"""

import typing

from flax import nnx
import jax
import jax.numpy as jnp


class RouterState(nnx.Variable):
  """A variable of a router that is read in the forward and changed only by `commit`."""


def commit(model: typing.Any, aux: dict, offer: str = 'commit') -> None:
  """Lets every stateful layer of `model` update its RouterState in place.

  Args:
    model: a model; what offers `commit` in its stacks' layers is called (`stmoe.modules`).
    aux:   dict layer name -> Aux of one optimizer step, of all microbatches.
    offer: 'accumulate' with the Aux of one microbatch, for what the later ones of the step may know of it.
  """
  aux = across(aux)
  for stack in model.stacks():
    stack.commit(aux, offer)


def across(aux: dict) -> dict:
  """Returns `aux`, dict layer name -> Aux, in which statistics of scope 'model' are those of all layers."""
  found: dict[str, list] = {}
  for report in aux.values():
    for name, statistic in report.statistics.items():
      if statistic.scope == 'model':
        found.setdefault(name, []).append(statistic)
  joint = {name: jax.tree.map(lambda *parts: jnp.stack(parts), *parts).together()
           for name, parts in found.items()}
  own = lambda report: {name: joint.get(name, each) for name, each in report.statistics.items()}
  return {layer: report.replace(statistics=own(report)) for layer, report in aux.items()}


def vectors(model: typing.Any) -> dict[str, dict[str, jax.Array]]:
  """Returns dict layer name -> dict dotted path -> f32[] or f32[n]: the RouterState that figures can follow.

  Tables and matrices are left out: they would make large files of what seldom changes.
  """
  by_layer: dict[str, dict[str, jax.Array]] = {}
  for stack in model.stacks():
    for layer, values in stack.states().items():
      small = {path: v for path, v in values.items() if v.ndim < 2 and v.dtype == 'float32'}
      by_layer |= {layer: small} if small else {}
  return by_layer
