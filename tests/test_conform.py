"""The shared checks of kinds that no other test calls, on all files of these kinds."""

import re

import pytest

from stmoe import conform
from stmoe import lookup
from stmoe import plugins
from stmoe.plugins import kinds
from tests.data_pipeline.sources import fields as of_sources
from tests.docs import pages

# Fields where the generic ones do not do: (kind, name) -> fields.
FIELDS: dict = {
    ('factorisation', 'read_me'): dict(width=8),
    ('around', 'mixture_of_depths'): dict(share=0.5),
    ('attention', 'graph_of_tokens'): dict(head='earlier'),
    ('attention', 'latent_attention'): dict(nope_dim=3, value_dim=5, kv_rank=6, q_rank=7),
    ('attention', 'union_of_experts'): dict(select='causal'),
}
# Of images in noise, and of a model with positions of its own: no parts of a language model.
LEFT = {('around', 'ada_ln_zero'), ('around', 'denoising_task_routing'), ('around', 'switch_dit'),
        ('attention', 'span_attention')}
# Kinds -> the files whose checks are quick enough for each run of the suite; None = all.
QUICK = {'metric': None, 'virtual': [], 'around': ['parallel'], 'attention': [],
         'strategy': ['sample'],
         'source': ['texts', 'recorded', 'images', 'diffusion', 'table', 'sequences', 'drawn_tasks'],
         'objective': None, 'law': None, 'head': ['span_head'], 'surgery': [], 'factorisation': [],
         'adaptation': [], 'mixer': ['ple'], 'network': ['gcn'], 'rotary_scaling': None}


def cases():
  for kind, quick in QUICK.items():
    for name in lookup.available(kind):
      slow = quick is not None and name not in quick
      if (kind, name) not in LEFT:
        yield pytest.param(kind, name, marks=[pytest.mark.slow] * slow, id=f'{kind}-{name}')


@pytest.fixture(scope='session')
def given(tmp_path_factory):
  """FIELDS, and those of sources with their files."""
  of_files = of_sources.written(tmp_path_factory.mktemp('sources'))
  return FIELDS | {('source', name): fields for name, fields in of_files.items()}


@pytest.mark.parametrize('kind, name', list(cases()))
def test_files_pass_the_checks_of_their_kind(kind, name, given):
  for check in conform.checks(kind):
    check(name, **given.get((kind, name), {}))


@pytest.mark.slow
@pytest.mark.parametrize('fields', [
    dict(cache='stream', shard_mb=0.002), dict(cache='shards', shard_mb=0.002), dict(objective='prefix_lm'),
    dict(objective='denoising', join=False, replaced=0.1), dict(loss_from=0.5)], ids=str)
def test_texts_pass_the_checks_however_they_are_read(fields):
  for check in conform.checks('source'):
    check('texts', **fields)


@pytest.mark.parametrize('kind', kinds.MODULES)
def test_functions_pass_the_checks_of_their_kind(kind):
  for name in lookup.available(kind):
    for check in conform.checks(kind):
      check(name)


# (file of docs/plugins.md, kind) -> (a part of the text, what stands there by mistake) -> what is said.
MISTAKES = {
    ('halves.py', 'source'): {
        ("batch['given/domain'][at] = row % 2", "batch['given/domain'][at] = at % 2"):
            'given/domain is another in another order or place of a batch; wanted: a row is a function',
        ("batch['given/domain'][at] = row % 2", "batch['given/domain'][at] = row / 2"):
            'given/domain is int32 in shapes, and fill writes fractions there',
        ("batch['given/domain'][at] = row % 2", "batch['domain'][at] = row % 2"):
            "fill writes 'domain', which shapes does not have: .*given/domain",
        ("    batch['given/domain'][at] = row % 2\n", ''):
            'shapes has given/domain, which fill writes into no row'},
    ('middle_last.py', 'objective'): {
        ('[:, None] + 4', '[:, None] + 3'): 'decoder has 5 ids of 1 tokens; lengths says 4, and a row has 64',
        ('length - 4', 'length - 3'): 'decoder has 65 ids of 61 tokens; lengths says 65, and a row has 64',
        ('(first, third, second)', '(first, third)'): 'tokens are neither given nor predicted',
        (', self.end]))', ']))'): 'targets do not end with EOS',
        ('rng.integers(0, len(tokens) + 1, 2)', 'np.random.randint(0, len(tokens) + 1, 2)'):
            'the same draws give another example',
        ('self.marks, self.end = vocabulary.sentinel(np.arange(3))', 'self.marks, self.end = np.arange(3)'):
            'ids are 0 to .*; wanted: 1 to 358'},
    ('calm.py', 'surgery'): {
        ('= array / by', '= array[:1] / by'):
            r'router/w is float32\[1,4\]; wanted by the new configuration: float32\[8,4\]',
        ('return sparse.replaced(params, made), {}', 'return sparse.replaced(params, made)'):
            r'it returned dict; wanted: \(params, changes\), two dicts'},
}


@pytest.fixture
def plugged(tmp_path, monkeypatch):
  """Returns what a function (text, name, kind) says is wrong with a file of this text: lines."""
  monkeypatch.setenv(plugins.VARIABLE, '')

  def said(text, name, kind):
    (tmp_path / name).write_text(text, encoding='utf-8')
    wrong = []
    conform.failures(kind, plugins.add(tmp_path / name).name, {}, lambda title, line: wrong.append(line))
    return '\n'.join(filter(None, wrong))
  return said


@pytest.mark.parametrize('name, kind', MISTAKES)
def test_a_file_of_ones_own_passes_and_a_mistake_in_it_is_said(name, kind, plugged):
  text = next(block.text for block in pages.blocks(pages.ROOT / 'docs' / 'plugins.md')
              if block.note('file') == name)
  assert not plugged(text, name, kind)
  for (right, wrong), says in MISTAKES[name, kind].items():
    assert text.count(right) == 1, right
    assert re.search(says, plugged(text.replace(right, wrong), name, kind)), says
