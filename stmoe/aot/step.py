"""The training step of an experiment, compiled for devices that are not there, and what that says.

Nothing is materialised: state and batch are shapes with shardings. The step is the loop's own.
"""

import re
import time

import jax
from jax.sharding import NamedSharding

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.aot import hlo
from stmoe.aot import products
from stmoe.aot import program
from stmoe.hosts import hardware
from stmoe.train import beside
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps

# The compiler's least effort: a third to a half of the time, another schedule, more memory.
QUICK = dict(exec_time_optimization_effort=-1.0, memory_fitting_effort=-1.0)


class DoesNotFit(Exception):
  """The compiler gave up because of memory; `needed` bytes per device, as far as the compiler said."""

  def __init__(self, message):
    super().__init__(message)
    sizes = [float(n) * hardware.GIB / {'G': 1, 'M': 2**10, 'T': 2**-10}[unit]
             for n, unit in re.findall(r'\(?([\d.]+)([GMT])\)?', message)]
    self.needed = max(sizes, default=None)


def lower(cfg, mesh):
  """Returns (Blueprint, lowered training step) of `cfg` on `mesh`, entered by `states.on_mesh`.

  Raises UserError for what is wrong with the configuration or does not divide.
  """
  check.batches(cfg)
  plan = states.blueprint(cfg, mesh)
  check.forward(cfg, plan)
  rows = NamedSharding(mesh, axes.spec(('batch',)))
  batch = {name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
           for name, shape in beside.shapes(plan, check.batch_shapes(cfg, cfg.train.batch_size)).items()}
  return plan, steps.make(cfg, plan).lower(plan.shapes, batch)


def build(cfg, devices, note=lambda text: None, quick=False):
  """Returns (Blueprint, Compiled, dict(lower, compile) of seconds) of the training step on `devices`.

  Args:
    cfg:     ConfigDict of an experiment.
    devices: abstract or real; as many as `cfg.mesh` makes.
    note:    called with a line about what is going on.
    quick:   compile with the least effort.
  Raises:
    UserError: see `lower`. DoesNotFit: where the compiler says so.
  """
  check.counts(cfg)
  with states.on_mesh(cfg.mesh, devices) as mesh:
    started = time.monotonic()
    note(f'lowering the training step for {describe(mesh)}')
    plan, lowered = lower(cfg, mesh)
    middle = time.monotonic()
    note(f'compiling it for {len(devices)} x {devices[0].device_kind}; a large model takes many minutes')
    try:
      compiled = lowered.compile(compiler_options=QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
      if errors.of_memory(error):
        raise DoesNotFit(str(error)) from error
      raise
  return plan, compiled, dict(lower=middle - started, compile=time.monotonic() - middle)


def describe(mesh):
  """Returns 'data 8 x expert 4 x model 2' of a mesh."""
  return ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())


def facts(cfg):
  """Returns dict(total, active, forward, train): parameters, and active FLOPs per target position."""
  return dict(flops.parameters(cfg), **{k: flops.active_per_token(cfg)[k] for k in ('forward', 'train')})


def report(compiled, chip, devices):
  """Returns what a compiled step does on a device, as a dict for JSON.

  product_flops:  of all matrix products, loops counted as often as they run (also recomputation).
  cost_analysis:  XLA's own figures, which count the body of a loop once; {} where it has none.
  traffic_bytes:  estimate of what is read and written in the main memory, see `products.traffic`.
  memory:         see `program.memory`; capacity is the chip's, free what is left.
  """
  module = hlo.parse(compiled.as_text())
  collectives = program.collectives(module, devices)
  work, known = products.flops(module)
  traffic = products.traffic(module)
  memory = program.memory(compiled)
  wire = sum(c.wire for c in collectives)
  cost = compiled.cost_analysis() or {}
  return dict(
      product_flops=work, trip_counts_known=known, traffic_bytes=traffic, wire_bytes=wire,
      cost_analysis={key: cost[key] for key in ('flops', 'bytes accessed') if key in cost},
      memory=memory | fit(memory['peak'], chip), collectives=program.by_kind(collectives),
      collectives_by_scope=program.by_scope(collectives),
      overlap=program.overlap(module) if module.scheduled else {},
      roofline=hardware.roofline(chip, work, traffic, wire))


def fit(peak, chip):
  """Returns dict(capacity, free) of bytes; free is negative where `peak` does not fit, None for a CPU."""
  return dict(capacity=chip.memory, free=None if chip.memory is None else chip.memory - peak)


def suggestions(cfg, mesh):
  """Returns the settings, as texts, that would need less memory per device and that this model can take."""
  settings, devices = [], mesh.size
  shape = dict(mesh.shape)
  experts = [router.num_experts for block in cfg.blocks.values() for layer in lookup.nested(block)
             if 'router' in layer for router in lookup.nested(layer.router) if 'num_experts' in router]
  together = shape['data'] * shape['expert']
  if not cfg.mesh.get('rules') and together > 1 and cfg.model.d_model % together == 0:
    settings.append('mesh.rules=fsdp')
  if experts and shape['data'] > 1:
    larger = [e for e in range(shape['expert'] + 1, shape['expert'] * shape['data'] + 1)
              if devices // shape['model'] % e == 0 and all(n % e == 0 for n in experts)]
    if larger:
      settings.append(f'mesh.expert={larger[-1]} mesh.data={devices // shape["model"] // larger[-1]}')
  heads = cfg.model.get('num_heads', 1)                              # not every model has attention
  if shape['model'] * 2 <= devices and heads % (shape['model'] * 2) == 0:
    axis = 'data' if shape['data'] % 2 == 0 else 'expert'
    if shape[axis] % 2 == 0:
      settings.append(f'mesh.model={shape["model"] * 2} mesh.{axis}={shape[axis] // 2}')
  if cfg.model.get('remat', 'full') != 'full':
    settings.append('model.remat=full')
  rows = cfg.train.batch_size // together
  if rows % (cfg.train.microbatches * 2) == 0:
    settings.append(f'train.microbatches={cfg.train.microbatches * 2}')
  elif rows % 2 == 0:
    settings.append(f'train.batch_size={cfg.train.batch_size // 2}')
  return settings or ['more chips']


def examine(cfg, chip, devices, note=lambda text: None, quick=False):
  """Returns the whole report of the training step of `cfg` on `devices` (each a `chip`) as a dict.

  model: see `facts`; mesh: its sizes; seconds. step: see `report`, absent where the compiler
  gave up for memory. fits: whether the step fits, None for a CPU. free: bytes, negative where it does not
  fit. try: settings that need less memory.
  """
  with states.on_mesh(cfg.mesh, devices) as mesh:
    facts_known = {'mesh': describe(mesh), 'try': suggestions(cfg, mesh)}
  facts_known['model'] = facts(cfg)
  try:
    _, compiled, seconds = build(cfg, devices, note, quick)
  except DoesNotFit as error:
    free = None if error.needed is None else chip.memory - error.needed
    return facts_known | dict(fits=False, free=free, compiler=str(error)[:500])
  note('reading the program')
  step = report(compiled, chip, len(devices))
  free = step['memory']['free']
  return facts_known | dict(step=step, seconds=seconds, free=free, fits=None if free is None else free >= 0)
