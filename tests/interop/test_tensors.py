"""Files and tables alone: several files, other dtypes, blocks of rows, patterns of layers."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as theirs

from stmoe import errors
from stmoe.checkpoints import checkpoint
from stmoe.derive import convert
from stmoe.derive import pieces
from stmoe.interop import decoder
from stmoe.interop import fields
from stmoe.interop import rules
from stmoe.interop import tensors as files
from stmoe.interop.families import switch_transformers
from stmoe.runs import directory as rundir
from stmoe.train import state as states
from tests.interop import runs

CASES = pathlib.Path(__file__).resolve().parent.parent / 'data' / 'checkpoints'
CASE = CASES / 'mixtral_window_pad'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'run'
  convert.read(CASE, path)
  return path


def test_several_files_with_an_index_read_as_one(run, tmp_path):
  convert.write(run, tmp_path / 'out', most=50_000)
  made, old = files.tensors(tmp_path / 'out'), files.tensors(CASE)
  assert len({t.file for t in made.values()}) > 3
  assert all(files.equal(made[name], t) for name, t in old.items()) and len(made) == len(old)
  convert.read(tmp_path / 'out', tmp_path / 'again')
  convert.write(tmp_path / 'again', tmp_path / 'whole')
  assert all(files.equal(files.tensors(tmp_path / 'whole')[name], t) for name, t in old.items())


def test_bfloat16_comes_back_as_it_was(run, tmp_path):
  convert.write(run, tmp_path / 'half', dtype='BF16')
  half = files.tensors(tmp_path / 'half')
  for name, t in files.tensors(CASE).items():
    assert half[name].dtype == 'BF16'
    np.testing.assert_array_equal(half[name].read(), t.read().astype(ml_dtypes.bfloat16))
  convert.read(tmp_path / 'half', tmp_path / 'run')
  convert.write(tmp_path / 'run', tmp_path / 'out')
  assert all(files.equal(t, half[name]) for name, t in files.tensors(tmp_path / 'out').items())


def test_parameters_of_two_bytes_compute_what_those_of_four_do(run, tmp_path):
  convert.write(run, tmp_path / 'half', dtype='BF16')
  narrow = convert.read(tmp_path / 'half', tmp_path / 'narrow')
  wide = convert.read(tmp_path / 'half', tmp_path / 'wide', dtype='F32')
  rounded, said = tmp_path / 'rounded', []
  convert.read(CASE, rounded, dtype='BF16', say=said.append)
  assert said[-1].startswith('rounded to bfloat16: 39 tensors')
  routers = 2 * 32 * 4                                               # stay float32
  assert (narrow['bytes'], wide['bytes']) == (2 * 53664 + 2 * routers, 4 * 53664)
  inputs = runs.row('decoder', np.arange(24).reshape(2, 12))
  outputs = []
  for path, dtype in ((tmp_path / 'wide', 'float32'), (tmp_path / 'narrow', 'bfloat16'),
                      (rounded, 'bfloat16')):
    _, model = runs.load(path)
    assert (model.embed.table.dtype, model.decoder.segments[0].blocks[0].layer.router.w.dtype) == (
        dtype, 'float32')
    outputs.append(np.asarray(jax.jit(lambda m: m(inputs)[0])(model)))
  np.testing.assert_array_equal(outputs[0], outputs[1])
  assert outputs[1].std() > 0.1 and not np.array_equal(outputs[1], np.asarray(jax.jit(
      lambda m: m(inputs)[0])(runs.load(run)[1])))
  convert.write(tmp_path / 'narrow', tmp_path / 'out')
  assert all(files.equal(t, files.tensors(tmp_path / 'half')[name])
             for name, t in files.tensors(tmp_path / 'out').items())


def test_checkpoints_are_read_in_the_dtype_that_is_asked_for(run, tmp_path):
  """So a run of two bytes a parameter is fine-tuned with four, and any run is evaluated with two."""
  convert.write(run, tmp_path / 'half', dtype='BF16')
  convert.read(tmp_path / 'half', tmp_path / 'run')
  stored, other = rundir.load(tmp_path / 'run'), rundir.load(tmp_path / 'run')
  del other.model.param_dtype
  tables = []
  for cfg in (stored, other):
    with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
      plan = states.blueprint(cfg, mesh)
      saved = checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints', read_only=True)
      _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
      _, parts, _ = saved.part(dict(params=plan.shapes['params']), lambda meta: None)
      saved.close()
    tables.append(state['params']['embed']['table'])
    np.testing.assert_array_equal(parts['params/embed/table'], tables[-1])
  assert [str(table.dtype) for table in tables] == ['bfloat16', 'float32']
  np.testing.assert_array_equal(*(np.asarray(table, np.float32) for table in tables))


def test_blocks_of_two_bytes_are_files_of_their_bytes(run, tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, 'BLOCK', 3000)
  convert.write(run, tmp_path / 'half', dtype='BF16')
  convert.read(tmp_path / 'half', tmp_path / 'run')
  convert.write(tmp_path / 'run', tmp_path / 'out')
  half = files.tensors(tmp_path / 'half')
  assert all(files.equal(t, half[name]) for name, t in files.tensors(tmp_path / 'out').items())
  name = 'model.layers.1.block_sparse_moe.experts.2.w2.weight'
  chunk, = (tmp_path / 'run').rglob('*.layer.experts.wo/1.2.0.0')    # layer, expert, rows, columns
  columns = half[name].read()[:len(np.fromfile(chunk, np.uint16)) // half[name].shape[1]]
  assert chunk.read_bytes() == np.ascontiguousarray(columns.T).tobytes()
  whole = chunk.read_bytes()
  for changed, said in ((whole[:-2], 'cannot be read'), (whole[::-1], 'not what was saved')):
    chunk.write_bytes(changed)
    with pytest.raises(errors.UserError, match=said):
      convert.write(tmp_path / 'run', tmp_path / 'broken')


def test_large_arrays_in_blocks_are_the_same_arrays(run, tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, 'BLOCK', 3000)                         # a few rows of the smallest tensors
  convert.read(CASE, tmp_path / 'run')
  state, wi = tmp_path / 'run' / 'checkpoints' / '0' / 'state', 'decoder.segments.0.blocks.0.layer.experts.wi'
  chunks = list((state / f'params.{wi}').iterdir())
  assert len(chunks) > 2 * 4                                         # layers x experts
  (_, a), (_, b) = runs.load(run), runs.load(tmp_path / 'run')
  np.testing.assert_array_equal(a.decoder.segments[0].blocks[0].layer.experts.wi[...],
                                b.decoder.segments[0].blocks[0].layer.experts.wi[...])
  convert.write(tmp_path / 'run', tmp_path / 'out')
  assert all(files.equal(files.tensors(tmp_path / 'out')[name], t) for name, t in files.tensors(CASE).items())


def test_of_several_dtypes_the_wide_ones_are_aligned(tmp_path):
  made = files.create(tmp_path, {'a': ('BF16', (3,)), 'b': ('F32', (2, 2)), 'c': ('F32', ())}, 10**6)
  for name, value in (('a', [1, 2, 3]), ('b', [[4, 5], [6, 7]]), ('c', 8)):
    made[name].write(0, np.asarray(value, np.float32))
  found = theirs.load_file(tmp_path / 'model.safetensors')
  assert found['b'].tolist() == [[4, 5], [6, 7]] and found['c'].tolist() == 8
  assert all(t.start % np.dtype(files.DTYPES[t.dtype]).itemsize == 0 for t in made.values())
  assert files.tensors(tmp_path)['b'].read(1).tolist() == [[6, 7]]


def test_a_checkpoint_of_the_trainer_is_exported_too(run, tmp_path):
  """Its arrays are in one database, a stacked array one chunk."""
  trained = tmp_path / 'run'
  trained.mkdir()
  shutil.copyfile(run / 'config.json', trained / 'config.json')
  cfg = rundir.load(run)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
    old = checkpoint.Checkpoints(run / 'checkpoints', read_only=True)
    _, state, data, meta = old.restore(plan.shapes, check=lambda meta: None, say=print)
    new = checkpoint.Checkpoints(trained / 'checkpoints')
    new.save(5, state, data, {key: value for key, value in meta.items() if key != 'arrays'})
    new.close()
    old.close()
  step, family, made = convert.write(trained, tmp_path / 'out', to='mixtral')
  assert (step, family) == (5, 'mixtral')
  assert all(files.equal(files.tensors(tmp_path / 'out')[name], t) for name, t in files.tensors(CASE).items())
  with pytest.raises(errors.UserError, match='say what it is to be with --to'):
    convert.write(trained, tmp_path / 'other')
  tuned = dict(method='finetune', options={}, parents=[])            # what was fine-tuned knows its start's
  (trained / 'ancestry.json').write_text(json.dumps(dict(facts=dict(family='mixtral'), lineage=[tuned])))
  assert convert.write(trained, tmp_path / 'tuned')[:2] == (5, 'mixtral')


def test_the_optimizer_starts_as_a_new_one(run):
  cfg, _ = runs.load(run)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(run / 'checkpoints', read_only=True)
    _, state, _, _ = saved.restore(plan.shapes, check=lambda meta: None, say=print)
    saved.close()
    fresh = plan.optimizer.init(state['params'])
  jax.tree.map(np.testing.assert_array_equal, state['opt_state'], fresh)
  assert int(state['step']) == 0


def test_an_unrolled_model_has_the_same_places(run, tmp_path):
  convert.read(CASE, tmp_path / 'run', ['model.scan_layers=false'])
  convert.write(tmp_path / 'run', tmp_path / 'out')
  assert all(files.equal(files.tensors(tmp_path / 'out')[name], t) for name, t in files.tensors(CASE).items())


def test_patterns():
  for letters in ('d', 'dddd', 'dmdmdm', 'dmmm', 'mdd', 'dmmdmm'):
    assert rules.letters(rules.pattern(letters)) == letters
  assert rules.pattern('dmdm') == (('dm', 2),) and rules.pattern('dmmm') == (('d', 1), ('m', 3))


def test_numbers_of_blocks_count_on_across_segments_and_state_is_numbered_like_parameters():
  leaf = lambda *shape: np.zeros(shape, np.float32)
  units = {0: {'blocks': {0: {'w': leaf(1, 5)}}},
           1: {'blocks': {0: {'w': leaf(2, 5)}, 1: {'w': leaf(2, 3, 5)}}}}
  shapes = dict(params={'decoder': {'segments': units}},
                router_state={'decoder': {'segments': {1: {'blocks': {1: {'b': leaf(2, 4)}}}}}})
  table = [('decoder/layers/{i}/w[{e}]', 'e{i}.{e}'), ('decoder/layers/{i}/b', 'b{i}')]
  with pytest.raises(errors.UserError, match='in no checkpoint of this family: decoder/layers/0/w'):
    rules.places(shapes, table[1:])
  found = rules.places(dict(shapes, params={'decoder': {'segments': {
      0: units[0], 1: {'blocks': {0: {'u': leaf(2, 5)}, 1: {'w': leaf(2, 3, 5)}}}}}}),
                       [('decoder/layers/0/w', 'first'), ('decoder/layers/{i}/u', 'u{i}'), *table])
  assert [p.tensor for p in found] == ['first', 'u1', 'u3', 'e2.0', 'e2.1', 'e2.2', 'e4.0', 'e4.1', 'e4.2',
                                       'b2', 'b4']
  assert found[6].index == (1, 0) and found[6].shape == (5,)


STACKED = {                              # rules of parts -> the same parts as numpy takes them
    '[{e},0/2]': (rules.LINEAR, lambda x, e: x[e, :3].T),
    '[{e},1/2]': (rules.LINEAR, lambda x, e: x[e, 3:].T),
    '[{e},:,0::2]': (rules.KEEP, lambda x, e: x[e, :, ::2]),
    '[{e},:,1::2]': (rules.KEEP, lambda x, e: x[e, :, 1::2]),
    '[{e},2::3]': (rules.KEEP, lambda x, e: x[e, 2::3]),
    '[{e}]': (rules.LINEAR, lambda x, e: x[e].T), '[0]': (rules.KEEP, lambda x, e: x[0])}


@pytest.mark.parametrize('stacked', [True, False])
def test_parts_of_a_layer_that_are_called_segments_are_no_blocks(stacked):
  array = jax.ShapeDtypeStruct((2, 3) if stacked else (3,), 'float32')
  unit = dict(blocks={0: dict(layer=dict(segments={0: dict(experts=array)}))})
  model = dict(decoder=dict(segments={0: unit if stacked else {0: unit, 1: unit}}))
  name = 'decoder/layers/{i}/layer/segments/0/experts'
  found = rules.places(dict(params=model), [(name, 'bank.{i}')])
  assert [(place.tensor, place.shape) for place in found] == [('bank.0', (3,)), ('bank.1', (3,))]
  with pytest.raises(errors.UserError, match='2 arrays of the model are in no .*decoder/layers/0/layer/seg'):
    rules.places(dict(params=model), [])


@pytest.mark.parametrize('part', STACKED)
def test_parts_of_stacked_tensors(part, tmp_path):
  """Read and written by rows, beside what is there already."""
  op, taken = STACKED[part]
  x = np.arange(1, 49, dtype=np.float32).reshape((1, 6, 8) if part == '[0]' else (2, 6, 4))
  ours = np.stack([taken(x, e) for e in range(len(x))])
  shape, name = (1, *(ours[0].shape if part == '[0]' else ours.shape)), 'w' if part == '[0]' else 'w[{e}]'
  tree = dict(params=dict(s=dict(segments={0: dict(blocks={0: dict(w=np.zeros(shape))})})))
  found = rules.places(tree, [('s/layers/{i}/' + name, 'stacked' + part, op)])
  assert [place.index for place in found] == ([(0,)] if part == '[0]' else [(0, 0), (0, 1)])
  rules.check(found, dict(stacked=x.shape))
  with pytest.raises(errors.UserError, match=r'stacked is \[2, 3\], not \['):
    rules.check(found, dict(stacked=(2, 3)))
  made = files.create(tmp_path, dict(before=('F32', (3,)), stacked=('BF16', x.shape)), 10**6)['stacked']
  made.write(0, -x)
  for place, mine in zip(found, ours):
    one, rows = made.part(place.cut), mine.T if op == rules.LINEAR else mine
    assert one.shape == place.there and one.size == 2 * rows.size
    for first in range(0, len(rows), 2):
      np.testing.assert_array_equal(one.read(first, first + 2), -rows[first:first + 2])
      one.write(first, rows[first:first + 2])
    np.testing.assert_array_equal(one.read(), rows)
  np.testing.assert_array_equal(made.read(), np.where(np.isin(x, ours), x, -x))


def test_rotary_fields_of_both_spellings():
  assert decoder.rope(dict(rope_theta=5e5)) == decoder.rope(
      dict(rope_parameters=dict(rope_theta=5e5, rope_type='default'))) == (5e5, None, 1.0)
  yarn = dict(type='yarn', factor=40, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)
  base, scaling, logits = decoder.rope(dict(rope_theta=10000, rope_scaling=yarn))
  # DeepSeek-V3: cos and sin as they are, logits times (0.1 ln 40 + 1)^2.
  assert scaling == dict(name='yarn', factor=40.0, length=4096, fast=32.0, slow=1.0, size=1.0)
  assert base == 1e4 and abs(logits - 1.8739) < 1e-3


def test_an_untied_switch_model_has_its_table_three_times():
  """Otherwise transformers draws new tables for both stacks."""
  copied = lambda tied: switch_transformers.copied(dict(model=dict(tie_embeddings=tied)))
  assert copied(True) == ()
  assert copied(False) == ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
  assert set(copied(False)) <= set(switch_transformers.COPIES)


def test_differences_are_named():
  model = dict(name='lm', vocab_size=9, d_model=4, num_heads=1, head_dim=4, layers=(('m', 2),))
  block = dict(layer='moe', router=dict(name='switch', num_experts=2), experts=dict(name='mlp', d_ff=8))
  mine = dict(model=model, blocks=dict(m=block))
  other = dict(model=model | dict(layers=(('a', 1), ('b', 1)), dtype='bfloat16', norm_epsilon=1e-6),
               blocks=dict(a=block, b=block | dict(executor='blocks')))
  assert fields.differences(mine, other) == []
  block = block | dict(router=dict(name='switch', num_experts=2, min_capacity=9))
  assert fields.differences(mine, dict(model=model, blocks=dict(m=block))) == [
      'layers.00.router.min_capacity is 4, not 9', 'layers.01.router.min_capacity is 4, not 9']
