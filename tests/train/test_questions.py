"""The trainer on questions with spans: the same loop; exact match and F1 of every domain are the result."""

import json

import jax
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.answer import score
from stmoe.derive import finetune
from stmoe.runs import records
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state
from stmoe.train import taskscore

TINY = ('model.d_model=16', 'model.num_heads=1', 'model.head_dim=16', 'model.length=128', 'data.stride=16',
        'data.inputs_length=128', 'blocks.d.d_ff=16', 'model.head.experts.d_ff=16',
        'model.head.router.num_experts=2', 'train.steps=6', 'train.log_every=2', 'train.batch_size=16',
        'train.microbatches=2', 'train.stats_every=6', 'eval.every=3', 'eval.batch_size=8', 'eval.batches=1',
        'eval.examples=2', 'checkpoint.every=3', 'checkpoint.best=average@span', 'schedule.value=0.001')


def load(*overrides):
  return experiment.load('robust_qa/moe_head:smoke', TINY + overrides)[0]


@pytest.mark.slow
def test_a_run_its_continuation_its_scores_and_fine_tuning(tmp_path):
  assert loop.train(load(), tmp_path / 'whole') == 0
  values = json.loads((tmp_path / 'whole' / 'DONE').read_text())
  assert {'arguments/em@span', 'arguments/f1@span', 'docstring/em@span', 'docstring/f1@span'} <= set(values)
  assert {'loss/aux_importance', 'loss/aux_load', 'moe/head/drop_frac', 'average@span',
          'average/f1@span'} <= set(values)
  assert values['eval/tokens'] == 2 * 8 and values['tokens'] == 6 * 16 * 2
  assert loop.train(load('train.steps=3'), tmp_path / 'parts') == 0
  assert loop.train(load(), tmp_path / 'parts') == 0
  again = json.loads((tmp_path / 'parts' / 'DONE').read_text())
  assert again['eval/loss'] == values['eval/loss']
  found = score.tasks(load(), tmp_path / 'whole', print)
  assert found['scores']['average@span'] == pytest.approx(values['average@span'])
  assert found['examples'] == dict(arguments=2, docstring=2)
  overrides = [text for text in TINY if not text.startswith(('model.', 'blocks.'))]
  overrides += ['train.steps=2', 'checkpoint.best=', "data.eda.files=('docstring',)", 'data.eda.copies=1']
  cfg, name = finetune.prepare('robust_qa/moe_head:smoke', overrides, tmp_path / 'whole')
  assert finetune.finetune(tmp_path / 'whole', cfg, tmp_path / 'tuned', name) == 0
  record = records.ancestry(tmp_path / 'tuned')['facts']
  assert not record['new'] and record['step'] == 6


@pytest.mark.parametrize('methods', ['rank', 'span,decode'])
def test_methods_that_do_not_judge_spans(methods):
  cfg = load(f'eval.methods={methods}')
  with state.on_mesh(cfg.mesh) as mesh, pytest.raises(errors.UserError, match='nearest: span') as caught:
    taskscore.Scorer(cfg, state.blueprint(cfg, mesh))
  assert '\n' not in str(caught.value)


def test_models_and_targets_of_different_kinds():
  text = experiment.load('switch/sizes:smoke')[0].unlock()
  spans = load().unlock()
  text.data, spans.data = spans.data, text.data
  for cfg, said in [(text, "'t5' predicts ids, and the targets of data.objective='spans' are positions"),
                    (spans, "'encoder' predicts positions, and the targets of data.objective='span_corr")]:
    with state.on_mesh(cfg.mesh) as mesh, pytest.raises(errors.UserError, match=said):
      check.forward(cfg, state.blueprint(cfg, mesh))


@pytest.mark.slow
def test_devices_do_not_change_the_numbers(tmp_path):
  fields = ('train.steps=3', 'train.microbatches=1', 'eval.methods=()', 'checkpoint.best=',
            'model.dtype=float32', 'model.dropout_rate=0.0', 'model.head.router.noise_std=0.0')
  found = {}
  for name, mesh, devices in [('one', (), 1), ('eight', ('mesh.data=4', 'mesh.expert=2'), 8)]:
    assert loop.train(load(*fields, *mesh), tmp_path / name, devices=jax.devices()[:devices]) == 0
    values = json.loads((tmp_path / name / 'DONE').read_text())
    found[name] = [values[key] for key in ('loss/total', 'eval/loss', 'loss/aux_importance', 'grad_norm')]
  assert found['eight'] == pytest.approx(found['one'], rel=1e-5)
