"""Where a step's time goes: every instruction has its part, and the parts add up to the step."""

import pathlib
import time

import jax
import jax.numpy as jnp
import pytest

from stmoe import experiment
from stmoe.aot import hlo
from stmoe.bench import by_scope
from stmoe.bench import scope_figure
from stmoe.bench import scopes
from stmoe.bench import timeline

# Instructions that are called like their part -> (shape, operation, JAX's name of it).
LAYER = 'jit(step)/jvp()/layer'
NAMED = {
    'products': ('f32[2,2]', 'fusion(%x), calls=%fused', f'{LAYER}/experts/while/body/dot'),
    'activations': ('f32[2,2]', 'add(%x)', f'{LAYER}/experts/while/body/max'),
    'placing': ('f32[2,2]', 'add(%x)', f'{LAYER}/experts/while/body/place/gather'),
    'weights': ('f32[1,4]', 'add(%x)', f'{LAYER}/experts/while/body/weights/slice'),
    'padding': ('f32[2,2]', 'add(%x)', f'{LAYER}/experts/while/body/pad/pad'),
    'tables': ('s32[2]', 'add(%x)', f'{LAYER}/dispatch/cumsum'),
    'sums': ('f32[2,2]', 'add(%x)', 'jit(step)/transpose(jvp())/layer/combine/add'),
    'router': ('f32[2,2]', 'add(%x)', f'{LAYER}/route/softmax'),
    'metrics': ('f32[]', 'add(%x)', f'{LAYER}/route/metrics/max'),
    'feed-forward': ('f32[2,2]', 'fusion(%x), calls=%fused', f'{LAYER}/dot'),
    'attention': ('f32[2,2]', 'add(%x)', 'jit(step)/jvp()/while/body/closed_call/attention/exp'),
    'optimizer': ('f32[2,2]', 'add(%x)', 'jit(step)/optimizer/select_n'),
    'kept': ('f32[5,8]', 'add(%x)', 'jit(step)/jvp()/while/body/jit(dynamic_index)/dynamic_slice'),
    'rest': ('f32[2,2]', 'add(%x)', 'jit(step)/convert_element_type'),
}
OTHERS = {
    'head': ('f32[2,2]', 'add(%x)', 'jit(step)/transpose(jvp(head))/dot'),
    'sliced': ('f32[8,4]', 'add(%x)', 'jit(step)/jvp()/while/body/jit(dynamic_index)/dynamic_slice'),
    'unnamed': ('f32[3,8,4]', 'copy(%state__opt_state____mu)', ''),
}
LINES = '\n'.join(f'  %{name} = {shape} {what}, metadata={{op_name="{own}"}}'
                  for name, (shape, what, own) in (NAMED | OTHERS).items())
HLO = f'''HloModule jit_step, is_scheduled=true

%fused (p: f32[2,2]) -> f32[2,2] {{
  %p = f32[2,2] parameter(0)
  ROOT %dot = f32[2,2] dot(%p, %p), lhs_contracting_dims={{1}}
}}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {{
{LINES}
  ROOT %loop = f32[2,2] while(%x), condition=%c, body=%b
}}
'''


def test_every_instruction_has_its_part():
  parts = scopes.of(hlo.parse(HLO), {(3, 8, 4)})
  others = dict(head='head and loss', unnamed='optimizer', sliced='weights')
  assert {name: parts[name] for name in NAMED | OTHERS} == {name: name for name in NAMED} | others
  assert 'loop' not in parts                                         # what it runs is counted itself
  assert scopes.products(hlo.parse(HLO)) == {'dot', 'products', 'feed-forward'}


def test_parts_of_a_profile_add_up(tmp_path):
  """Of a program whose work is known to be in one scope, and whose loop runs instructions that count once."""
  def step(x, w):
    with jax.named_scope('experts'):
      x = jax.lax.scan(lambda x, _: (jnp.tanh(x) @ w, None), x, None, length=4)[0]
    with jax.named_scope('optimizer'):
      return jnp.sum(x)

  x, w = jnp.ones((512, 512)), jnp.ones((512, 512))
  compiled = jax.jit(step).lower(x, w).compile()
  compiled(x, w).block_until_ready()
  with jax.profiler.trace(tmp_path):
    start = time.perf_counter()
    compiled(x, w).block_until_ready()
    whole = 1e9 * (time.perf_counter() - start)
  text = compiled.as_text()
  parts, events = scopes.of(hlo.parse(text), set()), timeline.read(pathlib.Path(tmp_path), hlo.title(text))
  events = [event for event in events if event[2] in parts]
  taken = timeline.shared(events)
  assert sum(taken.values()) == pytest.approx(max(e[1] for e in events) - min(e[0] for e in events))
  assert sum(taken.values()) <= whole
  of_products = sum(ns for name, ns in taken.items() if parts[name] == 'products')
  assert of_products > 0                                             # how much, the machine decides


def test_the_floor_and_its_table():
  step = dict(attention=5.0, router=2.0, products=8.0, optimizer=9.0, host=1.0) | {'feed-forward': 4.0}
  dense = dict(attention=5.0, optimizer=3.0, host=1.0) | {'feed-forward': 10.0}
  # 5 + 1 of the twin, 4 + 8 of the layers, 3 + 2 of the optimizer.
  least = by_scope.floor(step, dense, 2.0)
  assert sum(least.values()) == 23.0 and 'router' not in least
  rows = dict(step=step, dense=dense, floor=least)
  measured = dict(parts=rows, memory=dict(step=90, dense=50, idle=40), processor=dict(ratio=1.25))
  *_, ratios, memory, processor = by_scope.table(measured)
  assert ratios.split() == ['over', 'dense', '1.526', '1.000', '1.211']
  assert memory.endswith('1.000 of both') and ': 1.250, ' in processor
  assert len(scope_figure.draw(rows, 'name').axes[0].patches) == 12      # two bars for each of six parts


@pytest.mark.slow
def test_a_step_beside_its_twin():
  names = 'lm/stdlib_small:smoke', 'lm/stdlib_small:smoke,method=dense'
  step, dense = (experiment.load(name)[0] for name in names)
  measured = by_scope.measure(step, dense, rounds=2)
  rows, memory = measured['parts'], measured['memory']
  assert memory['step'] <= 1.1 * (memory['dense'] + memory['idle']) and measured['processor']['ratio'] > 0.5
  for part in ('attention', 'feed-forward', 'head and loss', 'optimizer', 'host'):
    assert rows['step'][part] > 0 and rows['dense'][part] > 0
  for part in ('router', 'placing', 'products', 'weights'):          # of k = 1 there is nothing to sum
    assert rows['step'][part] > 0 and part not in rows['dense']
  assert rows['floor']['products'] == rows['step']['products'] and 'router' not in rows['floor']
  assert rows['floor']['optimizer'] > rows['dense']['optimizer']
