"""stmoe tables, and what becomes of a table: in training, in checkpoints, with another vocabulary."""

import jax
import numpy as np
import pytest

from stmoe.cli import main
from stmoe.core import tables as tables_lib
from stmoe.runs import directory as rundir
from stmoe.train import opened
from stmoe.train import state as states

TINY = ('--config.model.d_model=16', '--config.model.num_heads=1', '--config.model.head_dim=16',
        '--config.model.layers=(("m",1),)', '--config.blocks.m.experts.d_ff=16', '--config.data.length=32',
        '--config.train.steps=1', '--config.train.batch_size=8', '--config.train.log_every=1',
        '--config.eval.batch_size=8', '--config.eval.batches=1', '--config.eval.every=100')
EXPERTS, IDS = 8, 384                      # of lm/text:method=hash,smoke


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with text.txt, and a cache of this file's own."""
  made = tmp_path_factory.mktemp('tables')
  words = [f'word{(i * i) % 97}' for i in range(1200)]
  (made / 'text.txt').write_text('\n'.join(' '.join(words[i:i + 8]) for i in range(0, len(words), 8)) + '\n')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('STMOE_CACHE_DIR', str(made / 'cache'))
    yield made


def data(folder):
  return f'--config.data.files={folder / "text.txt"}'


def tables(folder, kind, *more, out='table.npz'):
  return ('tables', 'lm/text:method=hash,smoke', data(folder), '--kind', kind, '-o', folder / out, *more)


def train(folder, table, *more):
  return ('train', 'lm/text:method=hash,smoke', data(folder), *TINY, '--config.blocks.m.router.kind=balanced',
          f'--config.blocks.m.router.table={table}', *more)


@pytest.fixture(scope='module')
def run(folder):
  """(run directory, table) of a step trained with a balanced table."""
  assert main.main([str(word) for word in tables(folder, 'balanced', out='balanced.npz')]) == 0
  table = tables_lib.read(folder / 'balanced.npz')
  words = train(folder, folder / 'balanced.npz', '--workdir', folder / 'run')
  assert main.main([str(word) for word in words]) == 0
  return folder / 'run', table


def test_balanced_table_and_its_load(command, folder):
  code, out, _ = command(*tables(folder, 'balanced'))
  found = tables_lib.read(folder / 'table.npz')
  assert code == 0 and (len(found.table), found.num_experts, found.kind) == (IDS, EXPERTS, 'balanced')
  assert found.vocabulary == 'bytes'
  # Bytes of the training split: the same counts, by Python.
  text = (folder / 'text.txt').read_text()
  assert f'{IDS} ids in {EXPERTS} buckets' in out and f'{len(set(text)) + 1} different ids' in out   # EOS
  ratio = float(out.split('largest bucket / mean: ')[1].split(',')[0])
  random_out = command(*tables(folder, 'random'))[1]
  assert 1 <= ratio < float(random_out.split('largest bucket / mean: ')[1].split(',')[0])


def test_random_tables_are_a_function_of_the_seed(command, folder):
  for seed in ('42', '7'):
    assert command(*tables(folder, 'random', '--seed', seed, '--experts', '5'))[0] == 0
    np.testing.assert_array_equal(tables_lib.read(folder / 'table.npz').table,
                                  tables_lib.random_table(IDS, 5, int(seed)))


@pytest.mark.slow
def test_checkpoint_has_the_table_not_the_file(run):
  path, table = run
  cfg = rundir.load(path)
  file = path.parent / 'balanced.npz'
  kept = file.read_bytes()
  # Another table in the file's place: what was trained comes from the checkpoint.
  tables_lib.TableFile(np.roll(table.table, 1), EXPERTS, 'balanced', 'bytes').write(file)
  try:
    mesh = states.make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
      plan = states.blueprint(cfg, mesh)
      vocabulary = type('Bytes', (), dict(digest='bytes'))
      step, state, *_ = opened.restore(plan, path, vocabulary, print)
  finally:
    file.write_bytes(kept)
  (found,) = jax.tree.leaves(state['router_state'])
  assert step == 1
  np.testing.assert_array_equal(found, table.table[None])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['clustered', 'dispersed'])
def test_tables_of_a_trained_models_embeddings(command, folder, run, kind):
  file = run[0].parent / 'balanced.npz'
  file.rename(folder / 'away')                                       # the run has a copy of its own
  try:
    code, _, err = command(*tables(folder, kind, '--embeddings', run[0]))
  finally:
    (folder / 'away').rename(file)
  found = tables_lib.read(folder / 'table.npz')
  assert code == 0 and found.kind == kind and len(found.table) == IDS and 'k-means' in err
  sizes = np.bincount(found.table, minlength=EXPERTS)
  assert sizes.min() > 0
  assert (sizes.max() - sizes.min() <= 12) == (kind == 'dispersed')


def test_table_of_another_vocabulary_is_refused(mistake, folder, run):
  _, table = run
  tables_lib.TableFile(table.table, EXPERTS, 'balanced', 'pieces-of-another-text').write(folder / 'other.npz')
  line = mistake(*train(folder, folder / 'other.npz', '--workdir', folder / 'refused'))
  assert 'another vocabulary (pieces-of-an) than data.vocab=\'bytes\' is (bytes)' in line
  tables_lib.TableFile(table.table[:300], EXPERTS, 'balanced', 'bytes').write(folder / 'short.npz')
  line = mistake(*train(folder, folder / 'short.npz', '--workdir', folder / 'refused'))
  assert 'hash table for another vocabulary' in line and '300 ids' in line and '384' in line
  assert not (folder / 'refused').exists()


def test_evaluation_refuses_it_too(mistake, command, run):
  """A run keeps the table it was trained with; one of before, without data.json, reads what is named."""
  path, table = run
  file, record = path.parent / 'balanced.npz', path / 'data.json'
  kept = file.read_bytes()
  tables_lib.TableFile(table.table, EXPERTS, 'balanced', 'pieces-of-another-text').write(file)
  try:
    assert command('eval', path)[0] == 0
    record.rename(path / 'away')
    assert 'another vocabulary' in mistake('eval', path)
  finally:
    (path / 'away').rename(record)
    file.write_bytes(kept)


@pytest.mark.parametrize('words, said', [
    (('--kind', 'balance'), '--kind balance does not exist; nearest: balanced'),
    (('--kind', 'clustered'), '--kind clustered needs --embeddings RUN'),
    (('--kind', 'balanced', '--embeddings', 'runs/x'), 'takes no --embeddings'),
    (('--kind', 'balanced', '-o', 'nowhere/table.npz'), 'no directory'),
    (('--kind', 'balanced', '--experts', '-1'), 'at least 1'),
    (('--kind', 'dispersed', '--embeddings', 'nowhere'), 'nowhere is not a run directory'),
])
def test_mistakes_are_one_line(mistake, folder, words, said):
  assert said in mistake(*tables(folder, 'random'), *words)


def test_images_have_no_ids_to_count(mistake, folder):
  line = mistake('tables', 'vmoe/digits', '--kind', 'random', '--experts', '4', '-o', folder / 'x.npz')
  assert 'has no ids of a vocabulary' in line and 'lm/text' in line


def test_tasks_of_a_mixture_without_weights_count_by_their_sizes(command, folder):
  code, out, _ = command(*tables(folder, 'balanced', '--config.data.mixture=text,stdlib_pairs',
                                 '--config.data.mixture_cap=1'))
  assert code == 0 and 'tokens counted' in out


def test_experiment_without_experts_needs_their_number(mistake, folder):
  line = mistake('tables', 'lm/text:method=dense,smoke', data(folder), '--kind', 'random', '-o',
                 folder / 'x.npz')
  assert '--experts is needed' in line and 'no experts' in line
