"""What `stmoe routing` found, as a table, as lines and as figures; for terminals and pages.

`found` is what `answer.routing.diagnose` returns, as it lies in RUN/routing.json; None is a missing number.
"""

import math

import numpy as np

from stmoe.analysis import canvas

# Measure of a layer -> (heading, what the heading means).
COLUMNS = {
    'choices': ('choices', 'experts that compute a token, mean'),
    'without': ('without', 'share of tokens that no expert computes'),
    'allocation_entropy': ('allocation', 'entropy of first choices over ln E; 1 = all experts equally often'),
    'usage_perplexity': ('usage', 'exp of the entropy of the load, over E'),
    'dead': ('dead', 'share of experts without a token'),
    'weight_entropy': ('weights', "entropy of a token's weights over ln k; 1 = equal weights"),
    'margin': ('margin', "first minus second of a token's weights"),
    'probability_margin': ('p margin', 'first minus second probability of the softmax over all experts'),
    'output_similarity': ('similarity', "cosine between the outputs of a token's experts"),
    'anisotropy': ('anisotropy', 'mean cosine of the weights of two hidden units of all experts'),
    'overlap_before': ('overlap', 'share of experts that a token also had in the layer before'),
}
COMPARED = {
    'change': ('change', 'share of the choices that are others now (expert change rate)'),
    'overlap': ('overlap', 'share of the choices that are the same (saturation)'),
    'first_agreement': ('first', 'share of tokens whose first expert is the same'),
    'slot_change': ('slots', 'share of the choices that differ place by place'),
}
BY_DEPTH = ('allocation_entropy', 'weight_entropy', 'margin', 'output_similarity')
MAPS = 6                                 # layers of which maps are drawn
NAMED = 40                               # most rows of a map that have their names, and most of a table


def table(found):
  """Returns (headings, rows of texts) with a row per sparse layer; columns that no layer has are left out."""
  shown = [name for name in COLUMNS if any(layer.get(name) is not None for layer in found['layers'].values())]
  rows = [[name, *(number(layer.get(column)) for column in shown)] for name, layer in found['layers'].items()]
  return ['layer', *(COLUMNS[name][0] for name in shown)], rows


def compared(found):
  """Returns (headings, rows of texts) with a row per other checkpoint and layer."""
  rows = [[str(step), name, *(number(values.get(column)) for column in COMPARED)]
          for step, layers in found['against'].items() for name, values in layers.items()]
  return ['step', 'layer', *(heading for heading, _ in COMPARED.values())], rows


def domains(found):
  """Returns (headings, rows of texts): allocation entropy by layer, a row per domain, of the first NAMED."""
  layers = list(found['layers'])
  rows = [[name, *(number(inside.get(layer, {}).get('allocation_entropy')) for layer in layers)]
          for name, inside in found['domains'].items()]
  more = [[f'and {len(rows) - NAMED:,} more', *('' for _ in layers)]] if len(rows) > NAMED else []
  return ['domain', *layers], rows[:NAMED] + more


def lines(found):
  """Returns lines of text: the loss, the worth of first choices, temperatures, common use of experts."""
  said = [f'loss {number(found["loss"])} on {found["tokens"]:,} tokens, checkpoint of step {found["step"]:,}']
  for count, raised in found['dropped'].items():
    said.append(f'without the first {"choice" if int(count) == 1 else f"{count} choices"}: {signed(raised)}')
  said += [f'router logits divided by {value}: {signed(raised)}'
           for value, raised in found['temperatures'].items()]
  if found['universality'] is not None and len(found['layers']) > 1:
    said.append(f'layers use experts alike: {number(found["universality"])}')
  return said + [f'note: {note}' for note in found['notes']]


def number(value):
  """Returns a number as text, '–' for None."""
  return '–' if value is None else f'{value:.3f}'


def signed(value):
  """Returns a difference of losses as text, '–' for None."""
  return '–' if value is None else f'{value:+.4f}'


def figures(found):
  """Returns dict stem -> Figure: numbers by depth, co-activation, and choices against other checkpoints."""
  made = {'routing_depth': depth(found), 'routing_coactivation': coactivation(found)}
  if len(found['against']) > 1:
    made['routing_saturation'] = saturation(found)
  if found['domains']:
    made['routing_domains'] = shares(found)
  if any(len({*layer.get('places', ())} - {None}) > 1 for layer in found['layers'].values()):
    made['routing_places'] = places(found)
  return made


def depth(found):
  """Returns the Figure of some measures of each layer, from the first layer to the last."""
  layers = found['layers']
  shown = [name for name in BY_DEPTH if any(layer.get(name) is not None for layer in layers.values())]
  made, axes = canvas.new(1, max(len(shown), 1), 3.4 * max(len(shown), 1), 3.0)
  for ax, name, colour in zip(axes[0], shown, canvas.PALETTE):
    values = [math.nan if layer.get(name) is None else layer[name] for layer in layers.values()]
    ax.plot(range(len(values)), values, 'o-', color=colour, ms=4)
    ax.set_xticks(range(len(values)))
    canvas.label(ax, 'sparse layer', title=name.replace('_', ' '))
  return made


def _maps(found):
  """The names of at most MAPS layers, from the first to the last."""
  names = list(found['layers'])
  return [names[round(place)] for place in np.linspace(0, len(names) - 1, min(MAPS, len(names)))]


def coactivation(found):
  """Returns the Figure of which experts compute the same tokens: a heat map per layer, at most MAPS."""
  names = _maps(found)
  columns = min(3, len(names))
  rows = math.ceil(len(names) / columns)
  made, axes = canvas.new(rows, columns, 3.3 * columns + 0.8, 3.1 * rows)
  for ax in axes.flat[len(names):]:
    ax.remove()
  for ax, name in zip(axes.flat, names):
    pairs = np.array(found['layers'][name]['coactivation'])          # [E, E]
    np.fill_diagonal(pairs, np.nan)
    image = ax.imshow(pairs, cmap='Blues', vmin=0, vmax=1)
    ax.grid(False)
    canvas.label(ax, 'also computed by', 'tokens of expert' if ax is axes[0, 0] else None, name)
  bar = made.colorbar(image, ax=list(axes.flat[:len(names)]), shrink=0.85, pad=0.02)
  bar.set_label('share of tokens', fontsize=9.5, color=canvas.INK)
  bar.outline.set_visible(False)
  return made


def shares(found):
  """Returns the Figure of each expert's share of a domain's choices: a heat map per layer, at most MAPS.

  Domains are tasks, texts, and classes of images. A row adds up to 1.
  """
  domains, names = found['domains'], _maps(found)
  made, axes = canvas.new(1, len(names), 3.3 * len(names) + 1, min(1.2 + 0.25 * len(domains), 12))
  for ax, name in zip(axes[0], names):
    absent = dict(load=np.full(len(found['layers'][name]['load']), math.nan))
    loads = [layers.get(name, absent)['load'] for layers in domains.values()]    # [domains][E]
    made.colorbar(ax.imshow(loads, cmap='Blues', vmin=0, aspect='auto'), ax=ax, pad=0.02)
    ax.grid(False)
    if ax is axes[0, 0] and len(domains) <= NAMED:
      ax.set_yticks(range(len(domains)), domains)
    canvas.label(ax, 'expert', title=name)
  return made


def places(found):
  """Returns the Figure of how many experts compute the token at each place of a row, a line per layer."""
  made, axes = canvas.new(1, 1, 5.4, 3.4)
  ax, styles = axes[0, 0], canvas.styles(list(found['layers']))
  for name, (colour, dash) in styles.items():
    values = [math.nan if value is None else value for value in found['layers'][name].get('places', ())]
    ax.plot(range(len(values)), values, dash, color=colour)
  canvas.label(ax, 'place in the row', 'experts that compute a token')
  canvas.legend(made, dict(zip(styles, ax.lines)))
  return made


def saturation(found):
  """Returns the Figure of the share of choices that other checkpoints have in common with this one."""
  steps = sorted(found['against'], key=int)
  made, axes = canvas.new(1, 1, 5.4, 3.4)
  ax, styles = axes[0, 0], canvas.styles(list(found['layers']))
  for name, (colour, dash) in styles.items():
    values = [found['against'][step].get(name, {}).get('overlap') for step in steps]
    ax.plot([int(step) for step in steps], [math.nan if value is None else value for value in values], dash,
            marker='o', ms=4, color=colour)
  canvas.label(ax, 'optimizer steps', f'choices as at step {found["step"]:,}')
  canvas.engineering(ax.xaxis)
  canvas.legend(made, dict(zip(styles, ax.lines)))
  return made
