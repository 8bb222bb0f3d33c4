"""`stmoe compile` on virtual devices: what it reports is what the program has; mistakes are one line."""

import importlib.util
import json

import jax
import pytest

from stmoe import experiment
from stmoe.analysis import flops
from stmoe.aot import step as aot
from stmoe.aot import text as pages
from stmoe.hosts import hardware

TINY = ('lm/text:method=switch,smoke', '--config.model.d_model=16', '--config.model.num_heads=2',
        '--config.model.head_dim=8', '--config.blocks.d.d_ff=16', '--config.blocks.m.experts.d_ff=16',
        '--config.data.length=32', '--config.train.batch_size=8', '--config.eval.batch_size=8',
        '--config.model.vocab_size=512', '--config.blocks.m.executor=einsum')
MESH = ('--config.mesh.data=2', '--config.mesh.expert=2', '--config.mesh.model=2')


@pytest.mark.slow
def test_report_on_virtual_devices(command, tmp_path):
  code, out, err = command('compile', *TINY, *MESH, '--topology', 'cpu:8', '--json', tmp_path / 'out.json')
  found = json.loads((tmp_path / 'out.json').read_text())
  cfg, _ = experiment.load(TINY[0], [*TINY[1:], *MESH])
  size = flops.parameters(cfg)
  assert code == 0 and 'compiling' in err and found['mesh'] == 'data 2 x expert 2 x model 2'
  assert (found['model']['total'], found['model']['active']) == (size['total'], size['active'])
  assert f'{size["total"]:,}' in out and 'all-reduce' in out and out.rstrip().endswith('virtual devices)')
  assert found['versions']['jax'] == jax.__version__
  step = found['step']
  assert step['trip_counts_known'] and step['product_flops'] > step['cost_analysis']['flops'] / 2
  # Parameters and two moments, most of them on a half or a quarter of the devices.
  assert step['memory']['arguments'] < 12 * size['total'] / 2
  assert found['fits'] is None and step['roofline']['total'] is None


@pytest.mark.parametrize('more, words', [
    (['--topology', 'cpu:4', *MESH], ['mesh', 'does not fit 4 device']),
    (['--topology', 'v9:2x2'], ["no chip is called 'v9'", 'v5e, v5p']),
    (['--topology', 'v5p:8x8'], ["'v5p:8x8'", 'nearest: v5p:2x2x2']),
    (['--topology', 'h100:eight'], ['h100:eight', 'nearest: h100:8']),
    (['--topology', 'cpu:16'], ['this process has 8 devices', 'nearest: cpu:8']),
    (['--topology', 'cpu:8', '--config.train.batch_size=9'], ['train.batch_size=9', 'nearest: 8, 16']),
    (['--topology', 'cpu:8', '--config.blocks.m.router.num_experts=6', '--config.mesh.expert=4',
      '--config.mesh.data=2'], ['6', '4', 'expert']),
    (['--topology', 'cpu:8', '--config.blocks.m.group_size=7'], ['group_size 7', 'nearest:']),
    (['--topology', 'cpu:8', '--json', '/no/such/out.json'], ['--json', '/no/such']),
])
def test_mistakes_are_found_before_anything_is_compiled(mistake, monkeypatch, more, words):
  monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda *a, **k: pytest.fail('compiled'))
  line = mistake('compile', *TINY, *more)
  assert all(word in line for word in words), line


@pytest.mark.parametrize('topology, module', [('v5p:2x2x1', 'libtpu'), ('h200:8', 'jax_cuda12_plugin')])
def test_a_missing_compiler_is_one_line_that_names_the_extra(mistake, monkeypatch, topology, module):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec',
                      lambda name, *a: None if name == module else find(name, *a))
  assert "pip install 'stmoe[aot]'" in mistake('compile', *TINY, '--topology', topology)


def page(free, **more):
  return pages.verdict(dict(free=free, fits=free is not None and free >= 0, **more))


def test_verdict():
  assert page(1.5 * hardware.GIB) == 'fits (1.50 GiB free)'
  assert page(-3 * hardware.GIB, **{'try': ['mesh.rules=fsdp', 'mesh.model=2 mesh.data=4']}) == (
      'does not fit by 3.00 GiB, try --config.mesh.rules=fsdp or --config.mesh.model=2 --config.mesh.data=4')


def test_out_of_memory_of_the_compiler_is_a_verdict(command, monkeypatch):
  def compile(*args, **kwargs):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory '
                                     'required for HLO temporaries (20.00G) exceeds available HBM (15.75G).')
  monkeypatch.setattr(jax.stages.Lowered, 'compile', compile)
  monkeypatch.setitem(hardware.CHIPS, 'cpu', hardware.CHIPS['v5e']._replace(kind='cpu'))
  code, out, _ = command('compile', *TINY, '--topology', 'cpu:8')
  assert code == 0 and out.splitlines()[-1].startswith('does not fit by 4.00 GiB, try --config.')


def test_suggestions_are_settings_that_the_model_takes():
  mesh = jax.sharding.AbstractMesh((8, 1, 1), ('data', 'expert', 'model'))
  cfg, _ = experiment.load(TINY[0], TINY[1:] + ('--config.train.batch_size=32', '--config.model.num_heads=8'))
  found = aot.suggestions(cfg, mesh)
  assert found[-1] == 'train.microbatches=2'
  for overrides in found:
    for override in overrides.split():
      experiment.apply(cfg, override)
  assert cfg.mesh.expert == 8 and cfg.mesh.model == 2


@pytest.mark.parametrize('name', ['adv_moe/digits:smoke', 'home/many_tasks:smoke'])
def test_a_model_without_attention_has_suggestions(name):
  mesh = jax.sharding.AbstractMesh((2, 1, 1), ('data', 'expert', 'model'))
  cfg, _ = experiment.load(name)
  assert not any('mesh.model' in overrides for overrides in aot.suggestions(cfg, mesh))


def test_roofline_is_the_largest_part():
  chip = hardware.CHIPS['v5e']
  times = hardware.roofline(chip, 197e12, 819e9 * 2, 200e9 * 3)
  assert {part: round(seconds, 9) for part, seconds in times.items()} == dict(
      compute=1.0, memory=2.0, interconnect=3.0, total=3.0)
  assert hardware.CHIPS['v4'].device().flops == 275e12 / 2
