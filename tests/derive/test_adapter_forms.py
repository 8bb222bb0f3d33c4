"""The two forms of names of MixLoRA: told apart, converted, byte for byte the same again."""

import json
import shutil

import numpy as np
import pytest
from safetensors import numpy as theirs

from stmoe import errors
from stmoe.cli import main
from stmoe.derive import convert
from stmoe.derive.adapter import loaded
from stmoe.derive.adapter import saved
from stmoe.interop import peft
from stmoe.runs import directory as rundir
from tests.interop import written

LLAMA = dict(architectures=['LlamaForCausalLM'], model_type='llama', vocab_size=264, hidden_size=24,
             intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             hidden_act='silu', max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
             rope_theta=1e4, bos_token_id=1, eos_token_id=2)
# Fields as the package mixlora 0.2.3 writes them.
CONFIG = dict(bias='none', peft_type='MIXLORA', task_type='CAUSAL_LM', base_model_name_or_path='some/llama',
              r=2, lora_alpha=4, lora_dropout=0.05, target_modules=['q_proj', 'gate_proj', 'down_proj'],
              num_experts=3, act_fn='silu', top_k=2)
STRATEGIES = dict(current='mixlora', legacy='mixtral')
NAMES = dict(current=('mixlora.layers.{i}.mlp.moe_gate.weight', 'mixlora.layers.{i}.mlp.{m}.experts.{e}.'),
             legacy=('mixlora.layers.{i}.gate.weight', 'mixlora.layers.{i}.experts.{e}.{m}.'))
EXPERT = dict(current='mixlora.layers.1.mlp.gate_proj.experts.2.lora_A.weight',
              legacy='mixlora.layers.1.experts.2.gate_proj.lora_A.weight')


def arrays(form):
  """Returns dict name -> tensor of an adapter, the same numbers in both forms: 30 = 2 (2 + 1 + 3 2 2)."""
  rng, made = np.random.default_rng(0), {}
  (gate, expert), d, f = NAMES[form], LLAMA['hidden_size'], LLAMA['intermediate_size']

  def pair(name, inputs, outputs):
    made[f'{name}lora_A.weight'] = rng.normal(size=(2, inputs)).astype(np.float32)
    made[f'{name}lora_B.weight'] = rng.normal(size=(outputs, 2)).astype(np.float32)

  for i in range(2):
    pair(f'mixlora.layers.{i}.self_attn.q_proj.', d, d)
    made[gate.format(i=i)] = rng.normal(size=(3, d)).astype(np.float16)        # the type comes back, too
    for e in range(3):
      pair(expert.format(i=i, e=e, m='gate_proj'), d, f)
      pair(expert.format(i=i, e=e, m='down_proj'), f, d)
  return made


def write(folder, tensors, form, **changed):
  """Writes the folder of an adapter and returns it."""
  folder.mkdir()
  theirs.save_file(tensors, folder / peft.FILE, metadata=dict(format='pt'))
  config = CONFIG | dict(routing_strategy=STRATEGIES[form]) | changed
  (folder / peft.CONFIG).write_text(json.dumps(config, indent=4))
  return folder


def content(folder):
  return {file: (folder / file).read_bytes() for file in (peft.CONFIG, peft.FILE)}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The run that a random model in Llama's files is read as."""
  folder = tmp_path_factory.mktemp('base')
  theirs.save_file(written.tensors(LLAMA), folder / 'model.safetensors', metadata=dict(format='pt'))
  (folder / 'config.json').write_text(json.dumps(LLAMA))
  convert.read(folder, folder / 'run', say=lambda line: None)
  return folder / 'run'


@pytest.fixture(scope='module')
def read(base, tmp_path_factory):
  """Dict form -> (the folder of an adapter, the run that it is read as, what was said)."""
  folder, made = tmp_path_factory.mktemp('read'), {}
  for form in NAMES:
    lines = []
    alone = write(folder / form, arrays(form), form)
    loaded.read(alone, base, folder / f'{form}_run', say=lines.append)
    made[form] = alone, folder / f'{form}_run', lines
  return made


@pytest.mark.parametrize('form', NAMES)
def test_a_form_is_told_and_comes_back_byte_for_byte(form, read, tmp_path):
  assert EXPERT[form] in arrays(form)
  alone, run, said = read[form]
  line, = (line for line in said if 'MixLoRA' in line)
  assert f'{alone}: MixLoRA in the {form} form (mixlora.layers.0.' in line and '30 tensors' in line
  saved.write(run, tmp_path / 'back')
  assert content(tmp_path / 'back') == content(alone)


def test_both_forms_are_the_same_adapter(base, read):
  one, other = (loaded.opened(read[form][0], base) for form in NAMES)
  assert one.changes == other.changes
  one, other = (each.arrays(rundir.load(base)) for each in (one, other))
  assert one.keys() == other.keys() and all((one[path] == other[path]).all() for path in one)
  expert = one['decoder', 'layers', 1, 'layer', 'experts', 'wi', 'a'][2]
  np.testing.assert_array_equal(expert.T, arrays('current')[EXPERT['current']])


@pytest.mark.parametrize('form, other', [('current', 'legacy'), ('legacy', 'current')])
def test_a_form_is_converted_to_the_other(form, other, read, tmp_path):
  saved.write(read[form][1], tmp_path / 'other', form=other)
  assert (tmp_path / 'other' / peft.FILE).read_bytes() == (read[other][0] / peft.FILE).read_bytes()
  made, wanted = (json.loads((folder / peft.CONFIG).read_text()) for folder in (tmp_path / 'other',
                                                                               read[other][0]))
  assert made == wanted


def test_a_run_of_ours_is_written_in_the_current_form(base, read, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(read['legacy'][1], run)
  shutil.rmtree(run / 'adapter')         # now nothing tells that it was imported
  for form, options in (('current', []), ('legacy', ['--form', 'legacy'])):
    alone = tmp_path / form
    assert main.main(['convert', str(run), str(alone), '--adapter', *options]) == 0
    assert set(theirs.load_file(alone / peft.FILE)) == set(arrays(form))
    assert json.loads((alone / peft.CONFIG).read_text())['routing_strategy'] == STRATEGIES[form]


def without(ending):
  return lambda made: {name: x for name, x in made.items() if not name.endswith(ending)}


def forked(made):
  """Names of neither form."""
  return {name.replace('moe_gate', 'router').replace('gate_proj.experts', 'experts.gate_proj')
          .replace('down_proj.experts', 'experts.down_proj'): x for name, x in made.items()}


BAD = {
    'both forms': (lambda made: made | arrays('legacy'), {}, (
        'mixes two forms', 'mixlora.layers.0.mlp.down_proj.experts.0.lora_A.weight is current',
        'mixlora.layers.0.experts.0.down_proj.lora_A.weight is legacy')),
    'an expert missing': (
        lambda made: {name: x for name, x in made.items() if 'layers.1.mlp.gate_proj.experts.2.' not in name},
        {}, ('2 tensors are missing', EXPERT['current'])),
    'a router missing': (without('layers.1.mlp.moe_gate.weight'), {}, (
        '1 tensors are missing', 'mixlora.layers.1.mlp.moe_gate.weight')),
    'not a target': (dict, dict(target_modules=['q_proj', 'gate_proj']), (
        'target_modules has no down_proj', 'experts.0.lora_A.weight is of down_proj',
        'nearest: down_proj, gate_proj, q_proj')),
    'not a chosen target': (dict, dict(target_modules=dict(q_proj=False, gate_proj=True, down_proj=True)), (
        'target_modules has no q_proj', 'self_attn.q_proj.lora_A.weight is of q_proj')),
    'a target without tensors': (dict, dict(target_modules=[*CONFIG['target_modules'], 'up_proj']), (
        'target_modules has up_proj, and no tensor is of up_proj',)),
    'targets of another kind': (dict, dict(target_modules='q_proj'), ("target_modules='q_proj' is no list",)),
    'the strategy of the other form': (dict, dict(routing_strategy='mixtral'), (
        "routing_strategy='mixtral' does not go with mixlora.layers.0.mlp.", "nearest: 'mixlora'")),
    'another strategy': (dict, dict(routing_strategy='mixlora-switch'), (
        "routing_strategy='mixlora-switch'", "nearest: 'mixlora'")),
    'names of neither form': (forked, {}, ('no form of MixLoRA has these names',
                                           'mixlora.layers.0.mlp.experts.down_proj.0.lora_A.weight')),
    'experts of no fields': (dict, dict(expert_lora=[8]), ('expert_lora=[8] has no fields',)),
    'experts of another scale': (dict, dict(expert_lora=dict(r=2, lora_alpha=8)), (
        'lora_alpha=8 of expert_lora', 'nearest: 4')),
}


@pytest.mark.parametrize('bad', BAD)
def test_bad_folders_are_refused_in_a_line(bad, base, tmp_path):
  change, changed, said = BAD[bad]
  folder = write(tmp_path / 'adapter', change(arrays('current')), 'current', **changed)
  with pytest.raises(errors.UserError) as caught:
    loaded.read(folder, base, tmp_path / 'run', say=lambda line: None)
  line = str(caught.value)
  assert '\n' not in line and all(part in line for part in said), line
  assert [path.name for path in tmp_path.iterdir()] == ['adapter']


def test_a_form_is_of_exports_of_mixlora(base, read, tmp_path, capsys):
  for argv in ([str(base), str(tmp_path / 'out')], [str(read['legacy'][0]), str(tmp_path / 'out'), '--base',
                                                    str(base)]):
    assert main.main(['convert', *argv, '--form', 'legacy']) == 2
    line, = (line for line in capsys.readouterr().err.splitlines() if line.startswith('stmoe: '))
    assert '--form is for exports of adapters' in line
  assert not (tmp_path / 'out').exists()
