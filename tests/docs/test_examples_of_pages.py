"""The router of its page is real: its code is taken from there, run and compared with the meaning."""

import importlib.util
import json
import re
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe.core import contract
from stmoe.data.text import documents
from stmoe.experts import mlp
from tests.docs import pages


@pytest.fixture(scope='module')
def router(tmp_path_factory):
  code = pages.titled('docs/router.md', 'stmoe/routers/sigmoid.py')
  path = tmp_path_factory.mktemp('routers') / 'sigmoid.py'
  path.write_text(code, encoding='utf-8')
  spec = importlib.util.spec_from_file_location('sigmoid', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.Sigmoid(8, num_experts=4, k=2, rngs=nnx.Rngs(0))


def context(groups, size):
  zeros = jnp.zeros((groups, size), jnp.int32)
  mask = jnp.ones((groups, size), bool).at[0, -3:].set(False)
  return contract.Context(mask=mask, ids=zeros, positions=zeros, segments=zeros + 1, step=jnp.int32(0),
                          tokens=jnp.float32(groups * size - 3), train=True)


@pytest.mark.slow
def test_router_of_the_page_runs_alike_in_every_executor(router):
  x = jax.random.normal(jax.random.key(1), (2, 16, 8))
  bank = mlp.Mlp(8, num_experts=4, d_ff=16, rngs=nnx.Rngs(1))
  routed = router(x, context(2, 16), {})

  def loss(executor):
    def value(router, bank, x):
      a = router(x, context(2, 16), {}).assignment
      return jnp.sum(jnp.sin(lookup.module('executor', executor).execute(x, a, bank)))
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(router, bank, x)

  want = loss('einsum')
  for executor in lookup.available('executor'):
    for a, b in zip(jax.tree.leaves(loss(executor)), jax.tree.leaves(want)):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=executor)
  assert float(jnp.abs(want[1][0].w[...]).max()) > 0                 # the router learns
  assert int(routed.aux.load.sum()) == 2 * (32 - 3)                  # padding goes nowhere


def test_a_loop_of_ones_own(capsys):
  code = pages.titled('docs/python.md', "a loop of one's own").replace('range(50)', 'range(12)')
  exec(compile(code, 'python.md', 'exec'), {'__name__': 'page'})
  value, _, loads = capsys.readouterr().out.partition(' ')
  assert float(value) < 3.5 and sum(map(float, re.findall(r'[\d.]+', loads))) == 64 * 37      # ln 256 is 5.5


@pytest.mark.parametrize('page', pages.PAGES, ids=lambda page: page.stem)
def test_files_and_experiments_that_a_page_names_exist(page):
  text = page.read_text(encoding='utf-8')
  plain = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
  for path in re.findall(r'\]\((?!https?:)([^)#]+)\)', plain):
    assert (page.parent / path).exists(), path
  for name in re.findall(r'`([a-z_]+/[a-z0-9_]+)(?::[^`]*)?`', plain):
    if name.split('/')[0] in {p.name for p in (pages.ROOT / 'configs').iterdir()}:
      assert (pages.ROOT / 'configs' / f'{name}.py').exists(), name


def test_every_family_of_checkpoints_has_a_row():
  page, compared = ((pages.ROOT / 'docs' / f'{name}.md').read_text(encoding='utf-8')
                    for name in ('checkpoints', 'compared'))
  rows = re.findall(r'^\| \[(\w+)\]\(\.\./stmoe/interop/families/(\w+)\.py\) \|(.*)\|$', page, re.M)
  assert [name for name, _, _ in rows] == lookup.available('family')
  for name, file, row in rows:
    cells = [cell.strip() for cell in row.split('|')]
    assert file == name and len(cells) == 5 and all(cells), name
  assert f'{len(rows)} families of Hugging Face' in compared


SEQIO = '''
import seqio
import tensorflow as tf
rows = tf.data.Dataset.from_tensor_slices
words = seqio.ByteVocabulary()
for name, features in (('pairs', ('inputs', 'targets')), ('alone', ('targets',))):
  texts = {feature: [f'{feature} {n} \u00e9' for n in range(3)] for feature in features}
  read = lambda split, shuffle_files, seed=None, texts=texts: rows(texts)
  seqio.TaskRegistry.add(name, source=seqio.FunctionDataSource(read, splits=('train',)), preprocessors=[
      seqio.preprocessors.tokenize, seqio.preprocessors.append_eos], metric_fns=[],
      output_features={feature: seqio.Feature(words) for feature in features})
'''


@pytest.mark.slow
def test_a_seqio_task_becomes_json_lines(tmp_path):
  program = pages.titled('docs/from_t5x.md', 'file: to_jsonl.py')
  (tmp_path / 'to_jsonl.py').write_text(program, encoding='utf-8')
  (tmp_path / 'lab.py').write_text(SEQIO, encoding='utf-8')
  for name, features in (('pairs', ['inputs', 'targets']), ('alone', ['targets'])):
    words = [sys.executable, 'to_jsonl.py', 'lab', name, 'train']
    out = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / f'{name}.jsonl').write_text(out, encoding='utf-8')
    assert [json.loads(line) for line in out.splitlines()] == [
        {feature: f'{feature} {n} \u00e9' for feature in features} for n in range(3)]
  texts = documents.read(tmp_path / 'alone.jsonl', 'targets')
  assert texts == [f'targets {n} \u00e9'.encode() for n in range(3)]


def test_first_pages_have_the_numbers_of_the_experiments():
  """README and start repeat what the pages of two experiments report, with the spread."""
  text = lambda name: (pages.ROOT / name).read_text(encoding='utf-8')
  rows = lambda name: {cells[0].partition(', top')[0]: cells[1:4] for line in text(name).splitlines()
                       if line.startswith('| ') and '±' in line and (cells := line.strip('| ').split(' | '))}
  first, quickstart = rows('README.md'), rows('experiments/quickstart/README.md')
  assert len(first) == 3 and first == quickstart
  for name in ('README.md', 'docs/start.md', 'experiments/quickstart/README.md'):
    assert '16 times' in text(name)
  start, small = text('docs/start.md'), text('experiments/stdlib_small/README.md')
  measured = {f'{float(number):.3f}' for number in re.findall(r'\d\.\d{4}', small)}
  assert {*re.findall(r'\d\.\d{3}', start[start.index('`lm/stdlib_small` is the longer run'):])} <= measured
  for number in re.findall(r'\d\.\d\d(?= bits per byte on the same|\. )', start):
    assert number in text('experiments/quickstart/README.md') + small, number
