"""The attention-free language model: the future leaks nowhere, invariance, active FLOPs."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import tiny

from stmoe import lookup
from stmoe import router_state as state
from stmoe.analysis import flops
from stmoe.configs import common
from stmoe.data.text import pack
from stmoe.errors import UserError
from stmoe.surgery import layout

N, D, F, E, PREFIX = 10, 8, 12, 3, 2                                 # PREFIX = ceil(0.2 * N)
GMLP = dict(layer='gmlp', length=N, d_ff=F)
MIX = dict(name='moe', router=dict(name='smlp_deterministic', num_experts=E), experts=dict(name='feature'))
PARTIAL = dict(name='partial_prediction', num_experts=E, allow_causal=True)
BLOCKS = dict(
    g=GMLP, s=GMLP | dict(inner=MIX), p=GMLP | dict(inner=MIX | dict(router=PARTIAL)),
    b=GMLP | dict(inner=dict(name='spatial', causal=False, allow_causal=True)),
    t=dict(layer='shuffled', norm=False, inner=dict(
        name='moe', experts=dict(name='residual', d_ff=F),
        router=dict(name='base', num_experts=2, allow_causal=True))))


@functools.cache
def build(*layers, sequences=1, **fields):
  """Returns (graphdef, params) of a model whose weights are all drawn large enough to be seen."""
  blocks = {k: b | (dict(sequences=sequences) if b['layer'] == 'gmlp' else {}) for k, b in BLOCKS.items()}
  fields = dict(name='mlp_lm', vocab_size=tiny.VOCAB, d_model=D, layers=layers, blocks=blocks, **fields)
  made = nnx.eval_shape(lambda: lookup.recipe('model', fields)(rngs=nnx.Rngs(0)))
  graphdef, params, rest = nnx.split(made, nnx.Param, state.RouterState)
  assert not rest
  rng = np.random.default_rng(0)
  draw = lambda a: (rng.normal(size=a.shape) / np.sqrt(a.shape[-2:][0])).astype(np.float32)
  return graphdef, jax.tree.map(draw, nnx.to_pure_dict(params))


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, batch):
  return nnx.merge(graphdef, params, {})(batch)[0]


def leaks(*layers):
  """bool[N,N]: whether changing the input at position t (row) changes the logits at position m."""
  batch = tiny.batch('lm', N + 1, N)
  tokens = np.tile(np.asarray(batch['decoder_input_tokens'][:1]), (N + 1, 1))
  tokens[np.arange(N), np.arange(N)] += 1                            # the last row is as it was
  logits = np.asarray(forward(*build(*layers), batch | dict(decoder_input_tokens=tokens % tiny.VOCAB)))
  return (logits[:N] != logits[N]).any(axis=-1)


EARLIER = np.tri(N, k=-1, dtype=bool)                                # m < t


def test_the_future_changes_no_earlier_logit():
  """Dense gMLP, deterministic sMoE, tMoE in evaluation."""
  found = leaks(('gst', 2))
  assert not found[EARLIER].any() and found[~EARLIER].all()


def test_a_bidirectional_unit_leaks():
  found = leaks(('gb', 1))
  assert found[EARLIER].all()


def test_partial_prediction_leaks_nothing_into_what_is_scored():
  found = leaks(('gpt', 2))
  scored = pack.empty(dict(decoder=N), 1)
  pack.fill(scored, 0, [dict(decoder=np.ones(N, int))], unscored=PREFIX)
  scored = scored['decoder_loss_weights'][0].astype(bool)
  assert scored.tolist() == [False] * PREFIX + [True] * (N - PREFIX)
  assert not (found & EARLIER)[:, scored].any()
  assert found[1, 0]                                                 # within the prefix it does
  assert not found[PREFIX:, :PREFIX].any() and found[~EARLIER].all()


def test_partial_prediction_is_refused_without_the_flag(monkeypatch):
  monkeypatch.setitem(BLOCKS, 'q', GMLP | dict(inner=MIX | dict(router=PARTIAL | dict(allow_causal=False))))
  with pytest.raises(UserError, match='causal stack; nearest: data.loss_from=0.2 with allow_causal=True'):
    leaks(('q', 1))


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(graphdef, params, batch, tokens, count):
  """Cross-entropy over `count`, plus the router losses summed over layers, and its gradient."""
  def loss(params):
    logits, aux = nnx.merge(graphdef, params, {})(batch, train=True, tokens=tokens)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['decoder_target_tokens'])
    routers = sum(0.1 * value for a in aux.values() for value in a.losses.values())
    return jnp.sum(nll * batch['decoder_loss_weights']) / count + routers
  return jax.value_and_grad(loss)(params)


MODEL = functools.partial(build, ('p', 2), sequences=2)


def run(batch, made=None, parts=1):
  graphdef, params = made or MODEL()
  count = batch['decoder_loss_weights'].sum() / jnp.float32(parts)
  size = len(batch['decoder_target_tokens']) // parts
  results = [value_and_grad(graphdef, params, {k: a[i * size:(i + 1) * size] for k, a in batch.items()},
                            dict(decoder=count), count) for i in range(parts)]
  return jax.tree.map(lambda *leaves: sum(leaves) / parts, *results)


def rows(length=8, real=((8,), (3,), (5,), (8,))):
  return tiny.batch('lm', 4, length, real=real)


plain = functools.cache(lambda: run(rows()))


@pytest.mark.slow
def test_scan_and_loop_are_equal():
  loss, grads = run(rows(), (MODEL(scan_layers=False)[0], layout.unroll(MODEL()[1])))
  tiny.assert_equal((loss, layout.roll(grads)), plain())


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
  tiny.assert_equal(run(rows(), MODEL(remat='full')), plain())


@pytest.mark.slow
def test_microbatches_change_nothing():
  tiny.assert_equal(run(rows(), parts=2), plain())


@pytest.mark.slow
def test_empty_rows_change_nothing():
  half = {key: a[:2] for key, a in rows().items()}
  tiny.assert_equal(run({key: jnp.pad(a, ((0, 2), (0, 0))) for key, a in half.items()}), run(half))


@pytest.mark.slow
def test_packing_changes_nothing():
  apart = rows(real=4)
  packed = {key: a.reshape(2, 2, 8)[..., :4].reshape(2, 8) for key, a in apart.items()}
  packed['decoder_segment_ids'] += np.arange(8) >= 4
  tiny.assert_equal(run(packed), run(apart))


def test_gradients_reach_every_parameter():
  assert not [jax.tree_util.keystr(at) for at, g in jax.tree.leaves_with_path(plain()[1]) if not jnp.any(g)]


def test_active_flops_by_hand():
  """A spatial matrix is passed by the channels of a sequence, whatever the number of heads or experts."""
  def cost(letters):
    blocks = dict(BLOCKS, h=GMLP | dict(inner=dict(name='spatial', heads=E)))
    cfg = ml_collections.ConfigDict(dict(data=common.data('stdlib', N), blocks=blocks, loss={}, model=dict(
        name='mlp_lm', vocab_size=tiny.VOCAB, d_model=D, layers=((letters, 2),))))
    return flops.active_per_token(cfg)['forward_per_row']
  half = F // 2
  head = 2 * N * D * tiny.VOCAB
  block = 2 * N * D * F + 2 * half * N * N + 2 * N * half * D        # in, channels x N x N, out
  assert cost('g') == cost('h') == cost('s') == head + 2 * block
  assert cost('p') == head + 2 * (block + 2 * E * PREFIX * E)        # E chunks, P prefix positions, E logits
  assert cost('t') == head + 2 * (2 * N * (2 * D * F) + 2 * N * D * 2)              # a router of two experts
