"""Adapters beside a run's matrices: what trains, what is saved, merged, exported and imported."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as theirs

from stmoe import errors
from stmoe.answer import adapters
from stmoe.answer import interactive
from stmoe.checkpoints import checkpoint
from stmoe.derive import compress
from stmoe.derive import convert
from stmoe.derive import finetune
from stmoe.derive.adapter import loaded
from stmoe.derive.adapter import saved
from stmoe.runs import directory as rundir
from stmoe.train import state as states
from tests.interop import written

ONE = jax.devices()[:1]
IDS = jnp.arange(24).reshape(2, 12) % 250 + 8
BATCH = dict(decoder_input_tokens=IDS, decoder_segment_ids=jnp.ones_like(IDS),
             decoder_positions=jnp.broadcast_to(jnp.arange(12), (2, 12)))
LORA = 'lora:rank=4,alpha=8,targets=attention+layer,dropout_rate=0.1,dora=True'


@pytest.fixture(scope='module')
def prepared(start, tmp_path_factory):
  """The function (adapter, more overrides, run) -> (cfg, name) of a fine-tuning of `start` on pairs."""
  path = tmp_path_factory.mktemp('jsonl') / 'even.jsonl'
  lines = [dict(inputs=f'is {i} even', targets='yes' if i % 2 == 0 else 'no') for i in range(40)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  texts = [f'data.jsonl={path}', f'data.cache_dir={path.parent / "cache"}', 'data.inputs_length=24',
           'data.targets_length=8', 'train.steps=2', 'train.batch_size=8', 'eval.batch_size=8',
           'eval.every=2', 'train.log_every=2', 'train.stats_every=4',
           'eval.batches=1', 'checkpoint.every=2', 'eval.methods=']

  def prepare(adapter, *more, run=start):
    every = [f'--config.{text}' for text in (*texts, f'finetune.adapter={adapter}', *more)]
    return finetune.prepare('finetune/jsonl', every, run)
  return prepare


@pytest.fixture(scope='module')
def adapted(start, prepared, tmp_path_factory):
  """A run with an adapter beside the matrices of `start`, trained for 2 steps."""
  run, said = tmp_path_factory.mktemp('adapted') / 'run', []
  cfg, name = prepared(LORA)
  assert finetune.finetune(start, cfg, run, name, devices=ONE, say=said.append) == 0
  assert '(adapter)' in said[0] and '0 of the start not used' in said[0]
  return run


def opened(run):
  """Returns (Blueprint, state of the newest checkpoint) of a run directory."""
  with states.on_mesh(dict(data=1, expert=1, model=1), ONE) as mesh:
    plan = states.blueprint(rundir.load(run), mesh)
  saved = checkpoint.Checkpoints(run / 'checkpoints', keep=None, read_only=True)
  _, state, _, _ = saved.restore(plan.shapes, lambda meta: None, print)
  saved.close()
  return plan, state


def flat(tree):
  return {'/'.join(str(entry.key) for entry in path): np.asarray(leaf)
          for path, leaf in jax.tree.leaves_with_path(tree)}


def logits(run):
  plan, state = opened(run)
  return jax.jit(lambda p, r: plan.model(p, r)(BATCH, train=False)[0])(state['params'], state['router_state'])


def test_only_the_adapter_trains_and_has_slots(start, adapted):
  _, before = opened(start)
  _, after = opened(adapted)
  before, params = flat(before['params']), flat(after['params'])
  assert all((before[name] == params[name]).all() for name in before)
  beside = {name: x for name, x in params.items() if '/adapters/' in name}
  assert set(params) == {*before, *beside} and {name.rpartition('/')[2] for name in beside} == {
      'a', 'b', 'magnitude'}
  assert all(np.abs(x).max() > 0 for name, x in beside.items())      # B began at 0
  moments = [sum(x.size for x in jax.tree.leaves(tree)) for tree in after['opt_state'].values()
             if isinstance(tree, dict)]
  assert moments and set(moments) == {sum(x.size for x in beside.values())}


@pytest.mark.slow
def test_a_merged_run_computes_the_same(start, adapted, alone, tmp_path):
  compress.compress(adapted, 'merge_adapter', tmp_path / 'merged', devices=ONE, say=lambda line: None)
  whole = logits(tmp_path / 'merged')
  np.testing.assert_allclose(whole, logits(adapted), atol=1e-5)
  assert np.abs(whole - logits(start)).max() > 1e-3
  with pytest.raises(errors.UserError, match='has no adapter that could be merged'):
    compress.compress(tmp_path / 'merged', 'merge_adapter', tmp_path / 'again', devices=ONE)
  with pytest.raises(errors.UserError, match='is an adapter of another base: of digest .*nearest: .*start'):
    loaded.read(alone, tmp_path / 'merged', tmp_path / 'other', devices=ONE)


def test_a_family_has_no_form_for_an_adapter(adapted, tmp_path):
  said = 'has an adapter, for which the family llama has no form; nearest: --adapter, .*; or first: stmoe com'
  with pytest.raises(errors.UserError, match=said):
    convert.write(adapted, tmp_path / 'new', to='llama')


@pytest.fixture(scope='module')
def alone(adapted, tmp_path_factory):
  """The adapter of `adapted` in files."""
  path = tmp_path_factory.mktemp('alone') / 'alone'
  _, tensors = saved.write(adapted, path)
  assert all(name.startswith('base_model.model.decoder.layers.') for name in tensors)
  return path


def test_an_adapter_alone_comes_back_byte_for_byte(start, adapted, alone, tmp_path):
  comes_back(start, adapted, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('trainable', ['adapter', 'all'])
def test_a_run_from_an_adapted_run_begins_with_its_adapter(trainable, start, adapted, prepared, tmp_path):
  """Trained on, it is beside the same base as before, unless that trained too."""
  more = f'train.trainable={trainable}', 'train.steps=1', 'eval.every=1', 'checkpoint.every=1'
  run, said = tmp_path / 'run', []
  cfg, name = prepared('', *more, 'schedule.value=0.0', run=adapted)
  assert finetune.finetune(adapted, cfg, run, name, devices=ONE, say=said.append) == 0
  assert ' 0 new, 0 of the start not used' in said[0]
  (_, before), (_, after) = opened(adapted), opened(run)
  jax.tree.map(np.testing.assert_array_equal, before['params'], after['params'])
  cfg, name = prepared('', *more, run=adapted)
  moved = tmp_path / 'moved'
  assert finetune.finetune(adapted, cfg, moved, name, devices=ONE, say=lambda line: None) == 0
  if trainable == 'all':
    with pytest.raises(errors.UserError, match='has changed what its adapter was put beside.*merge_adapter'):
      saved.write(moved, tmp_path / 'alone')
    assert not (tmp_path / 'alone').exists()
  else:
    saved.write(moved, tmp_path / 'alone')
    config = json.loads((tmp_path / 'alone' / 'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == str(start)
    comes_back(start, moved, tmp_path / 'alone', tmp_path)


def test_lora_has_one_form_of_names(adapted, tmp_path):
  with pytest.raises(errors.UserError, match="form 'legacy' is of the names of a MixLoRA"):
    saved.write(adapted, tmp_path / 'out', form='legacy')
  assert not (tmp_path / 'out').exists()


def comes_back(start, run, alone, folder):
  """Asserts that the adapter in the folder `alone` makes of `start` what `run` is, and is saved as it was."""
  loaded.read(alone, start, folder / 'again', devices=ONE, say=lambda line: None)
  np.testing.assert_array_equal(logits(folder / 'again'), logits(run))
  saved.write(folder / 'again', folder / 'back')
  for file in ('adapter_config.json', 'adapter_model.safetensors'):
    assert (alone / file).read_bytes() == (folder / 'back' / file).read_bytes()


@pytest.mark.parametrize('adapter', [
    pytest.param('mixlora:num_experts=3,rank=2,dora=True', marks=pytest.mark.slow),
    pytest.param('dynmole:num_experts=3,rank=2,attention=wq', marks=pytest.mark.slow)])
def test_experts_of_adapters_train_beside_dense_layers(adapter, start, prepared, tmp_path):
  cfg, name = prepared(adapter)
  run = tmp_path / 'run'
  assert finetune.finetune(start, cfg, run, name, devices=ONE, say=lambda line: None) == 0
  (_, before), (plan, after) = opened(start), opened(run)
  before, params = flat(before['params']), flat(after['params'])
  assert all((before[name] == params[name]).all() for name in before)
  [trained] = [group for group in plan.groups if group.train]
  assert {'/'.join(map(str, path)) for path in trained.paths} == set(params) - set(before)
  assert all(np.abs(params[name]).max() > 0 for name in set(params) - set(before))
  with pytest.raises(errors.UserError, match='chosen for each token; it cannot be merged'):
    compress.compress(run, 'merge_adapter', tmp_path / 'merged', devices=ONE)
  if adapter.startswith('dynmole'):
    with pytest.raises(errors.UserError, match="has no name in files of PEFT's layout"):
      saved.write(run, tmp_path / 'alone')
  else:
    saved.write(run, tmp_path / 'alone')
    comes_back(start, run, tmp_path / 'alone', tmp_path)


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  """The run that a random model in Llama's files is read as: 4 heads on 2 of keys, 264 ids, no tokenizer."""
  folder = tmp_path_factory.mktemp('llama')
  hf = dict(architectures=['LlamaForCausalLM'], model_type='llama', vocab_size=264, hidden_size=24,
            intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            hidden_act='silu', max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_theta=1e4, bos_token_id=1, eos_token_id=2)
  theirs.save_file(written.tensors(hf), folder / 'model.safetensors', metadata=dict(format='pt'))
  (folder / 'config.json').write_text(json.dumps(hf))
  convert.read(folder, folder / 'run', say=lambda line: None)
  return folder / 'run'


@pytest.mark.slow
@pytest.mark.parametrize('adapter, prefix', [
    ('mixlora:num_experts=3,rank=2', 'mixlora.layers.1.experts.2.gate_proj.'),
    ('dynmole:num_experts=3,rank=2', None)])
def test_experts_of_adapters_train_beside_an_imported_llama(adapter, prefix, llama, prepared, tmp_path):
  """Nothing changes before the first update: B begins at 0. Of the base nothing changes ever."""
  cfg, name = prepared(adapter, 'data.vocab=bytes', 'schedule.value=0.0', 'train.steps=1', run=llama)
  assert finetune.finetune(llama, cfg, tmp_path / 'begun', name, devices=ONE, say=lambda line: None) == 0
  np.testing.assert_allclose(logits(tmp_path / 'begun'), logits(llama), atol=1e-5)
  cfg, name = prepared(adapter, 'data.vocab=bytes', run=llama)
  run = tmp_path / 'run'
  assert finetune.finetune(llama, cfg, run, name, devices=ONE, say=lambda line: None) == 0
  (_, before), (_, after) = opened(llama), opened(run)
  before, params = flat(before['params']), flat(after['params'])
  assert all((before[name] == params[name]).all() for name in before) and set(params) > set(before)
  assert np.abs(logits(run) - logits(llama)).max() > 1e-4
  if prefix:                             # and in files by the names of the base's family
    _, tensors = saved.write(run, tmp_path / 'alone', form='legacy')
    assert any(name.startswith(prefix) for name in tensors)
    comes_back(llama, run, tmp_path / 'alone', tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('adapter', [LORA, 'mixlora:num_experts=3,rank=2', 'dynmole:num_experts=3,rank=2'])
def test_a_killed_run_goes_on_bit_for_bit(adapter, start, prepared, tmp_path):
  cfg, name = prepared(adapter, 'train.steps=4')
  tune = lambda run: finetune.finetune(start, cfg, run, name, devices=ONE, say=lambda line: None)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert tune(whole) == 0
  shutil.copytree(whole, killed)         # as it was when the step after its checkpoint had been logged
  shutil.rmtree(killed / 'checkpoints' / '4')
  (killed / 'DONE').unlink()
  assert tune(killed) == 0
  read = lambda run, part: json.loads((run / 'checkpoints' / '4' / part / 'metadata').read_text())
  assert read(killed, 'meta')['arrays'] == read(whole, 'meta')['arrays']
  assert read(killed, 'data') == read(whole, 'data')
  lines = lambda run: [{name: value for name, value in json.loads(line).items() if name != 'time'}
                       for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert lines(killed) == lines(whole) and [line['step'] for line in lines(whole)] == [2, 4]


@pytest.mark.slow
def test_one_base_answers_with_several_adapters(start, adapted, alone, tmp_path):
  base = adapters.Base(start)
  plain, of_run, of_files = base.model(), base.model(adapted), base.model(alone)
  matrix = lambda model: model.decoder.segments[0].blocks[0].attention.wq.get_value()
  where = matrix(plain).unsafe_buffer_pointer()
  assert matrix(of_run).w.unsafe_buffer_pointer() == matrix(of_files).w.unsafe_buffer_pointer() == where
  answer = jax.jit(lambda model: model(BATCH, train=False)[0])
  np.testing.assert_array_equal(answer(plain), logits(start))
  np.testing.assert_array_equal(answer(of_run), logits(adapted))
  np.testing.assert_array_equal(answer(of_files), logits(adapted))
  shutil.copytree(alone, tmp_path / 'second')
  programs = answer._cache_size()
  answer(base.model(tmp_path / 'second'))
  assert answer._cache_size() == programs                            # adapters of one form share it


@pytest.mark.slow
def test_a_base_writes_what_the_adapted_run_writes(start, adapted):
  base, decode = adapters.Base(start), dict(name='greedy')
  prompts = ['is 3 even', 'is 4 even']
  written = base.generate(prompts, decode, 4, adapted)
  assert written == interactive.generate(adapted, prompts, decode, 4)
  assert base.generate(prompts, decode, 4) == interactive.generate(start, prompts, decode, 4)
