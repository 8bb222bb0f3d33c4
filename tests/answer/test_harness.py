"""The bridge to lm-evaluation-harness: requests and a base class like its own; the package, where it is."""

import json
import math
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.answer import harness
from stmoe.derive import convert
from tests.cli import test_infer
from tests.train import tiny_run


@pytest.fixture(scope='module')
def bridge(tmp_path_factory, one_device, one_size_of_blocks):
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('harness'))
  run = test_infer.write_run(folder / 'lm', tiny_run.config(folder))
  return harness.Harness(run, batch_size=2, length=4)


def ask(*args):
  return types.SimpleNamespace(args=args)


def test_likelihoods_add_up_and_do_not_depend_on_batches(bridge):
  together = bridge.loglikelihood([ask('1 squared', ' is 1'), ask('', 'a'), ask('1', ' squared is 1')])
  alone = [bridge.loglikelihood([request])[0] for request in (
      ask('1 squared', ' is 1'), ask('', 'a'), ask('1', ' squared is 1'))]
  np.testing.assert_allclose([score for score, _ in together], [score for score, _ in alone], rtol=1e-5)
  whole = bridge.loglikelihood_rolling([ask('1 squared is 1'), ask('a'), ask('')])
  first = bridge.loglikelihood([ask('', '1'), ask('1', ' squared is 1')])
  np.testing.assert_allclose(whole[0], first[0][0] + first[1][0], rtol=1e-5)
  np.testing.assert_allclose(whole[1], together[1][0], rtol=1e-5)
  assert whole[2] == 0 and bridge.drop_frac == 0.0
  windows = bridge.loglikelihood_rolling([ask('x' * 40), ask('x' * 32), ask('x' * 8)])
  np.testing.assert_allclose(windows[0], windows[1] + windows[2], rtol=1e-5)   # data.length is 32


def test_requests_that_are_empty_too_long_or_no_text(bridge):
  assert bridge.loglikelihood([ask('1 squared', ''), ask('', '')]) == [(0.0, True), (0.0, True)]
  (long, _), (cut, _) = bridge.loglikelihood([ask('x' * 99, 'is 1'), ask('x' * 28, 'is 1')])
  np.testing.assert_allclose(long, cut, rtol=1e-5)                   # of 32 tokens
  texts = bridge.generate_until([ask('', dict(until=None)), ask('x' * 99, {})])
  assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
  for method, args in (('loglikelihood', ('a', '\ud800')), ('loglikelihood_rolling', ('\udfff',)),
                       ('generate_until', ('a\ud800', {}))):
    with pytest.raises(errors.UserError, match='half a surrogate pair'):
      getattr(bridge, method)([ask(*args)])


def test_greedy_texts_are_greedy(bridge):
  text, = bridge.generate_until([ask('1 squared', dict(until=[]))])
  if text:
    assert bridge.loglikelihood([ask('1 squared', text)])[0][1] == (text.encode().decode() == text)
    cut, = bridge.generate_until([ask('1 squared', dict(until=[text[0]]))])
    assert cut == ''


def test_it_is_a_model_of_the_package(bridge, monkeypatch):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  with pytest.raises(errors.UserError, match='not installed'):
    harness.model(bridge)
  api = types.ModuleType('lm_eval.api')
  api.model = types.ModuleType('lm_eval.api.model')
  api.model.LM = type('LM', (), {})
  package = types.ModuleType('lm_eval')
  for name, module in (('lm_eval', package), ('lm_eval.api', api), ('lm_eval.api.model', api.model)):
    monkeypatch.setitem(sys.modules, name, module)
  made = harness.model(bridge)
  assert isinstance(made, api.model.LM)
  assert made.loglikelihood([ask('', 'a')]) == bridge.loglikelihood([ask('', 'a')])


CHECKPOINT = pathlib.Path(__file__).parent.parent / 'data' / 'checkpoints' / 'with_text_olmoe'
ROWS = [dict(question=f'{name}: What, ho', choices=['my lord', 'good night to you all', 'x'], answer=n % 3)
        for n, name in enumerate(('KING', 'QUEEN', 'ROMEO', 'First Citizen', 'DUKE'))]
YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: '{text}'
{more}
"""
TASKS = dict(
    choices=dict(kind='multiple_choice', text='{{question}} is', more='doc_to_choice: choices\n'
                 'doc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_norm}]'),
    texts=dict(kind='generate_until', text='{{question}}', more='doc_to_target: "{{choices[answer]}}"\n'
               'generation_kwargs: {until: ["."], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]'),
    whole=dict(kind='loglikelihood_rolling', text='', more='doc_to_target: "{{question}} is {{choices[0]}}"\n'
               'metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]'))


@pytest.mark.slow
def test_the_package_scores_tasks_of_local_files_as_the_bridge_answers(tmp_path, monkeypatch):
  lm_eval = pytest.importorskip('lm_eval')
  from lm_eval import tasks
  for name in ('HF_DATASETS_OFFLINE', 'HF_HUB_OFFLINE', 'HF_EVALUATE_OFFLINE'):
    monkeypatch.setenv(name, '1')
  convert.read(CHECKPOINT, tmp_path / 'run', say=print)
  bridge = harness.Harness(tmp_path / 'run', batch_size=2, length=4, devices=jax.devices()[:1])
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  for name, fields in TASKS.items():
    (tmp_path / f'{name}.yaml').write_text(YAML.format(name=name, file=tmp_path / 'rows.jsonl', **fields))
  manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
  evaluated = lm_eval.simple_evaluate(model=harness.model(bridge), tasks=[*TASKS], task_manager=manager,
                                      bootstrap_iters=0)
  found, samples = evaluated['results'], evaluated['samples']
  scores = [[bridge.loglikelihood([ask(f'{row["question"]} is', f' {choice}')])[0][0]
             for choice in row['choices']] for row in ROWS]
  right = [row['answer'] for row in ROWS]
  assert found['choices']['acc,none'] == pytest.approx(np.mean(np.argmax(scores, axis=1) == right))
  lengths = np.array([[len(choice) for choice in row['choices']] for row in ROWS])
  assert found['choices']['acc_norm,none'] == pytest.approx(
      np.mean(np.argmax(np.array(scores) / lengths, axis=1) == right))
  given = dict(until=['.'], max_gen_toks=6)
  texts = [bridge.generate_until([ask(row['question'], given)])[0] for row in ROWS]
  assert [sample['resps'] for sample in samples['texts']] == [[[text]] for text in texts] and any(texts)
  assert found['texts']['exact_match,none'] == np.mean(
      [text == row['choices'][row['answer']] for text, row in zip(texts, ROWS)])
  whole = [f'{row["question"]} is {row["choices"][0]}' for row in ROWS]
  nats = sum(bridge.loglikelihood_rolling([ask(text) for text in whole]))
  bits = -nats / sum(len(text.encode()) for text in whole) / math.log(2)
  assert found['whole']['bits_per_byte,none'] == pytest.approx(bits, rel=1e-5)
  assert found['whole']['byte_perplexity,none'] == pytest.approx(2 ** bits, rel=1e-5)
