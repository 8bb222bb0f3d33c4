"""Which routers gave weights that are no numbers, looked for once a loss is not finite."""

import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe import modules
from stmoe.core import checked
from stmoe.hosts import distributed
from stmoe.train import step as steps


def routers(plan, state, batch, microbatches):
  """Returns a line for every sparse layer in which live edges of `batch` have a weight that is not finite.

  The model runs once more as in training, forward only; [] if the routers are not to blame.

  Args:
    plan, state: the Blueprint, and the training state after the step that refused `batch`.
  """
  def count(params, routers, batch, key, step):
    model = modules.wrapped(plan.model(params, routers), lookup.constructor('router', 'trace'))

    def of_part(part):
      index, part = part
      _, aux = model(part, jax.random.fold_in(key, index) if microbatches > 1 else key, train=True, step=step)
      return {layer: sum(_bad(edges, number) for _, edges, number in a.edges())
              for layer, a in aux.items() if a.edges()}
    parts = jnp.arange(microbatches), steps.split(batch, microbatches)
    return jax.tree.map(jnp.sum, jax.lax.map(of_part, parts))

  step = state['step'] - 1                                           # it counts the refused one, too
  run = jax.jit(count, out_shardings=distributed.everywhere(plan.mesh))
  bad_edges = distributed.fetch(run(state['params'], state['router_state'], batch,
                                jax.random.fold_in(state['key'], step), step))
  model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
  layers = {name: layer for stack in model.stacks() for name, layer in stack.by_name().items()}
  file = lambda name: ', '.join(sorted({checked.file(part.router) for part in modules.sparse(
      layers.get(name, model))}))
  return [f'layer {name}: {file(name)}: {int(number)} live edges have a weight that is no finite number'
          for name, number in sorted(bad_edges.items()) if number]


def _bad(edges, experts):
  return jnp.sum(~jnp.isfinite(edges['weight']) & (edges['expert'] < experts))
