"""Training steps of published models, cut to the layers that fit, beside dense models of equal active FLOPs.

Parameters and moments are float32, products bfloat16, tokens are drawn. The two models take turns in one
process. Afterwards a step of each is profiled: where its time goes, in ms.
"""

import functools
import statistics
import time

import jax
import numpy as np

from stmoe.analysis import flops
from stmoe.aot import program
from stmoe.aot import step as aot
from stmoe.bench import by_scope
from stmoe.bench import layers as bench
from stmoe.bench import scopes
from stmoe.bench.device import pending
from stmoe.bench.device import markdown
from stmoe.bench.device import models
from stmoe.hosts import hardware
from stmoe.train import check
from stmoe.train import state as states

WORTH = 2
ROUNDS, STEPS = 5, 3                     # a round is so many steps of each model
COLUMNS = ('model', 'layers', 'tokens/s', 'TFLOP/s', 'MFU', 'dense MFU', 'step ms', 'of dense', 'peak GB',
           'dense peak GB')


def jobs(dry):
  """Returns a Job for each model."""
  return [pending.Job(f'training {name}', 30, functools.partial(begin, pair, dry))
          for name, pair in models.pairs(dry).items()]


def begin(pair, dry, submit):
  """The Job's `begin`: a future for each of both models."""
  futures = [submit(lambda which=which: Step(which(models.cut(pair, memory()))))
             for which in (pair.sparse, pair.dense)]
  rounds, steps = (1, 1) if dry else (ROUNDS, STEPS)
  return futures, lambda: rows(models.cut(pair, memory()), *(f.result() for f in futures), rounds, steps)


def memory():
  """Returns the bytes that JAX may take of the device, or None where JAX does not know."""
  return (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')


class Step:
  """The compiled training step of a configuration, and what begins a training."""

  def __init__(self, cfg, devices=None):
    began = time.perf_counter()
    self.cfg, self.devices = cfg, devices or jax.devices()[:1]
    check.counts(cfg)
    with states.on_mesh(cfg.mesh, self.devices) as self.mesh:
      self.plan, lowered = aot.lower(cfg, self.mesh)
      first = jax.jit(lambda: states.fresh(cfg, self.plan), out_shardings=self.plan.shardings()).lower()
      self.step, self.first = lowered.compile(), first.compile()
    self.compile_s = time.perf_counter() - began
    positions = flops.lengths(cfg)
    self.tokens = cfg.train.batch_size * sum(positions.values())
    self.flops = flops.active_per_token(cfg)['train'] * positions['decoder'] * cfg.train.batch_size

  def start(self):
    """Makes the state and a batch on the device."""
    with states.on_mesh(self.cfg.mesh, self.devices):
      self.state, self.batch = self.first(), check.place(batch(self.cfg), self.mesh)

  def run(self, count):
    """Returns the seconds of a step, the mean of `count`."""
    began = time.perf_counter()
    for _ in range(count):
      self.state, report = self.step(self.state, self.batch)
    jax.block_until_ready(self.state)
    self.loss = float(report['loss/total'])
    return (time.perf_counter() - began) / count


  def by_scope(self):
    """Returns dict part of `scopes.SCOPES` -> ms of one profiled step."""
    return by_scope.profiled(lambda: self.run(1), *by_scope.named(self.step, self.state))[0]


def batch(cfg):
  """Returns a batch of `cfg` of drawn tokens, no padding: dict name -> NumPy array."""
  rng = np.random.default_rng(0)

  def made(name, shape):
    if name.endswith('positions'):
      return np.broadcast_to(np.arange(shape.shape[1]), shape.shape)
    if name.endswith(('weights', 'segment_ids')):
      return np.ones(shape.shape)
    return rng.integers(1, cfg.model.vocab_size, shape.shape)
  return {name: made(name, shape).astype(shape.dtype)
          for name, shape in check.batch_shapes(cfg, cfg.train.batch_size).items()}


def rows(count, sparse, dense, rounds, steps):
  """Returns the row of both Steps timed in turn; `count` is the layers that the models have."""
  machine = bench.probe('bfloat16')
  for model in (sparse, dense):
    model.start()
    model.run(1)                         # warms up
  taken = [(sparse.run(steps), dense.run(steps), machine()) for _ in range(rounds)]
  chip = hardware.of_kind(sparse.devices[0].device_kind)
  peak = chip.flops if chip else None
  median = lambda place: statistics.median(times[place] for times in taken)
  sides = [_side(sparse, median(0), peak), _side(dense, median(1), peak)]
  ratio = statistics.median(a / b for a, b, _ in taken)
  return [dict(layers=count, sparse=sides[0], dense=sides[1], ratio=ratio, rounds=rounds, steps=steps,
               ratio_per_flop=ratio * dense.flops / sparse.flops, matmul_gflops=max(r for *_, r in taken))]


def _side(model, seconds, peak):
  """What is known of one of the two models; mfu is of the vendor's peak, None without one."""
  return dict(by_scope=model.by_scope(), step_ms=1e3 * seconds,
              tokens=model.tokens, tokens_per_s=model.tokens / seconds,
              tflops=model.flops / seconds / 1e12, mfu=peak and model.flops / seconds / peak,
              peak_gb=program.memory(model.step)['peak'] / 1e9, compile_s=model.compile_s, loss=model.loss,
              parameters=flops.parameters(model.cfg)['total'])


def table(records):
  """Returns a table with a row per model, and one of where the time of its step and of its twin's goes."""
  rows = {name.partition(' ')[2]: row for name, record in records.items() for row in record['rows']}
  cells = [_cells(name, row) for name, row in rows.items()]
  times = {f'{name}{", dense" if side == "dense" else ""}': row[side].get('by_scope', {})
           for name, row in rows.items() for side in ('sparse', 'dense')}
  parts = [part for part in (*scopes.SCOPES, scopes.HOST) if any(part in found for found in times.values())]
  ms = [(name, *(f'{found[part]:.1f}' if part in found else '' for part in parts))
        for name, found in times.items() if found]
  where = [markdown.of(('ms of a step', *parts), ms)] if ms else []
  return '\n\n'.join([markdown.of(COLUMNS, cells), *where])


def _cells(name, row):
  share = lambda value: '' if value is None else f'{value:.1%}'
  s, d = row['sparse'], row['dense']
  return (name, row['layers'], f'{s["tokens_per_s"]:,.0f}', f'{s["tflops"]:.0f}', share(s['mfu']),
          share(d['mfu']), f'{s["step_ms"]:.0f}', f'{row["ratio"]:.2f}', f'{s["peak_gb"]:.1f}',
          f'{d["peak_gb"]:.1f}')
