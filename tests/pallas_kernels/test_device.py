"""The kernels on the accelerator of this process equal their references, with the tiles that users get.

Left out on CPUs, where nothing compiles them: JAX_PLATFORMS=cuda pytest tests/pallas_kernels/test_device.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.combine import api as combine
from pallas_kernels.gmm import api as gmm
from pallas_kernels.route import api as route
from pallas_kernels.tgmm import api as tgmm
from tests.pallas_kernels import agree

if jax.default_backend() == 'cpu':
  pytest.skip('needs a TPU or a GPU', allow_module_level=True)

# sizes, M, K, N.
SHAPES = {
    'ragged': ((70, 0, 200, 130, 1), 410, 256, 384),
    'odd widths': ((70, 0, 200, 130), 403, 100, 75),
    'one takes all': ((0, 640, 0), 640, 512, 256),
    'all empty': ((0, 0), 24, 128, 128),
    'many experts': (tuple([3, 0, 17, 8] * 16), 448, 128, 256),
    'full tiles': ((70, 0, 400, 529, 1), 1000, 384, 640),
    'large': ((1000, 24, 520, 504), 2048, 2048, 1536),
}
every = pytest.mark.parametrize('name', SHAPES)
dtypes = pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])


def host(x):
  """The numbers as NumPy has them: references compiled for the accelerator would take most of the time."""
  return np.asarray(x, np.float32)


@dtypes
@pytest.mark.parametrize('listed', [False, True])
@pytest.mark.parametrize('transposed', [False, True])
@every
def test_gmm(name, transposed, listed, dtype):
  sizes, m, k, n = SHAPES[name]
  w = agree.normal(1, (len(sizes), *((n, k) if transposed else (k, n))), dtype)
  x, rows, token = _rows(0, sizes, m, k, dtype, listed)
  got = jax.jit(functools.partial(gmm.gmm, transposed=transposed))(x, w, jnp.array(sizes), token)
  want = [part @ (one.T if transposed else one) for part, one in zip(_parts(rows, sizes), host(w))]
  agree.close(got[:sum(sizes)], np.concatenate(want))


@dtypes
@pytest.mark.parametrize('listed', [(False, False), (True, False), (False, True)])
@every
def test_tgmm(name, listed, dtype):
  sizes, m, k, n = SHAPES[name]
  x, xs, token = _rows(0, sizes, m, k, dtype, listed[0])
  dy, dys, dy_token = _rows(1, sizes, m, n, dtype, listed[1])
  got = jax.jit(tgmm.tgmm)(x, dy, jnp.array(sizes), token, dy_token)
  want = [a.T @ b for a, b in zip(_parts(xs, sizes), _parts(dys, sizes))]
  agree.close(got, np.stack(want))


def _parts(rows, sizes):
  """The rows of every expert."""
  return np.split(host(rows), np.cumsum(sizes))[:-1]


def _rows(seed, sizes, m, width, dtype, listed):
  """(what the kernel gets, the rows that are meant, their list or None); NaN in rows of nobody."""
  x = agree.normal(seed, (m, width), dtype)
  if not listed:
    return agree.beyond(x, sum(sizes)), x, None
  token = jax.random.randint(jax.random.key(2), (m,), 0, m)
  return x, x[token], token


@dtypes
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('tokens, k, width', [(100, 2, 256), (33, 8, 1000), (1, 1, 17)])
def test_combine(tokens, k, width, weighted, dtype):
  rows = agree.normal(0, (tokens * k, width), dtype)
  at = jax.random.randint(jax.random.key(1), (tokens, k), -1, tokens * k)
  weight = jax.random.uniform(jax.random.key(2), (tokens, k)) if weighted else None
  got = jax.jit(combine.combine)(rows, at, weight)
  picked = np.where(host(at)[..., None] >= 0, host(rows)[np.asarray(at)], 0)
  agree.close(got, (picked * (1 if weight is None else host(weight)[..., None])).sum(1, dtype=np.float32))


@pytest.mark.parametrize('tokens, experts, k', [(100, 64, 8), (4096, 128, 1), (7, 5, 2)])
def test_route(tokens, experts, k):
  logits = agree.normal(0, (tokens, experts))
  weight, expert, counts = jax.jit(functools.partial(route.route, k=k))(logits)
  probs = np.exp(host(logits))
  probs /= probs.sum(1, keepdims=True)
  want = np.argsort(-probs, axis=1, kind='stable')[:, :k]
  assert (np.asarray(expert) == want).all()
  np.testing.assert_allclose(weight, np.take_along_axis(probs, want, 1), rtol=1e-5)
  assert (np.asarray(counts) == np.bincount(want.reshape(-1), minlength=experts)).all()
