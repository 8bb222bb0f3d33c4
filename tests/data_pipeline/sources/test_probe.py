"""A source of data is a file: one put on the path of its package is named, checked, trained on, resumed."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import sections
from stmoe.analysis import flops
from stmoe.data import batches
from stmoe.data import sources
from stmoe.train import check
from stmoe.train import loop
from tests.train import tiny_run

FILE = '''
"""Numbers in a circle, from a random one on, and what pushes routers."""

import dataclasses

import numpy as np

from stmoe import ranges
from stmoe.data import arrays
from stmoe.data.text import pack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
  length: ranges.Count
  around: ranges.Count = 7

  kind = 'circle'

  def content(self):
    return dict(around=self.around)

  def shapes(self, rows):
    text = {name: ((rows, self.length), np.int32) for name in pack.empty(dict(decoder=1), 1)}
    return text | {'given/push': ((rows, 4), np.float32)}

  def lengths(self, model=None):
    return dict(decoder=self.length)

  def open(self, cfg, found):
    return Opened(self)


class Opened:
  keys, caches, weights, files, metrics = dict(circle='1'), {}, [1.0], [], {}
  vocabulary, recorded = None, False

  def __init__(self, source):
    self.source = source

  def rows(self, name, split, seed, train):
    return Rows(self.source, seed)

  def info(self):
    labels = arrays.Labels(self.source.around, 'circle')
    return dict(vocab=labels, vocab_size=labels.vocab_size, sources=[])


@dataclasses.dataclass
class Rows:
  source: Circle
  seed: int

  def __len__(self):
    return 32

  def fill(self, batch, at, row, number):
    first = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number])).integers(100)
    ids = (np.arange(self.source.length) + first) % self.source.around
    pack.fill(batch, at, [dict(decoder=ids)])
    batch['given/push'][at] = np.arange(4) == first % 4
'''


@pytest.fixture(scope='module', autouse=True)
def circle(tmp_path_factory):
  """The file is there as stmoe/data/sources/circle.py would be."""
  folder, kept = tmp_path_factory.mktemp('sources'), sources.__path__
  (folder / 'circle.py').write_text(FILE)
  sources.__path__ = [*kept, str(folder)]
  yield
  sources.__path__ = kept
  sys.modules.pop(f'{sources.__name__}.circle', None)


def config(folder, steps, push='push', **changed):
  """A run on the source, in which routers read what it gives of rows."""
  router = dict(name='offset', source=push, inner=dict(name='switch', num_experts=4, jitter=0.01))
  cfg = tiny_run.config(folder, **{
      'train.steps': steps, 'eval.every': 2, 'eval.batches': 1, 'checkpoint.every': 2,
      'blocks.m.router': router, 'checkpoint.async_save': False}).unlock()
  cfg.data = dict(source='circle', length=16, shuffle=True, eval_split='validation') | changed
  return cfg.lock()


@pytest.mark.slow
def test_it_is_trained_on_and_goes_on_where_it_stopped(tmp_path):
  run, each = tmp_path / 'run', iter(batches.train_iterator(config(tmp_path, 4)))
  for steps in (2, 4):
    assert loop.train(config(tmp_path, steps), run, devices=jax.devices()[:1]) == 0
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss/total' in line] == [2, 4]
  assert json.loads((run / 'data.json').read_text())['data'] == dict(objective='circle', around=7)
  [_, _, third] = [next(each) for _ in range(3)]
  again = batches.train_iterator(config(tmp_path, 4))
  again.set_state(dict(step=2, data=again.get_state()['data']))
  np.testing.assert_equal(next(again), third)
  assert third['given/push'].sum(1).tolist() == [1] * 8


def test_its_fields_are_checked_before_anything_is_imported(tmp_path):
  for changed, said in [(dict(length=0), 'data.length=0: expected a whole number of at least 1'),
                        (dict(arround=3), "data.source='circle' has no field 'arround'; nearest: around"),
                        (dict(source='circel'), "no source is called 'circel'; nearest: circle")]:
    with pytest.raises(errors.UserError, match=said):
      sections.check(config(tmp_path, 2, **changed))
  assert 'circle' in lookup.available('source')


def test_what_routers_want_and_data_do_not_give_is_one_line_before_compiling(tmp_path):
  cfg = config(tmp_path, 2, push='pull')
  with pytest.raises(errors.UserError, match="nothing is given as 'pull'; nearest: push .there are: push.;"):
    loop.train(cfg, tmp_path / 'run', devices=jax.devices()[:1])
  assert not (tmp_path / 'run').exists()


def test_what_a_batch_is_comes_from_it_alone(tmp_path):
  cfg = config(tmp_path, 2)
  shapes = check.batch_shapes(cfg, 3)
  assert shapes['given/push'].shape == (3, 4) and shapes['decoder_input_tokens'].shape == (3, 16)
  assert flops.lengths(cfg) == dict(decoder=16) and flops.active_per_token(cfg)['forward'] > 0


def test_a_broken_file_is_named_and_hinders_no_other(tmp_path):
  broken = pathlib.Path(sources.__path__[-1]) / 'broken.py'
  broken.write_text('class Broken(:\n')
  try:
    sections.check(config(tmp_path, 2))
    experiment.load('vmoe/digits:smoke')
    with pytest.raises(errors.UserError, match='broken.py, line 1: '):
      sections.check(config(tmp_path, 2, source='broken'))
  finally:
    broken.unlink()


def test_a_section_without_a_source_means_the_one_with_its_objective():
  assert lookup.objectives() == dict(dict.fromkeys(lookup.available('objective'), 'texts'),
                                     classification='images', spans='questions', diffusion='diffusion',
                                     dynamics='trajectories', restoration='degraded')
  assert all(lookup.source_of(dict(objective=objective)) == name
             for objective, name in lookup.objectives().items())
