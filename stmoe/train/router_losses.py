"""The losses of the routers, made one number by the coefficients and reductions of the configuration.

Models return them unweighted, in `Aux`. What the outputs cost is said by a target (`stmoe/targets`).
"""

import jax.numpy as jnp

from stmoe import errors

# Names of the router losses in metrics.jsonl; any other loss NAME is 'loss/aux_NAME'.
METRIC = {'balance': 'loss/aux_balance', 'z': 'loss/router_z'}
REDUCTIONS = {'mean': jnp.mean, 'sum': jnp.sum}


def router(aux, weighted):
  """Returns (loss f32[], values): the weighted sum of the routers' losses, and each one unweighted.

  Args:
    aux:      dict layer -> Aux.
    weighted: dict name -> (coefficient, 'mean' | 'sum' over the layers that report it).
  Returns:
    loss:   coefficient 0 leaves a term out of it.
    values: dict name -> f32[], also of losses without coefficient (their mean over layers).
  """
  values = {}
  for name, each in of_layers(aux, weighted).items():
    reduction = weighted[name][1] if name in weighted else 'mean'
    values[name] = REDUCTIONS[reduction](jnp.stack(each))            # over [layers]
  terms = [coefficient * values[name] for name, (coefficient, _) in weighted.items() if coefficient]
  return sum(terms, jnp.zeros(())), values


def of_layers(aux, weighted=()):
  """Returns dict name -> list of f32[], each loss from the layers that report it, sorted by name.

  A loss NAME of an attention is another one, attention_NAME, where `weighted` has that: SwitchAll weighs the
  routers of attention otherwise than those of feed-forward layers (arXiv:2312.07987).

  Args:
    aux: dict layer -> Aux, 'decoder_03' or 'decoder_03.attention.PART'.
  """
  found = {}
  for layer, report in aux.items():
    sub_layer = layer.partition('.')[2].partition('.')[0]            # '' of a feed-forward layer
    for name, value in report.losses.items():
      own = f'{sub_layer}_{name}'
      found.setdefault(own if own in weighted else name, []).append(value)
  return dict(sorted(found.items()))


def reported(aux, weighted=()):
  """Returns the sorted names of the losses that at least one layer reports; see `of_layers`."""
  return list(of_layers(aux, weighted))


def unweighed(aux: dict, weighted) -> list[str]:
  """Returns the names of the losses that layers report and of which section `losses` says nothing."""
  return [name for name in reported(aux) if name not in weighted]


def check(aux, weighted):
  """Raises UserError for a weighted loss that no layer reports, or an unknown reduction.

  Args:
    aux: dict layer -> Aux, of shapes or arrays.
  """
  known = reported(aux, weighted)
  for name, (coefficient, reduction) in weighted.items():
    if reduction not in REDUCTIONS:
      raise errors.UserError(f'losses.{name}={coefficient, reduction}: the reduction over layers is '
                             f'{reduction!r}{errors.nearest(reduction, REDUCTIONS)} (there are: mean, sum)')
    if coefficient and name not in known:
      there = ', '.join(known) or 'none'
      raise errors.UserError(f'losses.{name} has coefficient {coefficient}, but no layer reports {name!r}'
                             f'{errors.nearest(name, known)} (reported: {there})')
