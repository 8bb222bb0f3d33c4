"""`stmoe check`: what its tests say of plugins."""

import pytest

from stmoe import conform
from stmoe import errors
from stmoe import lookup
from stmoe import plugins
from stmoe.cli import check
from stmoe.cli import main
from stmoe.conform import router as of_routers
from tests.plugins import files


def test_check_says_of_each_test_whether_it_passed(tmp_path, capsys):
  assert main.main(['check', str(files.write(tmp_path, files.TASKS))]) == 0
  out = capsys.readouterr().out
  assert out.count('ok    ') == 3 and out.endswith('3 of 3 passed\n')
  assert [path.suffix for path in tmp_path.iterdir()] == ['.py']     # nothing is left beside the file
  unsteady = files.TASKS.replace('import tasks\n', 'import tasks\nimport random\n').replace(
      "(str(n), '", "(str(random.random()), '")
  assert main.main(['check', str(files.write(tmp_path, unsteady, 'unsteady'))]) == 1
  out = capsys.readouterr().out
  assert 'FAILED  A task made twice has the same fingerprint' in out and '1 failed' in out


def test_fields_are_given_to_the_checks_of_a_class_alone(tmp_path):
  score = 'def score(examples, predictions):\n  return dict(mine=1.0)\n'
  plugins.add(files.write(tmp_path, files.SOURCES['router'] + score))
  assert check._fields(('metric', 'router'), 'mine', 'k=1') == dict(metric={}, router=dict(k=1))
  assert check._fields(('metric', 'router'), 'mine', '') == dict(metric={}, router={})
  assert not lookup.fields('metric', 'mine') and lookup.fields('router', 'mine')
  with pytest.raises(errors.UserError, match='mine:k=1: metric takes no fields here'):
    check._fields(('metric',), 'mine', 'k=1')


@pytest.mark.parametrize('words, says', [
    (['swich'], "is called 'swich'; nearest: switch"), (['pr_moe'], '--kind layer'),
    (['gather:chunks=2'], 'executor takes no fields here'),
    (['table'], "source table needs the field 'files', of which no check knows a value; nearest: stmoe "),
    (['switch:jitte=1'], "no field 'jitte'; nearest: jitter")])
def test_what_cannot_be_checked_is_a_line(words, says, capsys):
  assert main.main(['check', *words]) == 2
  assert says in capsys.readouterr().err


def test_checks_see_a_router_that_gives_slots_to_padding(tmp_path):
  line = 'edges = assignment.kill_padding(edges, ctx.mask)'
  assert line in files.SOURCES['router']
  plugins.add(files.write(tmp_path, files.SOURCES['router'].replace(line, 'pass')))
  with pytest.raises(AssertionError, match='padding reaches an expert'):
    of_routers.padding_changes_nothing('mine')


AROUND = '''"""A router around another that reads what is given of rows."""
from stmoe import ranges
from stmoe.routers import wrappers


class Mine(wrappers.Deciding):
  """Its inner router, with a logit more where the domain is odd."""

  def __init__(self, d_model, *, inner: ranges.Named('router'), domains: ranges.Count = 4, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    self.domains = domains

  @property
  def reads(self):
    return dict(domain=self.domains)

  def logits(self, x, ctx):
    return self.inner.logits(x, ctx).at[..., 0].add(ctx.known('domain', 'router mine') % 2)
'''


@pytest.mark.parametrize('check', [of_routers.reports_and_has_gradients, of_routers.evaluation_draws_nothing])
def test_checks_give_a_router_another_to_go_around_and_what_it_reads(tmp_path, check):
  plugins.add(files.write(tmp_path, AROUND))
  check('mine')
  plugins.add(files.write(tmp_path, AROUND.replace('reads(self)', 'read(self)')))
  with pytest.raises(errors.UserError, match="router mine: nothing is given as 'domain'"):
    check('mine', domains=2)


def test_check_says_in_which_line_a_file_does_not_run(tmp_path, capsys):
  path = files.write(tmp_path, files.TASKS.replace("tasks.no_files('counting', files)", "1 / len(files)"))
  assert main.main(['check', str(path)]) == 1
  assert f'        {path}, line 7: ZeroDivisionError: division by zero' in capsys.readouterr().out


def test_check_says_a_fault_once_that_many_checks_meet(tmp_path, capsys):
  broken = files.SOURCES['experts'].replace('return rows', 'return rows @ self.absent')
  assert main.main(['check', str(files.write(tmp_path, broken))]) == 1
  out = capsys.readouterr().out
  assert out.splitlines()[0].endswith(' checks, in about a minute)')
  faults = [line for line in out.splitlines() if line.startswith('        ')]
  assert len(faults) > 1 and faults[1:] == ['        the same as above'] * (len(faults) - 1)


@pytest.mark.parametrize('words', [
    ['check', 'FILE:k=1'],
    ['show', 'lm/quickstart', '--plugin', 'FILE', '--config.blocks.m.router.name=mine',
     '--config.blocks.m.router.k=1']])
def test_a_field_without_a_range_is_said_to_lack_it(tmp_path, capsys, words):
  path = str(files.write(tmp_path, files.SOURCES['router'].replace('k: ranges.Count = 2', 'k=2')))
  assert main.main([word.replace('FILE', path) for word in words]) == 2
  assert f'{path} has it without a range' in capsys.readouterr().err


def test_a_metric_that_fails_on_wrong_predictions_does_not_pass_its_checks(tmp_path):
  source = 'def score(examples, predictions):\n  return dict(mine=float(predictions[0]))\n'
  path, said = plugins.add(files.write(tmp_path, source)).path, []
  assert conform.failures('metric', 'mine', {}, lambda title, wrong: said.append(wrong)) == 1
  assert said == [f"{path}, line 2: ValueError: could not convert string to float: ''"]


OF_PARTS = {
    'mixer': '''import jax.numpy as jnp
from stmoe.mixers import mmoe


class Mine(mmoe.Mmoe):
  def __call__(self, x, ctx):
    y, aux = super().__call__(x, ctx)
    return y, aux
''',
    'network': '''import jax.numpy as jnp
from stmoe.parts import graph as graphs


class Mine(graphs.Network):
  def __call__(self, x, graph, ctx):
    y, found = super().__call__(x, graph, ctx)
    return y, found
''',
    'rotary_scaling': '''import jax.numpy as jnp
from stmoe.parts.rotary_scaling import dynamic


class Mine(dynamic.Dynamic):
  def __call__(self, rate, base, length):
    rates, size = super().__call__(rate, base, length)
    return rates, size
''',
}


@pytest.mark.parametrize('kind, wrong, failing', [
    ('mixer', 'y + y.mean(), aux', {'padding_changes_nothing', 'rows_do_not_meet'}),
    ('mixer', 'y[:, 0], aux', {'answers'}),
    ('mixer', 'y, {}', {'answers'}),
    ('mixer', "y, {n: a.replace(load=a.load * 0) for n, a in aux.items()}", {'loads_are_of_real_rows'}),
    ('network', 'y + jnp.arange(x.shape[1])[:, None], found', {'order_changes_nothing'}),
    ('network', 'y + graph.edges.sum(), found', {'order_changes_nothing', 'no_edge_changes_nothing'}),
    ('network', 'y, dict(mean=y)', {'answers'}),
    ('rotary_scaling', 'rates[..., :2], size', {'answers'}),
    ('rotary_scaling', 'rates.max(0), size', {'rows_do_not_meet', 'answers'}),
    ('rotary_scaling', 'rates - 1, size', {'answers'}),
    ('mixer', 'y, aux', set()), ('network', 'y, found', set()), ('rotary_scaling', 'rates, size', set())])
def test_checks_of_parts_see_mistakes(tmp_path, kind, wrong, failing):
  right = OF_PARTS[kind].rpartition('return ')[2].strip()
  source = OF_PARTS[kind].replace(f'return {right}', f'return {wrong}')
  assert plugins.add(files.write(tmp_path, source)).kinds == (kind,)
  said: dict = {}
  conform.failures(kind, 'mine', {}, said.__setitem__)
  failed = {rule.__name__ for rule in conform.checks(kind) if said[conform.title(rule)]}
  assert failed >= failing and bool(failed) == bool(failing), failed
