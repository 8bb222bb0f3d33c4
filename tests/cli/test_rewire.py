"""`stmoe rewire` on a tiny run: what it measures, against likelihoods by another way, and its mistakes."""

import json
import math
import types

import numpy as np
import pytest

from stmoe import experiment
from stmoe.answer import harness
from stmoe.answer import rewiring
from stmoe.core import contract
from tests.cli import test_infer
from tests.train import tiny_run


@pytest.fixture(scope='module')
def lm(tmp_path_factory, one_device, one_size_of_blocks):
  """An untrained run of two sparse layers, on one device."""
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('rewire'))
  return test_infer.write_run(folder / 'lm', tiny_run.config(folder, **{'model.layers': (('m', 2),)}))


@pytest.mark.slow
def test_it_measures_prompts_and_what_follows(lm, command):
  words = '--rows', 12, '--prompt', 9, '--json', '--config.decode.confident=1.0', '--config.decode.rate=0.5'
  code, out, err = command('rewire', lm, *words)
  assert code == 0 and 'step 1' in err, err
  found = json.loads(out)
  assert found['rows'] == 12 and found['prompts']['adapted'] < found['prompts']['plain']
  assert found['gain'] == pytest.approx(found['texts']['plain'] - found['texts']['adapted'])
  assert set(found['changed']) == {'decoder_00', 'decoder_01'} and 0 < found['changed']['decoder_01'] < 1
  assert found['choices'] == {'decoder_00': 1.0, 'decoder_01': 1.0} and min(found['largest'].values()) > 0.1
  bridge = harness.Harness(lm, batch_size=4)
  source = ''.join((lm.parent / name).read_text() for name in ('a.txt', 'b.txt'))
  rows = [found for found in _rows(bridge, source) if found][:12]
  nats = -sum(score for score, _ in bridge.loglikelihood(rows))
  assert found['texts']['plain'] == pytest.approx(nats / math.log(2) / (12 * 24), rel=1e-4)
  code, out, _ = command('rewire', lm, *words, '--config.decode.steps=0')
  still = json.loads(out)
  assert still['texts']['adapted'] == still['texts']['plain'] == found['texts']['plain']
  assert still['changed'] == {'decoder_00': 0.0, 'decoder_01': 0.0}


def _rows(bridge, source):
  """Requests for what follows the first 8 bytes of the evaluated rows, which begin anywhere in the text."""
  from stmoe.data import batches as pipeline
  for batch in pipeline.eval_batches(bridge.cfg):
    for ids, real in zip(batch['decoder_target_tokens'], batch['decoder_loss_weights']):
      text = bridge._vocabulary.decode(ids)
      yield real.all() and text in source and types.SimpleNamespace(args=(text[:8], text[8:]))


def test_changed_experts_are_counted_by_token():
  """Of two tokens the first has experts 0 and 1, then 1 and 2; the second 0, then 3."""
  aux = lambda experts: contract.Aux(losses={}, load=np.zeros(4), metrics={}, records=dict(
      edges=dict(expert=np.array(experts))))
  before, after, none = aux([[0, 1], [0, 4]]), aux([[1, 2], [3, 4]]), aux([])
  assert rewiring._changed(before, after, np.array([[True, True]])) == (2, 3)
  assert rewiring._changed(before, after, np.array([[True, False]])) == (1, 2)
  assert rewiring._changed(before, none.replace(records={}), np.ones((1, 2))) == ()


@pytest.mark.parametrize('says, words', [
    ('--prompt 40: from 2 to data.length=32 tokens; nearest: 32', ('--prompt', 40)),
    ('--prompt 1: from 2', ('--prompt', 1)),
    ('decode.name=greedy: stmoe rewire has one strategy', ('--config.decode.name=greedy',)),
    ("no field stepz; nearest: steps", ('--config.decode.stepz=2',)),
    ('decode.confident', ('--config.decode.confident=2',))], ids=lambda x: str(x)[:20])
def test_mistakes_are_one_line(lm, mistake, says, words):
  line = mistake('rewire', lm, *words)
  assert says.replace("'", '') in line.replace("'", ''), line


def test_a_run_of_images_has_no_prompt(mistake, tmp_path):
  (tmp_path / 'run/checkpoints/1').mkdir(parents=True)
  (tmp_path / 'run/config.json').write_text(experiment.to_json(experiment.load('vmoe/digits:smoke')[0]))
  line = mistake('rewire', tmp_path / 'run')
  assert 'are no texts, which this needs' in line, line
