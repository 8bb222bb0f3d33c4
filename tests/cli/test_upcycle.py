"""`stmoe upcycle` on tiny runs: what it writes, that training goes on from there, and its mistakes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import experiment
from stmoe.cli import main
from stmoe.data import batches as pipeline
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.train import loop
from stmoe.train import opened
from stmoe.train import schedules
from stmoe.train import state as states
from tests.derive import drawn
from tests.train import tiny_run

# An experiment file: dense, or its every second layer sparse; all its batches are the same.
EXPERIMENT = '''
import pathlib
from tests.train import tiny_run

def get_config(arg=''):
  top2 = dict(name='st_moe', num_experts=4, k=2, capacity_factor=(None, None), second_policy='all')
  others = dict(scaled=dict(name='deepseek_v4', num_experts=4, k=2),
                sigmoid=dict(name='loss_free_balancing', num_experts=4))
  experts = dict(name='mlp', d_ff=16 if arg == 'narrow' else 32, activation='relu')
  moe = dict(layer='moe', executor='gather', group_size=None, router=others.get(arg, top2), experts=experts)
  layers = (('d', 2),) if arg == 'dense' else (('dm', 1),)
  changed = dict(model=dict(name='lm', vocab_size=264, d_model=16, num_heads=2, head_dim=8, layers=layers),
                 blocks=dict(d=dict(layer='dense', d_ff=32), m=moe))
  if arg in others:
    changed['losses'] = dict(balance=0.01)
  if arg == 'dense':
    del changed['blocks']['m']
    changed['losses'] = dict()
  return tiny_run.plain(pathlib.Path(FOLDER), **changed)
'''

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the experiment file exp.py, its text, and a dense run of 4 steps."""
  path = tiny_run.write_corpus(tmp_path_factory.mktemp('upcycle'))
  (path / 'exp.py').write_text(EXPERIMENT.replace('FOLDER', repr(str(path))))
  drawn.write(path / 'dense', experiment.load(f'{path}/exp.py:dense')[0], 4, jax.devices()[:1])
  return path


@pytest.fixture(scope='module')
def sparse(folder):
  """The folder after `stmoe upcycle` into `sparse`, with the slots of the dense run."""
  assert main.main(['upcycle', f'{folder}/dense', f'{folder}/exp.py', '--workdir', f'{folder}/sparse',
                    '--optimizer', 'reuse']) == 0
  return folder


def restore(path):
  """Returns (config, step, state, data position) of the newest checkpoint of a run."""
  cfg = rundir.load(path)
  mesh = states.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    at, state, data, _ = opened.restore(states.blueprint(cfg, mesh), path, pipeline.info(cfg)['vocab'], print)
  return cfg, at, state, data


def test_the_first_checkpoint_has_the_dense_function_step_slots_and_data(sparse):
  record = records.ancestry(sparse / 'sparse')['facts']
  assert abs(record['gap']) < 1e-5 and record['difference'] < 1e-5 and record['step'] == 4
  assert set(record['leaves'].values()) == {'copied', 'tiled', 'fresh'}
  [entry] = records.ancestry(sparse / 'sparse')['lineage']
  assert entry['options']['optimizer'] == 'reuse' and entry['parents'][0]['run'] == str(sparse / 'dense')
  _, at, state, data = restore(sparse / 'sparse')
  _, _, old, old_data = restore(sparse / 'dense')
  assert at == state['step'] == old['step'] == state['opt_state']['count'] == 4
  assert data == old_data == record['data'] and data['step'] == 4
  np.testing.assert_array_equal(state['counts']['tokens'], old['counts']['tokens'])
  at = lambda tree: tree['decoder']['segments'][0]['blocks']
  for tree in (lambda s: s['params'], lambda s: s['opt_state']['mu']):
    experts, layer = at(tree(state))[1]['layer']['experts'], at(tree(old))[0]['layer']
    for e in range(4):
      np.testing.assert_array_equal(experts['wi'][0, e], layer['wi'][1])
  [line] = [json.loads(line) for line in (sparse / 'sparse' / 'metrics.jsonl').read_text().splitlines()]
  assert line['step'] == 4 and line['eval/loss'] == pytest.approx(record['upcycled']['eval/loss'])
  assert line['flops'] == 4 * loop.flops_per_step(rundir.load(sparse / 'dense'))


@pytest.mark.slow
def test_training_goes_on_with_the_schedule(command, sparse, tmp_path):
  shutil.copytree(sparse / 'sparse', tmp_path / 'run')
  code, _, err = command('train', f'{sparse}/exp.py', '--workdir', tmp_path / 'run')
  assert code == 0 and 'continuing from the checkpoint of step 4' in err
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [4, 6, 8, 10, 12]
  rate = lambda step: schedules.cosine(jnp.int32(step - 1), peak=3e-3, warmup_steps=2, total_steps=12)
  np.testing.assert_allclose([line['lr'] for line in lines[1:]], [rate(line['step']) for line in lines[1:]],
                             rtol=1e-5)
  assert [line['tokens'] for line in lines] == [line['step'] * 8 * 32 for line in lines]
  dense, mine = (loop.flops_per_step(rundir.load(path)) for path in (sparse / 'dense', tmp_path / 'run'))
  assert mine > dense
  np.testing.assert_allclose([line['flops'] for line in lines],
                             [4 * dense + (line['step'] - 4) * mine for line in lines], rtol=1e-12)


def test_noise_leaves_a_gap_and_fresh_slots_are_empty(command, folder, tmp_path):
  code, out, _ = command('upcycle', folder / 'dense', f'{folder}/exp.py', '--workdir', tmp_path / 'my run',
                         '--step', 'zero', '--config.seed=1', '--noise', '0.2')
  record = records.ancestry(tmp_path / 'my run')['facts']
  assert code == 0 and record['difference'] > 1e-4 and f'gap {record["gap"]:+.6f}' in out
  assert f"exp.py --workdir '{tmp_path}/my run' --config.seed=1" in out
  _, at, state, data = restore(tmp_path / 'my run')
  assert at == state['step'] == state['opt_state']['count'] == 0 and not state['counts']['tokens'].any()
  assert data['step'] == 0                                           # another seed, another order
  assert not any(np.any(a) for a in jax.tree.leaves(state['opt_state']['mu']))


def test_gates_that_add_up_to_more_than_1_leave_no_gap(command, folder, tmp_path):
  code, _, _ = command('upcycle', folder / 'dense', f'{folder}/exp.py:scaled', '--workdir', tmp_path / 'run')
  assert code == 0 and records.ancestry(tmp_path / 'run')['facts']['difference'] < 1e-5


@pytest.mark.slow
def test_virtual_groups_and_several_runs(command, folder, tmp_path):
  code, _, _ = command('upcycle', folder / 'dense', folder / 'dense', f'{folder}/exp.py:narrow',
                       '--granularity', '2', '--workdir', tmp_path / 'run')
  record = records.ancestry(tmp_path / 'run')['facts']
  assert code == 0 and record['difference'] < 1e-5 and len(record['runs']) == 2
  assert record['data']['step'] == 0


@pytest.mark.slow
def test_experts_of_sparse_runs_are_put_side_by_side(command, sparse, tmp_path):
  run = sparse / 'sparse'
  code, out, _ = command('upcycle', run, run, f'{sparse}/exp.py', '--workdir', tmp_path / 'run', '--base',
                         'first', '--optimizer', 'reuse', '--config.blocks.m.router.num_experts=8')
  record = records.ancestry(tmp_path / 'run')['facts']
  kinds = list(record['leaves'].values())
  assert code == 0 and record['step'] == 4 and record['base'] == 'first'
  assert kinds.count('joined') == 3 and f'{kinds.count("copied")} copied, 3 joined' in out
  _, _, state, _ = restore(tmp_path / 'run')
  _, _, old, _ = restore(run)
  at = lambda tree: tree['decoder']['segments'][0]['blocks'][1]['layer']['experts']['wi']
  for tree in (lambda s: s['params'], lambda s: s['opt_state']['mu']):
    np.testing.assert_array_equal(at(tree(state)), np.concatenate([at(tree(old))] * 2, axis=1))
  [line] = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert line['flops'] == 4 * loop.flops_per_step(rundir.load(sparse / 'dense'))     # of that run's own start


@pytest.mark.parametrize('words, said', [
    (['dense', 'exp.py', '--workdir', 'sparse'], ['holds a run already', 'another --workdir']),
    (['dense', 'exp.py', '--workdir', 'dense'], ['holds a run already']),
    (['sparse', 'exp.py'], ['the start is not dense', 'the run twice']),
    (['sparse', 'sparse', 'exp.py', '--noise', '0.1'], ['put side by side', '--noise 0']),
    (['sparse', 'sparse', 'exp.py'], ['in 2 models', 'num_experts=8']),
    (['nowhere', 'exp.py'], ["no experiment is called"]),
    (['dense', 'exp.py:narrow'], ['d_ff=32', '--granularity 2']),
    (['dense', 'exp.py', '--granularity', '4'], ['k=2 is not a multiple of --granularity 4', 'k=4']),
    (['dense', 'exp.py:sigmoid', '--granularity', '2'],
     ['does not say', 'what their gates add up to', '--scale']),
    (['dense', 'exp.py:narrow', '--granularity', '2', '--optimizer', 'reuse'], ['--optimizer fresh']),
    (['dense', 'exp.py', '--granularity', '0'], ['--granularity 0', 'at least 1']),
    (['dense', 'exp.py', '--noise', '-1'], ['--noise -1:', 'at least 0']),
    (['dense', 'exp.py', '--config.train.steps=4'], ['nothing is left', 'train.steps=8', '--step zero']),
    (['dense', 'exp.py', '--config.model.num_heads=4', '--config.model.head_dim=4'],
     ['model.head_dim is 8', 'nearest: --config.model.head_dim=8']),
    (['dense', 'exp.py', "--config.model.layers=(('dm', 2),)"], ['decoder has 2 blocks', '4 in the new']),
    (['dense', 'exp.py', '--config.blocks.m.experts.activation=gelu'], ["'relu'", "'gelu' in the new"]),
    (['dense', 'exp.py', '--config.blocks.m.experts.name=glu'], ['experts/wg', "name='mlp'"]),
    (['dense', 'exp.py', '--config.optimizer.name=sgd', '--optimizer', 'reuse'], ['sgd']),
    (['dense', 'exp.py', '--optimizer', 'old'], ['fresh', 'reuse']),
    (['dense'], ['NAME']),
], ids=lambda value: value[-1] if isinstance(value, list) else '')
def test_mistakes_are_one_line_and_write_nothing(mistake, sparse, tmp_path, words, said):
  ours = ('dense', 'sparse', 'exp.py')
  here = [f'{sparse}/{word}' if word.partition(':')[0] in ours else word for word in words]
  before = sorted(sparse.rglob('*'))
  line = mistake('upcycle', *here, *([] if '--workdir' in words else ['--workdir', str(tmp_path / 'run')]))
  assert all(word in line for word in said), line
  assert not (tmp_path / 'run').exists() and sorted(sparse.rglob('*')) == before
