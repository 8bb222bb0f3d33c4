"""Every paper's largest model, cut to one unit of its layers, compiles for a TPU slice without a TPU.

`make test-aot` installs the compiler and runs these; they are left out by default (mark `aot`).
One to three minutes a model, on two cores that others share.
"""

import math

import pytest

from stmoe import experiment
from stmoe.analysis import flops
from stmoe.aot import hlo
from stmoe.aot import program
from stmoe.aot import step as aot
from stmoe.aot import topology

pytestmark = pytest.mark.aot

TOPOLOGY, DEVICES = 'v5p:4x4x4', 64
LARGEST = ('base/sizes:size=large', 'deepseek_moe/sizes:size=v3', 'expert_choice/sizes:size=8b',
           'gshard/sizes:size=600b', 'hash/large', 'loss_free_balancing/strategies', 'momentum_smoe/large',
           'skywork/sizes', 'smlp/small', 'smoe_dropout/enwik8', 'soft_moe/sizes:size=h14', 'st_moe/32b',
           'switch/sizes:size=c', 'switch/sizes:size=xxl', 'thor/wmt', 'upcycling/t5', 'vmoe/sizes:size=15b')
# The form of an executor whose experts are on several devices.
PARALLEL = dict(gather='all_to_all', blocks='all_to_all_dropless')
# Dropless buffers are for the worst case of all devices that share the experts: with 64 of them they
# would take 100 GiB of V3's chips, so that its matrices are cut over 4 and its experts over 16.
MODEL = {'deepseek_moe/sizes:size=v3': 4}


def blocks(cfg):
  """The sections of `cfg` that have a router, however deep they are wrapped."""
  for block in cfg.blocks.values():
    while 'inner' in block:
      block = block.inner
    if 'router' in block:
      yield block


def cut(name):
  """Returns the config of `name` with every unit of its layers once, on DEVICES devices, a small batch."""
  cfg, _ = experiment.load(name)
  cfg = cfg.copy_and_resolve_references().unlock()
  for stack in ('encoder', 'decoder', 'layers'):
    if stack in cfg.model:
      units = dict.fromkeys(letters for letters, _ in cfg.model[stack])
      cfg.model[stack] = tuple((letters, 1) for letters in units)
  sparse = list(blocks(cfg))
  model = MODEL.get(name, 1)
  shards = DEVICES // model
  experts = math.gcd(shards, *(block.router.num_experts for block in sparse))
  cfg.mesh.update(data=shards // experts, expert=experts, model=model)
  lengths = flops.lengths(cfg).values()
  sizes = [block.get('group_size') or 1 for block in sparse]
  rows = max([1, *(min([size // n for n in lengths if size % n == 0] or [1]) for size in sizes)])
  for section in (cfg.train, cfg.eval):
    section.batch_size = shards * rows                              # one group a device
  cfg.train.microbatches = 1
  for block in sparse:
    block.executor = PARALLEL.get(block.executor, block.executor)
  return cfg.lock()


@pytest.mark.parametrize('name', LARGEST)
def test_cut_down_model_compiles_for_a_tpu(name):
  topology.prepare(TOPOLOGY)
  chip, devices, _ = topology.devices(TOPOLOGY)
  _, compiled, _ = aot.build(cut(name), devices, quick=True)
  found = aot.report(compiled, chip, len(devices))
  assert found['memory']['free'] > 0 and found['product_flops'] > 0 and found['collectives']


@pytest.mark.parametrize('where, words', [
    ('v5p:3x3x3', 'nearest: v5p:4x4x3'), ('v5e:64x64', 'nearest: v5e:16x16'),
    ('h100:12', 'nearest: h100:8, h100:16')])
def test_unknown_slices_name_the_nearest(where, words):
  with pytest.raises(topology.errors.UserError, match=words):
    topology.devices(where)


@pytest.mark.parametrize('where', ['v4:2x2x1', 'v5e:1x1', 'v5p:2x2x1', 'v6e:2x2', 'h100:4', 'h200:16'])
def test_every_chip_compiles_the_same_products(where):
  import jax
  import jax.numpy as jnp
  from stmoe.aot import products
  _, devices, _ = topology.devices(where)
  place = jax.sharding.SingleDeviceSharding(devices[0])
  shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=place) for s in ((256, 512), (512, 1024))]
  compiled = jax.jit(lambda a, b: a @ b).lower(*shapes).compile()
  assert products.flops(hlo.parse(compiled.as_text())) == (2 * 256 * 512 * 1024, True)
  assert program.memory(compiled)['arguments'] == 2 * (256 * 512 + 512 * 1024)


@pytest.mark.parametrize('where', ['v5e:2x4', 'h100:8'])
@pytest.mark.parametrize('shape, rules', [((1, 8, 1), ''), ((2, 2, 2), 'folded')])
def test_dropless_rows_travel_without_padding(where, shape, rules):
  """CPUs exchange padded buffers; accelerators have a collective for rows of several sizes."""
  import jax
  from stmoe import axes
  from stmoe import lookup
  from tests.core.transport import test_exchange as exchange
  x, a, _ = exchange.reference('top_2', 'mlp')
  execute = lookup.executor('all_to_all_dropless')
  _, devices, _ = topology.devices(where)
  with axes.use(axes.make_mesh(*shape, devices=devices), axes.rules(rules)) as mesh:
    split = lambda names: lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=jax.NamedSharding(
        mesh, axes.spec((*names, *[None] * (v.ndim - 1)))))
    bank = jax.tree.map(split(['expert']), exchange.BANKS['mlp'])
    x, a = jax.tree.map(split(['group']), (x, a))
    step = jax.jit(lambda x, a, bank: jax.value_and_grad(
      lambda x, bank: execute(x, a, bank).sum(), (0, 1))(x, bank))
    found = program.collectives(hlo.parse(step.lower(x, a, bank).compile().as_text()), 8)
  rows = [c for c in found if c.kind == 'ragged-all-to-all']
  assert len(rows) == 4 and not any(c.kind == 'all-gather' for c in found)
