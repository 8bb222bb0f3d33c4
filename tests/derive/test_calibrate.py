"""Calibration: sums are what they say, the same in other batches and on other devices, kept and sealed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import plugins
from stmoe.data import batches as pipeline
from stmoe.derive.calibration import calibrate
from stmoe.derive.calibration import items
from stmoe.derive.calibration import piecewise
from stmoe.derive.calibration import watch
from stmoe.surgery import aside
from stmoe.train import state as states
from tests.train import tiny_run

ONE = jax.devices()[:1]
NAMES = tuple(items.ITEMS)


def calibration(corpus, run, said=None, devices=ONE, batches=2, digest='abc', **changed):
  """Returns a Calibration of a model as it is made, and its plan and state."""
  router = dict(name='st_moe', num_experts=4, k=2, capacity_factor=(None, None), second_policy='all')
  changed = {'blocks.m.router': router, 'blocks.m.experts.d_ff': 6, 'blocks.d.d_ff': 8} | changed
  cfg = tiny_run.config(corpus, **changed)
  with states.on_mesh(cfg.mesh, devices) as mesh:
    plan, rng = states.blueprint(cfg, mesh), np.random.default_rng(0)
    number = lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype)
    state = {part: jax.tree.map(number, plan.shapes[part]) for part in ('params', 'router_state')}
    state = jax.device_put(state, {part: plan.shardings()[part] for part in state})
  source = pipeline.source(cfg)
  say = (lambda line: None) if said is None else said.append
  found = calibrate.Calibration(run, cfg, plan, state, digest, batches, lambda: source, say)
  return cfg, plan, state, found, devices


def collected(made, *names):
  cfg, plan, _, found, devices = made
  with states.on_mesh(cfg.mesh, devices):
    return found(*names)


@pytest.fixture(scope='module')
def whole(corpus, tmp_path_factory):
  run, said = tmp_path_factory.mktemp('run'), []
  made = calibration(corpus, run, said)
  found = collected(made, *NAMES)
  assert list(found) == ['decoder_01'] and len(said) == 1
  return made, run, found['decoder_01']


def test_sums_are_what_they_say(whole, monkeypatch):
  """By another route: the layer's own input, its router and its experts one by one."""
  made, _, found = whole
  _, plan, state, *_ = made
  x = inputs(made, monkeypatch)                                      # [T, D]
  model = plan.model(state['params'], state['router_state'])
  layer = model.decoder.by_name()['decoder_01']
  z = x @ np.float64(layer.router.w[0])                              # [T, E]
  wi, wo = (np.float64(w[0]) for w in (layer.experts.wi, layer.experts.wo))
  hidden = np.maximum(np.einsum('td,edf->etf', x, wi), 0)            # [E, T, F]
  y = np.einsum('etf,efd->etd', hidden, wo)
  probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  chosen = np.argsort(-probs, axis=1)[:, :2]
  taken = np.zeros_like(probs)
  np.put_along_axis(taken, chosen, 1, axis=1)
  gates = taken * probs / (taken * probs).sum(1, keepdims=True)
  norm = np.linalg.norm(y, axis=-1)                                  # [E, T]
  unit = y / np.maximum(norm[..., None], 1e-30)
  two = np.einsum('ti,tj->ij', taken, taken)
  # Of an expert's tokens the first int(2 / 4 * 32 * 2.0) of each batch.
  first = np.concatenate([part * (np.cumsum(part, 0) <= 32) for part in np.split(taken, 2)])
  largest = lambda a, of: np.stack([np.where(of.T[..., None] > 0, s * a, -np.inf).max(1) for s in (1, -1)])
  wanted = dict(
      first_two=two - np.diag(np.diagonal(two)), calls=[groups(made, taken[:, e]) for e in range(4)],
      own_hidden_squares=np.einsum('te,etf->ef', taken, hidden ** 2),
      own_hidden_products=np.einsum('te,etf,eth->efh', taken, hidden, hidden),
      probabilities=probs.sum(0), largest_input=np.abs(x).max(0), first_inputs=x,
      largest_inputs=largest(np.broadcast_to(np.abs(x), (4, *x.shape)), taken)[0],
      largest_hidden=largest(hidden, taken), even_hidden=largest(hidden, first),
      first_hidden=largest(hidden, np.arange(len(x))[:, None] < np.full((1, 4), lengths(made)[0])),
      load=taken.sum(0), logit_products=z.T @ z, coactivation=taken.T @ taken, tokens=len(x),
      input_squares=taken.T @ x ** 2, input_products=np.einsum('te,tc,td->ecd', taken, x, x),
      weighted_norms=(gates * norm.T).sum(0), output_sums=y.sum(1),
      output_products=np.einsum('itd,jtd->ij', y, y),
      output_cosines=np.einsum('itd,jtd->ij', unit, unit), hidden_sums=hidden.sum(1),
      chosen_cosines=[sum(unit[i, t] @ unit[j, t] for t, (i, j) in enumerate(chosen)), len(x)],
      anisotropy=len(x) * np.mean([pair_cosine(wi.transpose(0, 2, 1)), pair_cosine(wo)]),
      probability_margin=(np.sort(probs)[:, -1] - np.sort(probs)[:, -2]).sum(),
      hidden_squares=(hidden ** 2).sum(1), hidden_products=np.einsum('tf,eth->efh', hidden[0], hidden))
  assert {*wanted} == {*NAMES}
  found = found | dict(first_inputs=found['first_inputs'][found['first_inputs'].any(1)])
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-4 * np.abs(value).max(), err_msg=name)


def pair_cosine(units):
  """The mean cosine of two different vectors of units [E,F,D]."""
  unit = units.reshape(-1, units.shape[-1])
  unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
  return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean()


def groups(made, taken):
  """How many groups of tokens have a token that is `taken` f[T], in the order of `inputs`."""
  found = lengths(made)
  return sum(taken[end - length:end].any() for end, length in zip(np.cumsum(found), found))


def lengths(made):
  """The real tokens of each group, in the order of `inputs`."""
  cfg, *_ = made
  data, found = pipeline.train_iterator(cfg), []
  for _ in range(2):
    found += (next(data)['decoder_segment_ids'] > 0).sum(1).tolist()
  data.close()
  return found


def inputs(made, monkeypatch):
  """f64[T,D] what goes into the sparse layer for all real tokens of the pass."""
  cfg, plan, state, *_ = made
  monkeypatch.setitem(items.ITEMS, 'x', lambda seen: seen.x)
  call = jax.jit(lambda params, batch: watch.watched(plan.model(params, {}), ['x'])(batch)[1])
  data, rows = pipeline.train_iterator(cfg), []
  for _ in range(2):
    batch = next(data)
    x = np.float64(call(state['params'], batch)['decoder_01'].records['x'])      # [G, S, D]
    rows.append(x[batch['decoder_segment_ids'] > 0])
  data.close()
  return np.concatenate(rows)


def test_slopes_are_those_of_every_layer(corpus, tmp_path):
  """Also where the first array of a unit, here a norm's, has no slopes."""
  attention = dict(name='attention', qk_norm=1e-5)
  changed = {'model.layers': (('m', 3),), 'model.attention': attention}
  found = collected(calibration(corpus, tmp_path, batches=1, **changed), calibrate.SLOPES)
  assert {path.split('/')[2] for path in found} == {'0', '1', '2'}
  assert 'decoder/layers/2/layer/experts/wi' in found


@pytest.mark.slow
def test_slopes_are_weights_times_gradients(corpus, tmp_path):
  made = calibration(corpus, tmp_path / 'a')
  cfg, plan, state, _, _ = made
  found = collected(made, calibrate.SLOPES)
  assert {*found} == {f'decoder/layers/{path}' for path in (
      '0/attention/wk', '0/attention/wo', '0/attention/wq', '0/attention/wv', '1/attention/wk',
      '1/attention/wo', '1/attention/wq', '1/attention/wv', '1/layer/experts/wi', '1/layer/experts/wo')}

  def loss(params, batch):
    outputs, _ = plan.model(params, {})(batch, train=False)
    return plan.target.loss(outputs, batch, jnp.float32(1.0))[0]
  data, gradients = pipeline.train_iterator(cfg), jax.jit(jax.grad(loss))
  summed = jax.tree.map(np.add, *(gradients(state['params'], next(data)) for _ in range(2)))
  data.close()
  unit = lambda tree: np.float64(tree['decoder']['segments'][0]['blocks'][1]['layer']['experts']['wo'][0])
  wanted = (unit(state['params']) * unit(summed)).sum(-1)            # [E, F]
  slopes = found['decoder/layers/1/layer/experts/wo']['slopes']
  np.testing.assert_allclose(slopes, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
  smaller = collected(calibration(corpus, tmp_path / 'b', batches=4, **{'train.batch_size': 4}),
                      calibrate.SLOPES)
  np.testing.assert_allclose(smaller['decoder/layers/1/layer/experts/wo']['slopes'], slopes, rtol=1e-4,
                             atol=1e-4 * np.abs(wanted).max())


def test_batches_of_another_size_and_devices_change_nothing(corpus, whole, tmp_path):
  _, _, found = whole
  changed = {'train.batch_size': 4, 'batches': 4, 'devices': jax.devices()[:4], 'mesh.expert': 2}
  again = collected(calibration(corpus, tmp_path, **changed), *NAMES)['decoder_01']
  for name in {*NAMES} - {'even_hidden'}:                            # its limit is of a batch
    np.testing.assert_allclose(again[name], found[name], rtol=1e-5, atol=1e-5 * np.abs(found[name]).max(),
                               err_msg=name)


def test_an_expert_that_a_batch_leaves_out_is_not_looked_at_there():
  """Its own tokens may be in another batch."""
  assert items.balanced(jnp.array([[[1.0, 0.0], [1.0, 0.0]]]), 1).tolist() == [[[1, 0], [0, 0]]]


@pytest.mark.parametrize('scan, executor', [
    (True, 'gather'), (True, 'pallas'), pytest.param(False, 'gather', marks=pytest.mark.slow)])
def test_a_model_that_is_read_layer_by_layer_has_the_same_sums(scan, executor, corpus, tmp_path, monkeypatch):
  """Pieces of few arrays, which are read when they are looked at."""
  names = ('load', 'hidden_squares', 'largest_input', 'first_inputs')
  changed = {'model.layers': (('dm', 3),), 'model.scan_layers': scan, 'blocks.m.executor': executor}
  whole = collected(calibration(corpus, tmp_path / 'whole', **changed), *names)
  made = calibration(corpus, tmp_path / 'pieces', **changed)
  reads, found = [], made[3]

  def deferred(path, x):
    name = jax.tree_util.keystr(path)
    return aside.Deferred(x.shape, x.dtype, lambda at: reads.append((name, at)) or np.asarray(x)[at])
  found._arrays = jax.tree.map_with_path(deferred, found._arrays)
  monkeypatch.setattr(piecewise, 'MOST', 1 if scan else 1 << 12)
  pieces = collected(made, *names)
  assert {*pieces} == {*whole} == {'decoder_01', 'decoder_03', 'decoder_05'}
  for layer, sums in whole.items():
    for name, value in sums.items():
      np.testing.assert_allclose(pieces[layer][name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())
  of_experts = [at for name, at in reads if name.endswith("['experts']['wi']")]
  assert sorted(of_experts) == [(0,), (1,), (2,)] if scan else len(of_experts) > 2         # for both batches


def test_results_are_kept_and_sealed_under_a_key(corpus, whole, tmp_path, monkeypatch):
  _, run, found = whole
  said = []
  again = collected(calibration(corpus, run, said), *NAMES)['decoder_01']
  assert not said and all((again[name] == found[name]).all() for name in NAMES)
  folders = sorted(path.name for path in (run / 'calibration').iterdir())
  assert len(folders) == len(NAMES)
  file = next((run / 'calibration').glob('tokens-*')) / 'sums.npz'
  file.write_bytes(b'damaged')
  again = collected(calibration(corpus, run, said), 'tokens', 'load')['decoder_01']
  assert said == ['calibrating on 2 batches: tokens'] and again['tokens'] == found['tokens']
  keys = {calibration(corpus, run, **changed)[3].key(dict(step=0, data=0)) for changed in (
      {}, dict(digest='other'), dict(batches=1), {'data.length': 16}, {'blocks.m.router.k': 1})}
  assert len(keys) == 5
  for rate in ('1.0', '2.0'):              # what a router of a file of one's own does is in the file's text
    (tmp_path / 'mine.py').write_text(f'def mine(step, *, rate: float = {rate}):\n  return rate\n')
    monkeypatch.setenv(plugins.VARIABLE, '')
    plugins.add(tmp_path / 'mine.py')
    keys.add(calibration(corpus, run)[3].key(dict(step=0, data=0)))
  assert len(keys) == 7


def test_what_a_layer_does_not_have_is_one_line(corpus, tmp_path):
  for router, name, words in (
      (dict(name='hash', num_experts=4, vocab_size=264), 'logit_products', 'hash.py offers no logits'),
      (dict(name='soft_moe', num_experts=4, allow_causal=True), 'coactivation', 'mixes all tokens')):
    made = calibration(corpus, tmp_path, **{'blocks.m.router': router})
    with pytest.raises(errors.UserError, match=words):
      collected(made, name)
