"""Runs of an earlier revision, whose config.json lack defaults, are evaluated, continued and exported."""

import hashlib
import json
import pathlib
import tarfile

import jax
import pytest

from stmoe.answer import interactive
from stmoe.answer import score
from stmoe.derive import convert
from stmoe.runs import directory as rundir
from stmoe.runs import read as runs
from stmoe.train import loop

STORED = pathlib.Path(__file__).parent.parent / 'data'
ONE = jax.devices()[:1]
# What the revision that wrote them says, evaluating them again, and the digest of the tensors it exports.
LOSS, EXPORTED_LOSS = 6.995570182800293, 7.444982528686523
TENSORS = '1e71d519404b66ee6636bbf65b262e079911f46328726cd9d7fea37f21255b6b'
OVERRIDES = ('data.files=words.txt', 'data.length=16', 'data.vocab=train:289', 'model.d_model=4',
             'model.num_heads=1', 'model.head_dim=4', 'model.vocab_size=289', 'blocks.d.d_ff=8',
             'blocks.m.experts.d_ff=4', 'blocks.m.router.num_experts=2', 'train.batch_size=2')


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
  """Function of a stored run's name -> its path, beside the text it was trained on; its cache is gone."""
  def unpack(name):
    with tarfile.open(STORED / f'{name}.tar.gz') as stored:
      stored.extractall(tmp_path, filter='data')
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
    return pathlib.Path('run')
  return unpack


def test_an_old_run_still_opens(unpacked):
  """It goes on for a step, and its config.json stays what its checkpoints were made with."""
  old = unpacked('old_run')
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


def test_an_old_run_of_a_family_is_exported(unpacked):
  """The tensors are those that the revision which wrote it exports, and it goes on for a step."""
  old = unpacked('old_export')
  assert 'route_scale' not in rundir.written(old).blocks.m.router and rundir.opened(old).eval.draws == 1
  _, values = score.score(rundir.opened(old), old, lambda line: None, devices=ONE)
  assert values['eval/loss'] == pytest.approx(EXPORTED_LOSS, rel=1e-5)
  step, family, _ = convert.write(old, 'exported', to='mixtral')
  assert (step, family) == (2, 'mixtral')
  tensors = pathlib.Path('exported/model.safetensors').read_bytes()
  assert hashlib.sha256(tensors).hexdigest() == TENSORS
  cfg, _ = rundir.named(str(old), ['train.steps=3'])
  assert loop.train(cfg, old, devices=ONE) == 0
  assert convert.write(old, 'later', to='mixtral')[0] == 3
  assert pathlib.Path('later/model.safetensors').read_bytes() != tensors
