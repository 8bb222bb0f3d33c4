"""What policies of caches and HybriMoE cost on one trace, side by side."""

import functools

import numpy as np

from stmoe.analysis import serving
from stmoe.analysis import table as plain
from stmoe.analysis.serving import expert_cache
from stmoe.analysis.serving import hybrimoe
from stmoe.analysis.serving import prefetch as predictions
from stmoe.analysis.serving import se_moe


def compared(trace: serving.Trace, slots: int, times: hybrimoe.Times, prefetch: int = 0) -> dict:
  """Returns the dict of a trace with `slots` experts of a layer on the device: facts, and a row a policy.

  A row is a dict. hits: share of all chosen experts; gpu_hits: of those that ran on the device. time: the
  mean of a token over all layers, and its 99th percentile. loads: experts that a token moves.
  With `prefetch`, HybriMoE also goes by each of the PREDICTIONS.
  """
  asked = int((trace.chosen >= 0).sum())
  again, chance = serving.repeats(trace)
  policies = {name: expert_cache.replay(trace, name, slots) for name in expert_cache.POLICIES}
  rows = {name: _row(trace, found, times)
          for name, found in (policies | dict(most_used=expert_cache.most_used(trace, slots))).items()}
  foreseen = {name: foresee(trace) for name, foresee in predictions.PREDICTIONS.items()} if prefetch else {}
  for name, wanted in {'hybrimoe': None, **{f'hybrimoe, {name}': w for name, w in foreseen.items()}}.items():
    found = hybrimoe.decode(trace, slots, times, prefetch, wanted=wanted)
    rows[name] = dict(hits=found.hits, gpu_hits=found.gpu_hits, loads=found.moves, **_times(found.time))
  steps, layers, choices = trace.chosen.shape
  places = int(np.minimum(slots, trace.experts).sum()) // trace.num_experts
  if places:
    rows['ring'] = _ring(trace, slots, places, times)
  return dict(described=trace.described, layers=layers, experts=trace.num_experts, slots=slots, tokens=steps,
              choices=choices, requests=asked, repeats=float(again.mean()),
              repeats_by_chance=float(chance.mean()), policies=rows)


def _row(trace, found, times):
  """The row of a Replay whose absent experts are moved to the device and run there."""
  chosen = np.sum(trace.chosen >= 0, axis=2)                         # [steps, L]

  @functools.cache
  def layer(hits, misses):
    experts = list(range(hits + misses))
    tokens = dict.fromkeys(experts, 1)
    return hybrimoe.schedule(experts[:hits], experts[hits:], tokens, times, cpu=False).time
  time = np.array([sum(layer(int(h), int(n - h)) for h, n in zip(*step))
                   for step in zip(found.hits, chosen)])
  share = float(found.hits.sum() / max(chosen.sum(), 1))
  loads = float((chosen - found.hits).sum() / len(chosen))
  return dict(hits=share, gpu_hits=share, loads=loads, **_times(time))


def _ring(trace, slots, places, times):
  """The row of a ring with room for all experts of `places` layers; the first copies are not counted."""
  steps, layers, _ = trace.chosen.shape
  chosen = np.sum(trace.chosen >= 0, axis=2)                         # [steps, L]
  one = lambda n: hybrimoe.schedule(list(range(n)), [], dict.fromkeys(range(n), 1), times, cpu=False).time
  compute = np.array([one(n) for n in range(chosen.max() + 1)])[chosen].ravel()
  fits = np.minimum(slots, trace.experts).sum() == trace.experts.sum()
  moved = trace.experts * (not fits)                                 # [L] of sections; where all fit, none is
  found = se_moe.ring(compute, np.tile(moved * times.move, steps), places)
  time = found.time.reshape(steps, layers).sum(1)
  return dict(hits=1.0, gpu_hits=1.0, loads=float(moved.sum()), **_times(time))


def _times(time):
  return dict(time=float(time.mean()), time_p99=float(np.percentile(time, 99)))


def table(stack: str, found: dict) -> str:
  """Returns the lines of text of what `compared` found for a stack."""
  head = (f'{stack}: {found["described"]}, {found["slots"]} of them on the device; {found["tokens"]:,} '
          f'tokens.\nAn expert is that of the token before in {found["repeats"]:.1%} of the choices, by '
          f'chance in {found["repeats_by_chance"]:.1%}.')
  rows = [[name, f'{row["hits"]:.1%}', f'{row["gpu_hits"]:.1%}', f'{row["time"]:.3f}',
           f'{row["time_p99"]:.3f}', f'{row["loads"]:.2f}'] for name, row in found['policies'].items()]
  columns = ['policy', 'hits', 'hits on the GPU', 'time a token', 'time, p99', 'loads a token']
  return f'{head}\n{plain.plain(columns, rows)}'
