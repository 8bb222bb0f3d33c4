"""A run of an earlier revision, whose config.json lacks defaults, is evaluated, read from and continued."""

import json
import pathlib
import tarfile

import jax
import pytest

from stmoe.answer import interactive
from stmoe.answer import score
from stmoe.runs import directory as rundir
from stmoe.runs import read as runs
from stmoe.train import loop

STORED = pathlib.Path(__file__).parent.parent / 'data' / 'old_run.tar.gz'
ONE = jax.devices()[:1]
LOSS = 6.995570182800293                 # what the revision that wrote it says, evaluating it again
OVERRIDES = ('data.files=words.txt', 'data.length=16', 'data.vocab=train:289', 'model.d_model=4',
             'model.num_heads=1', 'model.head_dim=4', 'model.vocab_size=289', 'blocks.d.d_ff=8',
             'blocks.m.experts.d_ff=4', 'blocks.m.router.num_experts=2', 'train.batch_size=2')


@pytest.fixture
def old(tmp_path, monkeypatch):
  """Path of the run, beside the text it was trained on; its cache is gone."""
  with tarfile.open(STORED) as stored:
    stored.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path / 'old_run')
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
  return pathlib.Path('run')


def test_an_old_run_still_opens(old):
  """It goes on for a step, and its config.json stays what its checkpoints were made with."""
  cfg = rundir.opened(old)
  assert cfg.blocks.m.router.k == 2 and 'k' not in rundir.written(old).blocks.m.router
  assert runs.read(old).config['blocks']['m']['router']['k'] == 2
  _, values = score.score(cfg, old, lambda line: None, devices=ONE)
  assert values['eval/loss'] == pytest.approx(LOSS, rel=1e-5)
  [text] = interactive.generate(old, ['the cat'], dict(name='greedy'), 2)
  assert isinstance(text, str)
  cfg, _ = rundir.named('lm/text:method=st_moe,smoke', [*OVERRIDES, 'train.steps=3', 'eval.batch_size=2',
                                                        'eval.batches=1', 'eval.draws=2'])
  assert loop.train(cfg, old, devices=ONE) == 0
  there = json.loads((old / 'config.json').read_text())
  assert there['train']['steps'] == 3 and there['eval']['draws'] == 2                # as the command said
  assert 'k' not in there['blocks']['m']['router'] and 'attention' not in there['model']
  digests = {json.loads((old / 'checkpoints' / step / 'meta' / 'metadata').read_text())['config']
             for step in ('2', '3')}
  assert digests == {rundir.identity_of(old)}
  assert rundir.opened(old, 2).train.steps == rundir.opened(old, 3).train.steps == 3
