"""The losses of the routers, made one number by the coefficients and reductions of the configuration.

Models return the losses unweighted, in `Aux`. A target says what the outputs cost (`stmoe/targets`).
"""

import jax.numpy as jnp

from stmoe import errors
from stmoe import modules

# Names of the router losses in metrics.jsonl; any other loss NAME is 'loss/aux_NAME'.
METRIC = {'balance': 'loss/aux_balance', 'z': 'loss/router_z'}
REDUCTIONS = {'mean': jnp.mean, 'sum': jnp.sum}


def router(aux, weighted):
  """Returns (loss f32[], values): the weighted sum of the routers' losses, and each loss unweighted.

  Args:
    aux:      dict layer -> Aux.
    weighted: dict name -> (coefficient, 'mean' | 'sum' over the layers that report it).
  Returns:
    loss:   without terms of coefficient 0.
    values: dict name -> f32[], also of losses without coefficient (their mean over layers).
  """
  values = {}
  for name, by_layer in of_layers(aux, weighted).items():
    reduction = weighted[name][1] if name in weighted else 'mean'
    values[name] = REDUCTIONS[reduction](jnp.stack(by_layer))        # over [layers]
  terms = [coefficient * values[name] for name, (coefficient, _) in weighted.items() if coefficient]
  return sum(terms, jnp.zeros(())), values


def of_layers(aux, weighted=()):
  """Returns dict name -> list of f32[], each loss from the layers that report it, sorted by name.

  Where `weighted` has attention_NAME, that is the loss NAME of attention: SwitchAll weighs the
  routers of attention otherwise than routers of feed-forward layers (arXiv:2312.07987).

  Args:
    aux: dict layer -> Aux, 'decoder_03' or 'decoder_03.attention.PART'.
  """
  by_name = {}
  for layer, report in aux.items():
    sub_layer = layer.partition('.')[2].partition('.')[0]            # '' of a feed-forward layer
    for name, value in report.losses.items():
      own_name = f'{sub_layer}_{name}'
      by_name.setdefault(own_name if own_name in weighted else name, []).append(value)
  return dict(sorted(by_name.items()))


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
  reported_names = reported(aux, weighted)
  for name, (coefficient, reduction) in weighted.items():
    if reduction not in REDUCTIONS:
      raise errors.UserError(f'losses.{name}={coefficient, reduction}: the reduction over layers is '
                             f'{reduction!r}{errors.nearest(reduction, REDUCTIONS)} (there are: mean, sum)')
    if coefficient and name not in reported_names:
      listed = ', '.join(reported_names) or 'none'
      raise errors.UserError(f'losses.{name} has coefficient {coefficient}, but no layer reports {name!r}'
                             f'{errors.nearest(name, reported_names)} (reported: {listed})')


def check_needed(model, weighted):
  """Raises UserError for a part of `model` that only losses train of which none is weighted."""
  for _, part in modules.offering(model, 'needs_loss'):
    names = part.needs_loss
    if names and not any(weighted.get(name, (0.0, 'mean'))[0] for name in names):
      *_, kind, name = type(part).__module__.split('.')
      raise errors.UserError(f'{kind.removesuffix("s")} {name}: losses.{" and losses.".join(names)} without '
                             'coefficient, but nothing else trains some of its parameters; nearest: '
                             f'losses.{names[0]}=0.001')
