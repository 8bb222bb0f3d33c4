"""Checkpoints: what is read back, and what happens to damaged ones, wrong ones and a full disk."""

import json
import os
import shutil
import sys
import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest
import tensorstore as ts

from stmoe import axes
from stmoe import errors
from stmoe.checkpoints import checkpoint
from stmoe.checkpoints import checksum
from stmoe.checkpoints import stored

WORDS = 64
LOST = 'step 2 was written .* has [0-9,]+ bytes free, and cannot be read again .*intact: step 1$'


def state(step, shape=(WORDS, WORDS)):
  return dict(params={'units': {0: jax.random.normal(jax.random.key(step), shape)}}, empty={},
              key=jax.random.key(step), counts=dict(tokens=jnp.array([step, 1], jnp.uint32)))


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def saved(path, steps, keep=10, **options):
  """Returns Checkpoints at `path` with these steps written."""
  store = checkpoint.Checkpoints(path / 'checkpoints', keep=keep, **options)
  for step in steps:
    store.save(step, state(step), dict(step=step), dict(vocab='v'))
  store.wait()
  return store


def restore(store, tree=None, check=lambda meta: None, step=None):
  """Returns (what restore returns, what it said)."""
  said = []
  return store.restore(shapes(state(0) if tree is None else tree), check, said.append, step), said


def assert_is(found, step):
  assert found[0] == step and found[2] == dict(step=step) and found[3]['vocab'] == 'v'
  equal = jax.tree.map(lambda a, b: bool((a == b).all()), found[1], state(step))
  assert all(jax.tree.leaves(equal)) and jax.tree.structure(found[1]) == jax.tree.structure(state(step))


def largest(path, step):
  """Returns the file that holds the large array of a step."""
  files = [f for f in (path / 'checkpoints' / str(step)).rglob('*') if f.is_file()]
  return max(files, key=lambda f: f.stat().st_size)


@pytest.mark.parametrize('async_save', [True, False])
def test_the_newest_comes_back(tmp_path, async_save):
  store = saved(tmp_path, [1, 2, 3], keep=2, async_save=async_save)
  assert store.steps() == [2, 3]
  assert_is(restore(store)[0], 3)
  assert_is(restore(store, step=2)[0], 2)
  assert restore(checkpoint.Checkpoints(tmp_path / 'none'))[0] is None
  with pytest.raises(errors.UserError, match='no checkpoint of step 1 .there are: 2, 3'):
    restore(store, step=1)


def test_arrays_may_be_donated_right_after_a_save(tmp_path):
  store = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  overwrite = jax.jit(lambda x: x * 0 - 1.0, donate_argnums=0)
  for step in range(1, 6):
    tree = state(step, (1024, 1024))
    store.save(step, tree, {}, {})
    tree['params']['units'][0] = overwrite(tree['params']['units'][0])
    store.wait()
    found, _ = restore(store, tree)
    wanted = state(step, (1024, 1024))['params']['units'][0]
    np.testing.assert_array_equal(found[1]['params']['units'][0], wanted)


def test_arrays_come_back_onto_other_shardings(tmp_path):
  store = saved(tmp_path, [1])
  mesh = axes.make_mesh(data=4, expert=2)
  sharding = NamedSharding(mesh, PartitionSpec('expert', 'data'))
  replicated = NamedSharding(mesh, PartitionSpec())
  place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding if s.ndim == 2 else replicated)
  target = jax.tree.map(place, shapes(state(0)))
  found = store.restore(target, lambda meta: None, pytest.fail)
  x = found[1]['params']['units'][0]
  assert x.sharding.is_equivalent_to(sharding, 2)
  np.testing.assert_array_equal(np.asarray(x), np.asarray(state(1)['params']['units'][0]))


def cut(file):
  with file.open('r+b') as f:
    f.truncate(file.stat().st_size // 2)


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 0xFF
  file.write_bytes(content)


@pytest.mark.parametrize('damage', [cut, flip, lambda f: f.unlink(), lambda f: shutil.rmtree(f.parents[1])],
                         ids=['cut', 'flipped', 'gone', 'all gone'])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
  store = saved(tmp_path, [1, 2])
  damage(largest(tmp_path, 2))
  found, said = restore(store)
  assert_is(found, 1)
  assert len(said) == 1 and 'checkpoint 2 cannot be read' in said[0] and 'falling back to step 1' in said[0]
  store.save(2, state(2), dict(step=2), dict(vocab='v'))              # its place is free again
  store.wait()
  assert_is(restore(store)[0], 2)


@pytest.mark.parametrize('item', ['data/metadata', 'meta/metadata', 'state/_METADATA',
                                  'state/manifest.ocdbt', 'state/array_metadatas/process_0'])
def test_any_damaged_part_makes_it_fall_back(tmp_path, item):
  store = saved(tmp_path, [1, 2])
  cut(tmp_path / 'checkpoints' / '2' / item)
  assert_is(restore(store)[0], 1)


def test_reads_that_end_too_late_print_nothing(monkeypatch):
  printed = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: printed.append(unraisable.exc_value))
  checkpoint.hush()
  checkpoint.hush()                                                  # a hook around a hook would print twice
  closed = 'Event loop is closed'
  for error in (RuntimeError(closed), RuntimeError('another'), ValueError(closed)):
    sys.unraisablehook(types.SimpleNamespace(exc_value=error))
  assert [str(error) for error in printed] == ['another', closed]


def edit(path, step, item, change):
  """Changes a JSON item of a step in place."""
  file = path / 'checkpoints' / str(step) / item / 'metadata'
  value = json.loads(file.read_text())
  change(value)
  file.write_text(json.dumps(value))


@pytest.mark.parametrize('item, change', [
    ('data', lambda data: data.update(step=3)), ('meta', lambda meta: meta.update(vocab='w')),
    ('meta', lambda meta: meta.pop('digest')), ('meta', lambda meta: meta.pop('format')),
    ('meta', lambda meta: meta['arrays']['params/units/0'].__setitem__(2, 'int32')),
    ('meta', lambda meta: meta.pop('arrays'))])
def test_what_lies_beside_the_arrays_is_checked_before_it_is_believed(tmp_path, item, change):
  store = saved(tmp_path, [1, 2])
  edit(tmp_path, 2, item, change)
  def mine(meta):
    assert meta['vocab'] == 'v'
  found, said = restore(store, check=mine)
  assert_is(found, 1)
  assert len(said) == 1 and 'checkpoint 2 cannot be read' in said[0]


def test_checkpoints_of_the_format_before_open(tmp_path):
  store = saved(tmp_path, [1])
  edit(tmp_path, 1, 'meta', old(1))
  assert_is(restore(store)[0], 1)
  assert stored.Reader(tmp_path / 'checkpoints', 1).share(np.ones(2, np.float32), (2,), ...) == 2 * 0x3F800000


def old(step):
  """What makes the meta of step `step` one of format 1."""
  def change(meta):
    meta.pop('digest'), meta.pop('format')
    meta['arrays'] = checksum.plain_sums(state(step))
  return change


@pytest.mark.parametrize('damage', [
    lambda meta: meta.update(vocab='w'), lambda meta: meta['arrays'].update(other=[[2], 0]),
    lambda meta: meta['arrays']['params/units/0'].__setitem__(0, [64, 65])])
def test_damaged_meta_without_a_digest_falls_back(tmp_path, damage):
  """Such a step may as well be of something else, which is believed where the one before is, too."""
  store = saved(tmp_path, [1, 2])
  for step in (1, 2):
    edit(tmp_path, step, 'meta', old(step))
  edit(tmp_path, 2, 'meta', damage)
  def mine(meta):
    if meta['vocab'] != 'v':
      raise errors.UserError('another vocabulary')
  found, said = restore(store, check=mine)
  assert_is(found, 1)
  assert len(said) == 1 and 'checkpoint 2 cannot be read' in said[0]
  assert (tmp_path / 'unreadable' / '2').is_dir()


def test_steps_without_a_digest_that_are_all_of_something_else_stay(tmp_path):
  store = saved(tmp_path, [1, 2])
  for step in (1, 2):
    edit(tmp_path, step, 'meta', old(step))
  with pytest.raises(errors.UserError, match=r'params/units/0 is \(64, 64\) in it and \(64, 32\)'):
    restore(store, state(0, (WORDS, 32)))
  assert store.steps() == [1, 2]


def no_index(folder):
  """Removes the files of keys and small values."""
  for file in folder.rglob('d/*'):
    file.unlink()


def no_part(folder):
  """Takes the only part of the large array out of the database."""
  store = dict(driver='ocdbt', base=dict(driver='file', path=f'{folder}/'))
  ts.KvStore.open(store).result().write('params.units.0/0.0', None).result()


@pytest.mark.parametrize('damage', [no_index, no_part, shutil.rmtree, lambda f: shutil.rmtree(f.parent)])
def test_a_save_counts_when_it_can_be_opened_again(tmp_path, damage):
  store = saved(tmp_path, [1])
  store.save(2, state(2), dict(step=2), dict(vocab='v'))
  store._manager.wait_until_finished()
  damage(tmp_path / 'checkpoints' / '2' / 'state')
  with pytest.raises(errors.UserError, match=LOST):
    store.wait()


def test_one_pass_over_the_state_finds_what_is_not_finite_and_the_checksums(tmp_path, monkeypatch):
  passes, of_all = [], checksum._of_all
  monkeypatch.setattr(checksum, '_of_all', lambda work, state: passes.append(work) or of_all(work, state))
  store = saved(tmp_path, [1])
  assert len(passes) == 1
  tree = state(2)
  assert checksum.examined(tree) == (checksum.inventory(tree), None)
  tree['params']['units'][0] = tree['params']['units'][0].at[3, 3].set(jnp.inf)
  with pytest.raises(errors.UserError, match='step 2 was not saved: params/units/0 is not finite'):
    store.save(2, tree, {}, {})


def test_the_only_other_step_goes_when_the_new_one_was_seen_whole(tmp_path):
  store = saved(tmp_path, [1], keep=1)
  store.save(2, state(2), dict(step=2), dict(vocab='v'))
  store._manager.wait_until_finished()
  no_part(tmp_path / 'checkpoints' / '2' / 'state')
  with pytest.raises(errors.UserError, match=LOST):
    store.wait()
  assert_is(restore(store)[0], 1)
  store.save(2, state(2), dict(step=2), dict(vocab='v'))              # its place is free again
  store.close()
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'2'}


@pytest.mark.parametrize('name', [
    'a[1]b', '**', '[!a]', 'q?', '{m}', 'back\\', 'back\\slash', 'gs:', '~', '#%20', 'new\nline',
    os.fsdecode(b'\xff')])
def test_folders_of_any_legal_name(tmp_path, name):
  (tmp_path / 'a1b').mkdir()             # what a pattern would lead to
  store = saved(tmp_path / name, [1, 2, 3], keep=2)
  assert store.steps() == [2, 3]
  cut(largest(tmp_path / name, 3))
  assert_is(restore(store)[0], 2)
  assert (tmp_path / name / 'unreadable' / '3').is_dir()
  at, found, _ = store.part(dict(params=shapes(state(0))['params']), lambda meta: None)
  assert at == 2 and list(found) == ['params/units/0']
  store.close()
  assert {p.name for p in tmp_path.iterdir()} == {'a1b', name}


def test_checksums_see_places_and_shardings_change_nothing():
  x = np.asarray(jax.random.normal(jax.random.key(0), (8, 6)), np.float32)
  other = x.copy()
  other[0, 0], other[5, 3] = x[5, 3], x[0, 0]
  total = lambda x: checksum.inventory(dict(x=jnp.asarray(x)))['x'][1]
  assert total(other) != total(x)
  half = jnp.asarray(x, jnp.bfloat16)
  assert total(half.at[0, 0].set(half[5, 3]).at[5, 3].set(half[0, 0])) != total(half)
  mesh = axes.make_mesh(data=4, expert=2)
  with jax.set_mesh(mesh):
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec('expert', None)))
  assert total(x) == checksum.inventory(dict(x=split))['x'][1] == sum(
      checksum.part(x[i, 2 * j:2 * j + 2], x.shape, (i, slice(2 * j, 2 * j + 2)))
      for i in range(8) for j in range(3)) % 2**32


@pytest.mark.parametrize('found', [checksum.examined, checksum.not_finite, checksum.plain_sums])
def test_here_and_on_devices_the_same_is_found(found, monkeypatch):
  mesh = axes.make_mesh(data=4, expert=2)
  split = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  x = jax.random.normal(jax.random.key(0), (8, 6))
  tree = dict(x=split(x, None, 'expert'), half=split(x.astype('bfloat16').at[7, 5].set(jnp.nan), 'data'),
              step=split(jnp.int32(3)), seen=split(x > 0, ('data', 'expert')), key=split(jax.random.key(1)))
  with jax.set_mesh(mesh), monkeypatch.context() as patch:
    patch.setattr(checksum, '_is_here', lambda x: False)
    devices = found(tree)
  compilations = checksum._compiled.cache_info().misses
  assert found(tree) == devices
  assert checksum._compiled.cache_info().misses == compilations


def test_a_reader_moves_nothing(tmp_path):
  saved(tmp_path, [1, 2])
  cut(largest(tmp_path, 2))
  (tmp_path / 'checkpoints' / '3.orbax-checkpoint-tmp').mkdir()
  store = checkpoint.Checkpoints(tmp_path / 'checkpoints', read_only=True)
  assert_is(restore(store)[0], 1)
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'1', '2', '3.orbax-checkpoint-tmp'}


def test_when_none_can_be_read_it_says_so(tmp_path):
  store = saved(tmp_path, [1])
  cut(largest(tmp_path, 1))
  with pytest.raises(errors.UserError, match='no checkpoint in .* can be read'):
    restore(store)


def test_other_shapes_and_other_vocabularies_are_user_errors_not_damage(tmp_path):
  store = saved(tmp_path, [1, 2])
  with pytest.raises(errors.UserError, match=r'params/units/0 is \(64, 64\) in it and \(64, 32\)'):
    restore(store, state(0, (WORDS, 32)))
  def other(meta):
    raise errors.UserError(f'vocabulary {meta["vocab"]}')
  with pytest.raises(errors.UserError, match='vocabulary v'):
    restore(store, check=other)
  assert store.steps() == [1, 2]


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
  store = saved(tmp_path, [1])
  monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=100))
  with pytest.raises(errors.UserError, match='no space left on device: .*step 2 .*intact: step 1'):
    store.save(2, state(2), dict(step=2), dict(vocab='v'))
  assert_is(restore(store)[0], 1)


@pytest.mark.parametrize('async_save', [True, False])
def test_a_disk_that_fills_up_while_writing_loses_nothing_saved(tmp_path, monkeypatch, async_save):
  store = saved(tmp_path, [1], keep=1, async_save=async_save)
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')
  with monkeypatch.context() as patch:
    patch.setattr('os.rename', full)
    with pytest.raises(errors.UserError, match='no space left on device: .*intact: step 1'):
      store.save(2, state(2), dict(step=2), dict(vocab='v'))
      store.wait()
  again = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  assert_is(restore(again)[0], 1)
