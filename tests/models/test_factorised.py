"""Models of cut dense layers: one loss scanned, in microbatches and padded; decoded as the whole."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from stmoe.surgery import layout

KEY = jax.random.key(3, impl='unsafe_rbg')
REAL = [[8], [5], [8], [3]]
SPARSE = dict(d_ff=8, executor='einsum')
BESIDE = dict(around=dict(name='factor_llm'))
BLOCKS = dict(
    F=dict(SPARSE, layer='factor_llm', num_experts=4, activation='gelu', gated=False, **BESIDE),
    D=dict(layer='dense', d_ff=8, **BESIDE),
    R=dict(SPARSE, layer='read_me', num_experts=3, vocab_size=tiny.VOCAB, width=4, heads=0))

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', params=[(('FD', 2),), (('dR', 2),)], ids=['factor_llm', 'read_me'])
def name(request):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tiny, 'BLOCKS', tiny.BLOCKS | BLOCKS)
    patch.setitem(tiny.MODELS, request.param[0][0], dict(name='lm', layers=request.param, **tiny.SHAPES))
    yield request.param[0][0]


@pytest.fixture(scope='module')
def whole(name):
  return tiny.run(name, tiny.build(name), tiny.batch(name, 4, 8, real=REAL), KEY)


def test_the_loss_does_not_depend_on_how_it_is_computed(name, whole):
  batch = tiny.batch(name, 4, 8, real=REAL)
  unrolled = tiny.build(name, scan_layers=False)[0], *map(layout.unroll, tiny.build(name)[1:])
  loss, grads = tiny.run(name, unrolled, batch, KEY)
  tiny.assert_equal((loss, layout.roll(grads)), whole)
  tiny.assert_equal(tiny.run(name, tiny.build(name), batch, KEY, parts=2), whole)
  padded = {key: jnp.pad(array, ((0, 0), (0, 4))) for key, array in batch.items()}
  tiny.assert_equal(tiny.run(name, tiny.build(name), padded, KEY), whole)


def test_decoding_is_what_the_whole_text_gives(name):
  model, batch = nnx.merge(*tiny.build(name)), tiny.batch(name, 2, 6)
  logits = jax.jit(lambda model, batch: model(batch, alone=True)[0])(model, batch)
  first, cache = model.begin({key: array[:, :4] for key, array in batch.items()}, 2)
  second, _ = model.step(batch['decoder_input_tokens'][:, 4], jnp.ones(2, bool), cache)
  np.testing.assert_allclose(first, logits[:, 3], atol=1e-5)
  np.testing.assert_allclose(second, logits[:, 4], atol=1e-5)
