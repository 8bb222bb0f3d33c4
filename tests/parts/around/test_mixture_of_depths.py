"""Mixture-of-Depths in a language model: who passes in training and in evaluation, and what it depends on."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.parts.around import mixture_of_depths as depths
from stmoe.surgery import layout
from stmoe.train import router_losses
from tests.models import tiny

AROUND = dict(name='mixture_of_depths', share=0.5)
SPARSE = dict(layer='moe', router=dict(name='smoe', num_experts=4), experts=dict(name='mlp', d_ff=8))
LENGTH = 6


def model(block=None, **around):
  blocks = dict(d=dict(layer='dense', d_ff=8), m=(block or dict(layer='dense', d_ff=8)) | dict(
      around=AROUND | around))
  made = lookup.recipe('model', dict(tiny.SHAPES, name='lm', layers=(('dm', 2),)))(
      blocks=blocks, rngs=nnx.Rngs(0))
  depth = made.decoder.segments[0].blocks[1]
  for i, w in enumerate((depth.router_w, depth.router_predictor)):
    if w is not None:
      w[...] = jax.random.normal(jax.random.key(i), w.shape)
  return made


@jax.jit
def evaluated(model, batch):
  return model(batch)


@jax.jit
def trained(model, batch):
  return model(batch, train=True)


def test_half_of_the_tokens_pass_in_training_and_report():
  logits, aux = trained(model(), tiny.batch('lm', 2, LENGTH))
  assert aux['decoder_01.depth'].load.tolist() == [6, 6] and 'decoder_00.depth' not in aux
  losses = aux['decoder_03.depth'].losses
  assert set(losses) == {'predictor', 'membership'} and all(v > 0.1 for v in losses.values())
  assert aux['decoder_01.depth'].metrics['passed_share'] == 0.5


@pytest.mark.slow
def test_the_router_learns_from_the_outputs_and_the_predictor_from_its_loss_alone():
  batch = tiny.batch('lm', 2, LENGTH)

  def of(part):
    def value(model):
      logits, aux = trained(model, batch)
      return jnp.sum(logits ** 2) if part == 'logits' else aux['decoder_01.depth'].losses[part]
    return jax.grad(value)(model()).decoder.segments[0].blocks[1]
  assert jnp.any(of('logits').router_w[...]) and not jnp.any(of('logits').router_predictor[...])
  assert jnp.any(of('predictor').router_predictor[0]) and not jnp.any(of('predictor').router_w[...])


def test_evaluation_looks_at_no_later_token_and_training_does():
  batch = tiny.batch('lm', 2, LENGTH)
  other = batch | dict(decoder_input_tokens=batch['decoder_input_tokens'].at[:, 3:].add(1))
  for select in ('predictor', 'router'):
    made = model(select=select)
    before, after = (np.asarray(evaluated(made, b)[0]) for b in (batch, other))
    np.testing.assert_allclose(before[:, :3], after[:, :3], rtol=1e-5, atol=1e-5)
    aux = evaluated(made, batch)[1]['decoder_01.depth']
    assert 0 < aux.load[0] < 12 and all(0 < value < 1 for name, value in aux.metrics.items() if 'acc' in name)
  before, after = (np.asarray(trained(made, b)[0]) for b in (batch, other))
  assert np.abs(before - after)[:, :3].max() > 1e-3


def test_an_encoder_selects_for_a_generated_text_as_in_evaluation():
  blocks = dict(d=dict(layer='dense', d_ff=8), m=dict(layer='dense', d_ff=8, around=AROUND))
  made = lookup.recipe('model', dict(tiny.SHAPES, name='t5', encoder=(('dm', 1),), decoder=(('d', 1),)))(
      blocks=blocks, rngs=nnx.Rngs(0))
  batch = tiny.batch('t5', 2, LENGTH)
  run = jax.jit(lambda model, alone: model(batch, alone=alone), static_argnums=1)
  (logits, aux), (other, _) = run(made, False), run(made, True)
  np.testing.assert_allclose(other, logits, rtol=1e-5, atol=1e-5)
  assert aux['encoder_01.depth'].load.tolist() == [6, 6]


def test_padding_takes_no_place_and_makes_none():
  r = jnp.array([[1.0, 5.0, 9.0, 9.0, 9.0, 9.0], [1.0, 5.0, 3.0, 2.0, 9.0, 9.0], [9.0] * 6])
  mask = jnp.arange(6) < jnp.array([2, 4, 0])[:, None]
  at, live = depths.largest(r, mask, 0.5)
  assert at.shape == (3, 3) and [a[l].tolist() for a, l in zip(np.asarray(at), np.asarray(live))] == [
      [1], [1, 2], []]


# rmoe remembers over depth. The part of 7 tokens is 4: other than half.
@pytest.mark.parametrize('router, more', [('smoe', 1), pytest.param('rmoe', LENGTH, marks=pytest.mark.slow)])
def test_padding_changes_no_token_and_no_loss_inside(router, more):
  made = model(SPARSE | dict(router=dict(name=router, num_experts=4)))
  short = tiny.batch('lm', 2, LENGTH)
  long = {name: jnp.pad(a, ((0, 0), (0, more))) for name, a in short.items()}
  (logits, aux), (padded, other) = trained(made, short), trained(made, long)
  np.testing.assert_allclose(padded[:, :LENGTH], logits, rtol=1e-5, atol=1e-5)
  for name, report in aux.items():
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (report.losses, report.load),
                 (other[name].losses, other[name].load))
  assert other['decoder_01'].metrics['active_experts'] == 2


def test_experts_inside_see_the_tokens_that_pass():
  aux = trained(model(SPARSE), tiny.batch('lm', 2, LENGTH))[1]
  assert aux['decoder_01'].load.sum() == 2 * 6 and aux['decoder_01.depth'].load.tolist() == [6, 6]


def test_experts_inside_report_means_of_the_tokens_that_pass():
  made, batch = model(SPARSE), tiny.batch('lm', 2, LENGTH)
  for run in (trained, evaluated):
    aux = run(made, batch)[1]
    passed = aux['decoder_01.depth'].load[0]
    assert 0 < passed < 12 and aux['decoder_01'].metrics['active_experts'] == 2
    assert aux['decoder_01'].load.sum() == 2 * passed


@functools.cache
def whole():
  batch = tiny.batch('depth', 8, LENGTH)
  return batch, tiny.run('depth', tiny.build('depth'), batch)


@pytest.mark.slow
def test_microbatches():
  batch, want = whole()
  tiny.assert_equal(tiny.run('depth', tiny.build('depth'), batch, parts=2), want)


@pytest.mark.slow
def test_scanned_or_not_and_on_eight_devices():
  batch, want = whole()
  graphdef, _, _ = tiny.build('depth', scan_layers=False)
  params, state = (layout.unroll(part) for part in tiny.build('depth')[1:])
  loss, grads = tiny.run('depth', (graphdef, params, state), batch)
  tiny.assert_equal((loss, layout.roll(grads)), want)
  with axes.use(axes.make_mesh(2, 2, 2)):
    tiny.assert_equal(tiny.run('depth', tiny.build('depth'), batch), want)


def test_what_only_a_loss_trains_needs_its_coefficient():
  made = model(select='router')
  router_losses.check_needed(made, dict(membership=(0.01, 'mean')))
  with pytest.raises(errors.UserError, match='mixture_of_depths: losses.membership without coefficient'):
    router_losses.check_needed(made, dict(predictor=(1.0, 'mean')))


def test_a_wrong_field_is_one_line():
  with pytest.raises(errors.UserError, match="around MixtureOfDepths has no field 'shares'; nearest: share"):
    model(shares=0.5)
