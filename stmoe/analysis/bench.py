"""Sparse layers timed against the FLOP-matched dense floor, in one process, in turn.

The floor is a dense ReLU feed-forward layer of hidden width k*F on the same T tokens: what
the active experts of the sparse layer would cost if routing were free. Variants and floor
run round-robin, so that whatever else the machine does hits all of them; ratios are taken
within a round, and their median is reported beside the ratio of the minima.
"""

import dataclasses
import functools
import statistics
import time

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import contract

# Shapes for a CPU; F = 4 D.
SHAPES = {
    'C1': dict(tokens=2048, d_model=256, num_experts=8, k=1),
    'C2': dict(tokens=4096, d_model=256, num_experts=32, k=2),
    'C3': dict(tokens=4096, d_model=512, num_experts=64, k=1),
    'C4': dict(tokens=8192, d_model=512, num_experts=8, k=2),
}
ROUTINGS = ('real', 'skewed', 'uniform')
CAPACITY = 1.25                            # slots per routed row of the capacity variants
# Executors whose buffers grow with capacity: without drops they would do E times the work.
BUFFERED = ('einsum', 'gather')
PROBE = 1024                               # rows of the square matmul that measures the machine


@dataclasses.dataclass
class Variant:
  """A compiled forward and training step with its inputs, and what is known before it runs."""
  forward: object
  train: object
  inputs: tuple
  facts: dict
  times: dict = dataclasses.field(default_factory=lambda: dict(forward=[], train=[]))


def measure(shape, executors, routings, rounds, note=print):
  """Yields one dict per variant of the shape called `shape`: ratios to the floor and facts.

  Args:
    shape:     key of SHAPES.
    executors: names; each runs at CAPACITY, and dropless too unless BUFFERED.
    routings:  names out of ROUTINGS.
    rounds:    how often everything is timed.
    note:      called with a line of progress.
  """
  size = SHAPES[shape]
  note(f'{shape}: compiling')
  floor = _dense(**size)
  variants = [_sparse(executor, routing, factor, **size)
              for routing in routings for executor in executors
              for factor in ((CAPACITY,) if executor in BUFFERED else (CAPACITY, None))]
  machine, matmul = probe(), []
  began = time.perf_counter()
  for turn in range(rounds + 1):           # the first round warms up
    matmul.append(machine())
    for what in ('forward', 'train'):
      for v in (floor, *variants):
        v.times[what].append(_seconds(getattr(v, what), *v.inputs))
    left = (time.perf_counter() - began) / (turn + 1) * (rounds - turn)
    note(f'{shape}: round {turn} of {rounds}, {left:.0f} s left')
  rate = max(matmul)
  active = 4 * size['tokens'] * size['k'] * 4 * size['d_model'] ** 2
  for v in variants:
    row = dict(shape=shape, **size, **v.facts, rounds=rounds, matmul_gflops=rate)
    for what, flops in (('forward', active), ('train', 3 * active)):
      mine, base = v.times[what][1:], floor.times[what][1:]
      row[what] = dict(
          ratio=statistics.median(a / b for a, b in zip(mine, base)), ratio_of_minima=min(mine) / min(base),
          ms=1e3 * min(mine), dense_ms=1e3 * min(base), gflops=flops / min(mine) / 1e9,
          dense_gflops=flops / min(base) / 1e9,
          temp_mb=getattr(v, what).memory_analysis().temp_size_in_bytes / 1e6,
          # A loop's body is counted once, so the executors that loop show less than they do.
          hlo_flops_over_active=getattr(v, what).cost_analysis()['flops'] / flops)
    yield row


def probe():
  """Returns a function that times one square matmul of PROBE rows and returns its GFLOP/s."""
  square = jnp.ones((PROBE, PROBE))
  compiled = jax.jit(lambda a: a @ a).lower(square).compile()
  return lambda: 2 * PROBE ** 3 / _seconds(compiled, square) / 1e9


def _seconds(compiled, *inputs):
  began = time.perf_counter()
  jax.block_until_ready(compiled(*inputs))
  return time.perf_counter() - began


def _compile(f, inputs, facts):
  """A Variant of f(x, *parameters): its value, and value and all gradients."""
  def train(x, *parameters):
    y, pull = jax.vjp(f, x, *parameters)
    return y, pull(jnp.cos(y))             # any cotangent that depends on y
  began = time.perf_counter()
  forward, train = (jax.jit(g).lower(*inputs).compile() for g in (f, train))
  return Variant(forward, train, inputs, dict(facts, compile_s=time.perf_counter() - began))


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _dense(tokens, d_model, num_experts, k):
  """The floor: one expert of hidden width k*F for everybody."""
  hidden = 4 * k * d_model
  parameters = (_normal(1, d_model, hidden) / d_model ** 0.5, _normal(2, hidden, d_model) / hidden ** 0.5)
  return _compile(lambda x, wi, wo: jax.nn.relu(x @ wi) @ wo, (_normal(0, tokens, d_model), *parameters), {})


def _sparse(executor, routing, factor, tokens, d_model, num_experts, k):
  """A Variant of one group of all tokens; `factor` is slots per routed row, or None."""
  x = _normal(0, 1, tokens, d_model)
  bank = lookup.recipe('experts', dict(name='mlp', d_ff=4 * d_model, init_scale=1.0))(
      d_model, num_experts=num_experts, rngs=nnx.Rngs(0))
  factor = None if factor is None else factor * k
  router, parameters = (_router if routing == 'real' else functools.partial(_table, routing))(
      factor, tokens, d_model, num_experts, k)
  execute = lookup.executor(executor)
  a = jax.jit(router)(x, parameters)
  facts = dict(executor=executor, routing=routing, capacity_factor=factor and factor / k,
               drop_rate=float(1 - assignment.live(a).mean()))
  return _compile(lambda x, parameters, bank: execute(x, router(x, parameters), bank), (x, parameters, bank),
                  facts)


def _router(factor, tokens, d_model, num_experts, k):
  """(function to an Assignment, parameters) of Switch, or of ST-MoE keeping every choice for k > 1."""
  fields = dict(name='switch') if k == 1 else dict(name='st_moe', k=k, second_policy='all')
  router = lookup.recipe('router', dict(fields, num_experts=num_experts, capacity_factor=(factor, factor)))(
      d_model, rngs=nnx.Rngs(0))
  whole = jnp.zeros((1, tokens), jnp.int32)
  ctx = contract.Context(mask=whole == 0, ids=whole, positions=whole, segments=whole + 1, step=jnp.int32(0),
                         tokens=jnp.float32(tokens))
  return lambda x, router: router(x, ctx, {}).assignment, router


def _table(routing, factor, tokens, d_model, num_experts, k):
  """(function to an Assignment, weights): balanced exactly, or half of the tokens to expert 0 first."""
  rng = np.random.default_rng(0)
  order = rng.permutation(tokens)[:, None]
  expert = (order * k + np.arange(k)) % num_experts                  # [T, k]
  if routing == 'skewed':
    expert = np.where(order < tokens // 2, np.arange(k), expert)
  capacity = assignment.capacity(tokens, num_experts, factor)
  table = lambda x, weight: assignment.cap(
      assignment.from_choices(jnp.asarray(expert)[None], weight, num_experts), capacity)
  return table, jnp.full((1, tokens, k), 1 / k)


def names(given, known, field):
  """Returns the comma-separated names in `given`; raises UserError for one not in `known`.

  >>> names('C1,C4', ['C1', 'C2', 'C4'], 'shapes')
  ['C1', 'C4']
  """
  found = given.split(',')
  for name in found:
    if name not in known:
      raise errors.UserError(f'{field}: no {name!r}{errors.nearest(name, known)}'
                             f' (there are: {", ".join(known)})')
  return found


HEADING = (f'{"shape":6}{"routing":9}{"executor":10}{"capacity":>9}{"drops":>8}{"forward":>15}{"fwd+bwd":>15}'
           f'{"GFLOP/s":>9}{"temp MB":>9}{"compile s":>10}{"HLO/active":>11}')


def line(row):
  """Returns one row of `measure` as a line under HEADING: ratios as median (of minima)."""
  ratio = lambda r: f'{r["ratio"]:8.2f} ({r["ratio_of_minima"]:.2f})'
  factor = row['capacity_factor']
  return (f'{row["shape"]:6}{row["routing"]:9}{row["executor"]:10}{"none" if factor is None else factor:>9}'
          f'{row["drop_rate"]:8.2%}{ratio(row["forward"]):>15}{ratio(row["train"]):>15}'
          f'{row["train"]["gflops"]:9.0f}{row["train"]["temp_mb"]:9.0f}{row["compile_s"]:10.1f}'
          f'{row["train"]["hlo_flops_over_active"]:11.2f}')
