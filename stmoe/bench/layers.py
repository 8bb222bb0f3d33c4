"""Sparse layers timed against the FLOP-matched dense floor, in one process, in turn.

The floor is a dense feed-forward layer of hidden width k*F on the same T tokens: what the active experts of
the sparse layer would cost if routing were free. Variants and floor run round-robin, so that whatever else
the machine does hits all of them. Ratios are taken within a round, and their median is reported beside the
ratio of the minima. Other libraries (`bench/peers`) get the same rows, weights and choices. A library that is
not of JAX is compared with a floor of its own.
"""

import dataclasses
import statistics
import time

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.aot import hlo
from stmoe.aot import products
from stmoe.core import assignment
from stmoe.core import contract

ROUTINGS = ('real', 'skewed', 'uniform')
CAPACITY = 1.25                            # slots per routed row of the capacity variants
# Executors whose buffers grow with capacity: without drops they would do E times the work.
BUFFERED = ('einsum', 'gather')
PROBE = dict(float32=1024, bfloat16=8192)  # rows of the square matmul that measures the machine


@dataclasses.dataclass
class Problem:
  """A sparse layer to be computed: x [T,D], each token's k experts i32[T,k] and their weights f32[T,k].

  wi, wo: [E,D,F] and [E,F,D]; wg: [E,D,F] of gated experts (SiLU), None of plain ReLU experts. Of one dtype.
  """
  x: jax.Array
  expert: jax.Array
  weight: jax.Array
  wi: jax.Array
  wg: jax.Array | None
  wo: jax.Array


@dataclasses.dataclass
class Variant:
  """A forward and a training step that are ready to run, and what is known before they do.

  run:      dict(forward, train) of functions without arguments that return when the work is done.
  facts:    of the row; programs: dict(forward, train) of compiled programs, {} where there are none.
  floor:    the Variant that this Variant is compared with.
  """
  run: dict
  facts: dict
  programs: dict = dataclasses.field(default_factory=dict)
  floor: object = None
  times: dict = dataclasses.field(default_factory=lambda: dict(forward=[], train=[]))


def measure(shape, executors, routings, rounds, peers=(), note=print):
  """Yields a dict per variant of the Shape: ratios to the floor and facts.

  Args:
    shape:     a `shapes.Shape`.
    executors: names; each runs at CAPACITY, and dropless too unless BUFFERED.
    routings:  names out of ROUTINGS.
    rounds:    how often everything is timed.
    peers:     names of modules of `bench/peers`; see `missing`.
    note:      called with a line of progress.
  """
  note(f'{shape.name}: compiling')
  f, make = dense(shape)
  floor, variants = compiled(f, make(), {}), []
  x, bank = arrays(shape)
  for routing in routings:
    for executor, factor in kinds(executors):
      f, router, parameters = sparse(shape, executor, routing, factor)
      facts = facts_of(executor, routing, factor, router, x, parameters)
      variants.append(compiled(f, (x, parameters, bank), facts, floor))
    variants += [of_peer(shape, peer, routing, x, bank, floor) for peer in peers]
  yield from timed(shape, variants, rounds, note)


def kinds(executors):
  """Returns the list of (executor, slots per routed row or None) that are timed."""
  return [(executor, factor) for executor in executors
          for factor in ((CAPACITY,) if executor in BUFFERED else (CAPACITY, None))]


def timed(shape, variants, rounds, note=print):
  """Yields a dict per Variant, after all have run in turn with their floors; see `measure`."""
  floors = list({id(v.floor): v.floor for v in variants}.values())
  machine, matmul = probe(shape.dtype), []
  began = time.perf_counter()
  for turn in range(rounds + 1):           # the first round warms up
    matmul.append(machine())
    for direction in ('forward', 'train'):
      for v in (*floors, *variants):
        v.times[direction].append(_seconds(v.run[direction]))
    remaining = (time.perf_counter() - began) / (turn + 1) * (rounds - turn)
    note(f'{shape.name}: round {turn} of {rounds}, {remaining:.0f} s left')
  for v in variants:
    yield _row(shape, v, rounds, max(matmul))


def _row(shape, v, rounds, rate):
  row = dict(shape=shape.name, **shape.sizes(), **v.facts, rounds=rounds, matmul_gflops=rate)
  for direction, flops in (('forward', shape.flops), ('train', 3 * shape.flops)):
    mine, base = v.times[direction][1:], v.floor.times[direction][1:]
    row[direction] = dict(
        ratio=statistics.median(a / b for a, b in zip(mine, base)), ratio_of_minima=min(mine) / min(base),
        ms=1e3 * min(mine), dense_ms=1e3 * min(base), gflops=flops / min(mine) / 1e9,
        dense_gflops=flops / min(base) / 1e9)
    program = v.programs.get(direction)
    if program is not None:
      row[direction]['temp_mb'] = program.memory_analysis().temp_size_in_bytes / 1e6
      counted = products.known(hlo.parse(program.as_text()))
      row[direction]['hlo_flops_over_active'] = counted and counted / flops
  return row


def probe(dtype='float32'):
  """Returns a function that times a square matmul of PROBE rows and returns its GFLOP/s."""
  size = PROBE[dtype] if jax.default_backend() != 'cpu' else PROBE['float32']
  square = _normal(0, dtype, size, size)             # of equal numbers a GPU draws less power
  compiled = jax.jit(lambda a: a @ a).lower(square).compile()
  return lambda: 2 * size ** 3 / _seconds(lambda: jax.block_until_ready(compiled(square))) / 1e9


def _seconds(run):
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def compiled(f, inputs, facts, floor=None):
  """Returns a Variant of f(x, *parameters): its value, and its value and all gradients."""
  began = time.perf_counter()
  programs = {name: jax.jit(g).lower(*inputs).compile() for name, g in directions(f).items()}
  return ready(programs, inputs, dict(facts, compile_s=time.perf_counter() - began), floor)


def directions(f):
  """Returns dict(forward, train) of functions: f(x, *parameters), and its value with all gradients."""
  def train(x, *parameters):
    y, pull = jax.vjp(f, x, *parameters)
    return y, pull(jnp.cos(y))             # any cotangent that depends on y
  return dict(forward=f, train=train)


def ready(programs, inputs, facts, floor=None):
  """Returns the Variant of compiled `programs`, dict(forward, train), on `inputs`."""
  run = {name: lambda program=program: jax.block_until_ready(program(*inputs))
         for name, program in programs.items()}
  return Variant(run, facts, programs, floor)


def _normal(seed, dtype, *shape):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def dense(shape):
  """Returns (f, make) of the floor, a single expert of hidden width k*F for all tokens: f(*make())."""
  hidden, dtype = shape.k * shape.d_ff, shape.dtype

  def make():
    """x [T,D] and the matrices."""
    into = lambda seed: _normal(seed, dtype, shape.d_model, hidden) * shape.d_model ** -0.5
    wi, wo = into(1), _normal(2, dtype, hidden, shape.d_model) * hidden ** -0.5
    x = _normal(0, dtype, shape.tokens, shape.d_model)
    return (x, wi, into(3), wo) if shape.gated else (x, wi, wo)
  if shape.gated:
    return lambda x, wi, wg, wo: (jax.nn.silu(x @ wi) * (x @ wg)) @ wo, make
  return lambda x, wi, wo: jax.nn.relu(x @ wi) @ wo, make


def arrays(shape):
  """Returns (x [1,T,D], the bank of experts) that all sparse layers of a Shape share."""
  return _normal(0, shape.dtype, 1, shape.tokens, shape.d_model), _bank(shape)


def _bank(shape):
  """The experts, in the dtype of the shape."""
  fields = dict(name='glu', activation='silu') if shape.gated else dict(name='mlp')
  make = lookup.recipe('experts', dict(fields, d_ff=shape.d_ff, init_scale=1.0))
  build = lambda: jax.tree.map(lambda w: w.astype(shape.dtype),
                               make(shape.d_model, num_experts=shape.num_experts, rngs=nnx.Rngs(0)))
  return jax.jit(build)()


def sparse(shape, executor, routing, factor):
  """Returns (f, router, parameters) of a layer of a single group of all tokens: f(x, parameters, bank).

  router: function of x and parameters to an Assignment. factor: slots per routed row, or None.
  """
  router, parameters = _routed(shape, routing, factor)
  execute = lookup.executor(executor)
  return lambda x, parameters, bank: execute(x, router(x, parameters), bank), router, parameters


def facts_of(executor, routing, factor, router, x, parameters):
  """Returns the facts of a sparse layer's row; the router is run for its drops."""
  a = jax.jit(router)(x, parameters)
  return dict(executor=executor, routing=routing, capacity_factor=factor,
              drop_rate=float(1 - assignment.live(a).mean()))


def missing(peer):
  """Returns why the library of module `peer` cannot run here, '' if it can."""
  return lookup.module('peer', peer).missing()


def _problem(shape, routing, x, bank):
  """The Problem that `sparse` solves when nothing is dropped."""
  router, parameters = _routed(shape, routing, None)
  a = jax.jit(router)(x, parameters)
  by_token = lambda v: v[0].reshape(shape.k, shape.tokens).T         # [T, k]
  wg = bank.wg[...] if shape.gated else None
  return Problem(x[0], by_token(a.expert), by_token(a.weight), bank.wi[...], wg, bank.wo[...])


def of_peer(shape, peer, routing, x, bank, floor):
  """Returns a Variant of another library, dropless; x and bank are of `arrays`."""
  v = lookup.module('peer', peer).variant(_problem(shape, routing, x, bank), floor)
  v.facts = dict(executor=peer, routing=routing, capacity_factor=None, drop_rate=0.0) | v.facts
  return v


def _routed(shape, routing, factor):
  """(function of x and parameters to an Assignment, the parameters)."""
  factor = None if factor is None else factor * shape.k
  return _router(shape, factor) if routing == 'real' else _table(shape, routing, factor)


def _router(shape, factor):
  """The routing of Switch, or of ST-MoE keeping every choice for k > 1."""
  fields = dict(name='switch') if shape.k == 1 else dict(name='st_moe', k=shape.k, second_policy='all')
  router = lookup.recipe('router', dict(fields, num_experts=shape.num_experts,
                                        capacity_factor=(factor, factor)))(shape.d_model, rngs=nnx.Rngs(0))
  ctx = contract.Context(**contract.numbered(jnp.ones((1, shape.tokens), bool)), step=jnp.int32(0),
                         tokens=jnp.float32(shape.tokens))
  return lambda x, router: router(x, ctx, {}).assignment, router


def _table(shape, routing, factor):
  """The routing of a table: balanced exactly, or half of the tokens to expert 0 first."""
  order = np.random.default_rng(0).permutation(shape.tokens)[:, None]
  expert = (order * shape.k + np.arange(shape.k)) % shape.num_experts              # [T, k]
  if routing == 'skewed':
    expert = np.where(order < shape.tokens // 2, np.arange(shape.k), expert)
  capacity = assignment.capacity(shape.tokens, shape.num_experts, factor)
  table = lambda x, weight: assignment.cap(
      assignment.from_choices(jnp.asarray(expert)[None], weight, shape.num_experts), capacity)
  return table, jnp.full((1, shape.tokens, shape.k), 1 / shape.k)


def names(given, known, field):
  """Returns the comma-separated names in `given`; raises UserError for a name not in `known`.

  >>> names('C1,C4', ['C1', 'C2', 'C4'], 'shapes')
  ['C1', 'C4']
  """
  found = given.split(',')
  for name in found:
    if name not in known:
      raise errors.UserError(f'{field}: no {name!r}{errors.nearest(name, known)}'
                             f' (there are: {", ".join(known)})')
  return found


HEADING = (f'{"shape":6}{"routing":9}{"executor":15}{"capacity":>9}{"drops":>8}{"forward":>15}{"fwd+bwd":>15}'
           f'{"GFLOP/s":>9}{"temp MB":>9}{"compile s":>10}{"HLO/active":>11}')


def line(row):
  """Returns a row of `measure` as a line under HEADING: ratios as median (of minima)."""
  ratio = lambda r: f'{r["ratio"]:8.2f} ({r["ratio_of_minima"]:.2f})'
  maybe = lambda value, form: '-' if value is None else format(value, form)
  train = row['train']
  return (f'{row["shape"]:6}{row["routing"]:9}{row["executor"]:15}'
          f'{maybe(row["capacity_factor"], "") if row["capacity_factor"] else "none":>9}'
          f'{row["drop_rate"]:8.2%}{ratio(row["forward"]):>15}{ratio(train):>15}'
          f'{train["gflops"]:9.0f}{maybe(train.get("temp_mb"), ".0f"):>9}'
          f'{maybe(row.get("compile_s"), ".1f"):>10}{maybe(train.get("hlo_flops_over_active"), ".2f"):>11}')
