"""Every experiment: it loads in all its variants, says what it is, and fits its own batches and devices."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

from flax import nnx
import jax
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import experiment
from stmoe import router_state
from stmoe.analysis import flops
from stmoe.data.text.families import stdlib_functions
from stmoe.train import check
from stmoe.train import router_losses
from stmoe.train import state

NAMES = list(experiment.available())
PAPERS = [name for name in NAMES if not name.startswith(('lm/', 'finetune/'))]

# The first configuration of each paper that lm/zoo does not compare (test_methods.py traces those). In the
# slow suite also all others, every smoke, and one of each kind of model that no default is: dense, other
# backbone, other order of layers.
FIRST = {name.partition('/')[0]: name for name in reversed(NAMES)}.values()
APART = [name for name in FIRST
         if not (experiment.folder() / name.partition('/')[0] / 'compared.py').exists()]
SMOKES = [(name, 'smoke') for name in NAMES]
KINDS = [('lm/stdlib', 'method=expert_choice'), ('lm/quickstart', 'method=gshard'),
         ('switch/sizes', 'size=c'), ('switch/capacity', 'model=moe,cf=2.0'), ('gshard/sizes', 'size=dense'),
         ('st_moe/extra_ffn', 'extra=before'), ('st_moe/algorithms', 'top=1,priority'),
         ('expert_choice/sizes', 'method=dense')]
DRAWN = ('drawn_tasks', 'drawn_behaviours', 'customized_digits')      # sources of data that need no file
FITTED = [(name, '') for name in APART]
FITTED += [pytest.param(*one, marks=pytest.mark.slow)
           for one in [(name, '') for name in NAMES if name not in APART] + SMOKES + KINDS]


@functools.cache
def load(name, arg=''):
  return experiment.load(f'{name}:{arg}' if arg else name)[0]


def variants(name):
  """The arguments beside '' and 'smoke' that the file of `name` lists."""
  return getattr(experiment.find_module(name)[1], 'VARIANTS', ())


def docstring(name):
  return ast.get_docstring(ast.parse((experiment.folder() / f'{name}.py').read_text()))


def test_the_papers_are_there():
  folders = {name.partition('/')[0] for name in NAMES}
  assert {'lm', 'switch', 'gshard', 'st_moe', 'expert_choice'} <= folders


def test_loading_imports_no_jax():
  script = ('from stmoe import experiment\nimport sys\n'
            'for name in experiment.available(): experiment.load(name)\n'
            'assert not {"jax", "tensorflow", "numpy"} & set(sys.modules), set(sys.modules)')
  root = pathlib.Path(__file__).resolve().parents[2]
  done = subprocess.run([sys.executable, '-c', script], cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize('name', NAMES)
def test_docstring_names_its_commands(name):
  text = docstring(name)
  assert text.splitlines()[0].endswith('.')
  assert f'stmoe train {name}' in text or 'make quickstart' in text


@pytest.mark.parametrize('name', PAPERS)
def test_docstring_names_source_expectation_and_differences(name):
  text = docstring(name)
  for wanted in (r'arXiv:\d{4}\.\d{5}', 'Differs:', 'smoke'):
    assert re.search(wanted, text), wanted
  assert 'xpected' in text or 'prints no' in text


@pytest.mark.parametrize('name', PAPERS)
def test_papers_give_their_facts_an_address(name):
  paper = experiment.folder() / name.partition('/')[0] / 'paper.py'
  assert 'arXiv:' in ast.get_docstring(ast.parse(paper.read_text()))


@pytest.mark.parametrize('name', NAMES)
def test_every_variant_is_another_configuration(name):
  found = [experiment.run_id(load(name, arg)) for arg in ['', 'smoke', *variants(name)]]
  assert len(set(found)) == len(found)


@pytest.mark.parametrize('name,arg', FITTED)
def test_fits_its_batches_and_devices(name, arg):
  """The checks `stmoe train` does before it compiles: fields, groups, losses, shardings over 8 devices."""
  cfg = load(name, arg)
  mesh = state.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    check.counts(cfg)
    check.batches(cfg)
    plan = state.blueprint(cfg, mesh)
    aux = check.forward(cfg, plan)
  assert name not in PAPERS or not router_losses.unweighed(aux, cfg.losses)          # of which a run says so
  specs = {jax.tree_util.keystr(path): leaf.sharding.spec
           for path, leaf in jax.tree.leaves_with_path(plan.shapes['params'])}
  banks = {path: spec for path, spec in specs.items() if "['experts']" in path}
  around = any('around' in block for block in cfg.blocks.values())
  assert banks or arg and 'dense' in arg or around or not cfg.blocks
  whole = {path for path, spec in banks.items() if 'expert' not in spec}
  assert not banks or banks.keys() - whole
  # Tensors that all experts share are in a bank, too: by their names they belong to none.
  assert not whole or whole == banks.keys() & {
      ''.join(f'[{key!r}]' for key in m.path) for m in flops.matrices(cfg) if 'expert' not in m.names}


@pytest.mark.parametrize('rules', ['', *axes.TABLES, ','.join(axes.TABLES)])
def test_rules_split_no_array_twice(rules):
  """Of every experiment's smoke, under the default rules and under the named ones."""
  mesh = axes.make_mesh(data=8)
  with axes.use(mesh, axes.rules(rules)):
    for name in NAMES:
      for path, names in logical(name):
        axes.over(names, f'{name}: {path}')


@functools.cache
def logical(name):
  """[(path, logical axes)] of the parameters and the routers' state of the smoke of experiment `name`."""
  arrays = nnx.state(axes.abstract(lambda: state.build(load(name, 'smoke'))), nnx.Any(
      nnx.Param, router_state.RouterState))
  named = jax.tree.leaves_with_path(axes.names_of(arrays), is_leaf=axes.is_names)
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), names) for path, names in named]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name in NAMES])
def test_smoke_is_small_and_the_same_path(name):
  full, small = load(name), load(name, 'smoke')
  assert flops.parameters(small)['total'] < 4e6
  tasks = {name for name, _ in small.data.get('mixture', ())} or {
      small.data.get('task', small.data.get('source'))}
  assert tasks <= {'text', 'digits', 'citations', 'families', *DRAWN, *stdlib_functions.TASKS} | {
      'stdlib', 'stdlib_pairs', 'stdlib_questions'}
  routers = lambda c: {letter: block.router.name for letter, block in c.blocks.items() if 'router' in block}
  assert routers(small) == routers(full)
  assert small.data.get('objective') == full.data.get('objective')
  of_any_size = lambda optimizer: {**optimizer, 'min_dim_size_to_factor': None}
  assert of_any_size(small.optimizer) == of_any_size(full.optimizer) and small.losses == full.losses
  assert set(experiment.flatten(small)) == set(experiment.flatten(full))


@pytest.mark.parametrize('name,arg,said', [
    ('switch/sizes', 'size=larg', 'large'),
    ('lm/stdlib', 'method=swich', 'switch'),
    ('st_moe/extra_ffn', 'extra=befor', 'before'),
    ('lm/quickstart', 'method=expert_choice', 'not causal'),
])
def test_wrong_arguments_are_readable(name, arg, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    load(name, arg)
  assert '\n' not in str(caught.value)
