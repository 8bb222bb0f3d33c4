"""Which surgery leaves most of a trained model at equal parameters, at once and after some tuning?"""

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis import verdict
from stmoe.experiments.compression import sweep
from stmoe.sweep import collect

BITS = 'eval/bits_per_byte'
AT_ONCE, TUNED = f'start/{BITS}', BITS
HALF = 0.5
# Tuning moves their zeros, so that a tuned model has no share any more.
FILLED = ('wanda', 'owl', 'stun_wanda')
NEAR = 0.02                              # bits per byte that count as nothing lost
ONE = 0.125                              # share of a model whose experts were merged into one

# (claim, better method, worse method, metric) of models with half of the parameters of their experts.
ORDERS = [
    ('slimming all experts better than merging, at once', 'slim', 'merge', AT_ONCE),
    ('slimming all experts better than merging with distillation, tuned', 'slim', 'merge_distilled', TUNED),
    ('slimming all experts better than pruning the least used, tuned', 'slim', 'prune_used', TUNED),
    ('slimming all experts better than Wanda, at once', 'slim', 'wanda', AT_ONCE),
    ('SlimMoE: with distillation better than without', 'slim_distilled', 'slim', TUNED),
    ('SlimMoE: two stages better than one', 'slim_twice', 'slim_distilled', TUNED),
    ('SlimMoE: units by the loss better than by activations, at once', 'slim', 'slim_activation', AT_ONCE),
    ('M-SMoE: merging better than dropping the least used, tuned', 'merge', 'prune_used', TUNED),
    ('M-SMoE: aligned better than not aligned, at once', 'merge', 'merge_unaligned', AT_ONCE),
    ('M-SMoE: aligned better than not aligned, tuned', 'merge', 'merge_unaligned', TUNED),
    ('M-SMoE: groups by routing better than random, at once', 'merge_unaligned', 'average_random', AT_ONCE),
    ('M-SMoE: distillation better than none', 'merge_distilled', 'merge', TUNED),
    ('MC-SMoE better than M-SMoE, tuned', 'mc_smoe', 'merge_distilled', TUNED),
    ('Sub-MoE: merging by outputs better than dropping, at once', 'sub_moe', 'prune_used', AT_ONCE),
    ('UNCURL: half better than as large from scratch', 'uncurl', 'scratch', TUNED),
    ('REAP better than dropping the least used, at once', 'reap', 'prune_used', AT_ONCE),
    ('REAP better than merging, at once', 'reap', 'merge', AT_ONCE),
    ('STUN: then Wanda better than Wanda alone, at once', 'stun_wanda', 'wanda', AT_ONCE),
    ('STUN: Wanda better than dropping experts alone, at once', 'wanda', 'stun', AT_ONCE),
    ('OWL better than Wanda, at once', 'owl', 'wanda', AT_ONCE),
    ('dropping the least used better than random ones, tuned', 'prune_used', 'prune_random', TUNED),
]


def report(results):
  """Returns the Verdicts on the claims of README.md, for each start."""
  found = []
  for start in sweep.STARTS:
    of = lambda method, metric=TUNED, share=HALF, start=start: collect.values(
        results, f'{start}_{method}_{share}', metric)
    found.append(verdict.exceeds(f'{start}: the full model better than half of it from scratch',
                                 of('full', share=1.0), of('scratch')))
    found.append(verdict.exceeds(f'{start}: the full model better than half of it by slimming, tuned',
                                 of('full', share=1.0), of('slim')))
    found.append(verdict.exceeds(f'{start}: the full model better than its experts merged into one, tuned',
                                 of('full', share=1.0), of('merge', share=ONE)))
    found.append(verdict.exceeds(f'{start}: half of it by slimming better than a dense model of that size',
                                 of('slim'), collect.values(results, f'dense_{HALF}', TUNED)))
    found += [verdict.exceeds(f'{start}: {claim}', of(better, metric), of(worse, metric))
              for claim, better, worse, metric in ORDERS]
    found.append(verdict.alike(f'{start}: EAQuant with 8 bits loses nothing, at once',
                               of('ea_quant', AT_ONCE, 0.25), of('full', AT_ONCE, 1.0), NEAR))
  return [*found, *_compressed(results)]


def _compressed(results):
  """The Verdict on Compressed Experts, which are of tokens with two experts."""
  of = lambda method, metric: collect.values(results, f'top2_{method}_1.0', metric)
  return [verdict.exceeds('top2: Compressed Experts: tuning makes up for a part of the loss',
                          of('compressed_experts', TUNED), of('compressed_experts', AT_ONCE))]


# Colour -> methods, which have markers of their own.
FAMILIES = {
    0: ('slim', 'slim_activation', 'slim_distilled', 'slim_twice'),
    1: ('merge', 'merge_unaligned', 'merge_distilled', 'redirect', 'average_random', 'sub_moe', 'uncurl'),
    2: ('prune_used', 'prune_random', 'prune_magnitude', 'reap', 'stun'),
    3: ('wanda', 'owl', 'stun_wanda'),
    4: ('mpoe', 'mc_smoe', 'mos'),
    5: ('ea_quant', 'd2moe'),
    6: ('full', 'scratch', 'dense', 'compressed_experts'),
}
MARKERS = 'osD^vPX'


def figures(results):
  """Returns bits per byte against stored and against active parameters, at once and after tuning."""
  return {name: _plot(results, metric, what)
          for name, metric, what in (('tuned', TUNED, 'after tuning'), ('at_once', AT_ONCE, 'at once'))}


def _plot(results, metric, what):
  """A Figure with a row for each start: the means of seeds, a line through the shares of a method."""
  figure, axes = canvas.new(len(sweep.STARTS), 2, 10.0, 4.0 * len(sweep.STARTS))
  handles, rows = {}, {}
  for one in results:
    rows.setdefault(one.name, []).append([one.row.get('active'), one.row.get(metric)])
  for (stored, active), start in zip(axes, sweep.STARTS):
    for colour, methods in FAMILIES.items():
      for method, marker in zip(methods, MARKERS):
        points = _points(rows, start, method) if metric == AT_ONCE or method not in FILLED else []
        if points:
          shares, actives, bits = zip(*points)
          style = dict(lw=0.8, marker=marker, ms=5, color=canvas.PALETTE[colour])
          handles[method], = stored.plot(shares, bits, '-', **style)
          active.plot(actives, bits, '-', **style)
    canvas.label(stored, 'share of the parameters of experts, or of their bits', f'bits per byte {what}',
                 start)
    canvas.label(active, 'active parameters of a token', None, start)
    canvas.engineering(active.xaxis)
  canvas.legend(figure, handles)
  return figure


def _points(rows, start, method):
  """The sorted list of (share, active parameters, metric) of a method, means over seeds.

  rows: dict name -> list of [active parameters, metric].
  """
  found = []
  for name, numbers in rows.items():
    share, finite = sweep.share(name, start, method), [pair for pair in numbers if None not in pair]
    if share is not None and finite:
      found.append((share, *np.mean(finite, axis=0)))
  return sorted(found)
