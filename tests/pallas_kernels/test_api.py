"""Without a target, every operation is that of the platform a program is lowered for."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.combine import api as combine
from pallas_kernels.combine import reference as combine_reference
from pallas_kernels.gmm import api as gmm
from pallas_kernels.gmm import reference as gmm_reference
from pallas_kernels.route import api as route
from pallas_kernels.route import reference as route_reference
from pallas_kernels.tgmm import api as tgmm
from pallas_kernels.tgmm import reference as tgmm_reference
from tests.pallas_kernels import agree

X, DY, W = agree.normal(0, (32, 16)), agree.normal(1, (32, 24)), agree.normal(2, (3, 16, 24))
SIZES = jnp.array([20, 0, 10], jnp.int32)
ONES = jnp.ones((16, 2), jnp.float32)
LIST = jax.random.randint(jax.random.key(3), (32,), 0, 32)
AT = jnp.arange(32, dtype=jnp.int32).reshape(16, 2) - 1
CALLS = {
    'gmm': (lambda x, w, sizes: gmm.gmm(x, w, sizes), gmm_reference.gmm, (X, W, SIZES)),
    'gmm_transposed': (lambda x, w, sizes: gmm.gmm(x, w, sizes, transposed=True),
                       lambda *args: gmm_reference.gmm(*args, transposed=True), (DY, W, SIZES)),
    'gmm_listed': (lambda x, w, sizes, token: gmm.gmm(x, w, sizes, token),
                   lambda x, w, sizes, token: gmm_reference.gmm(x[token], w, sizes), (X, W, SIZES, LIST)),
    'tgmm_listed': (lambda x, dy, sizes, token: tgmm.tgmm(x, dy, sizes, token),
                    lambda x, dy, sizes, token: tgmm_reference.tgmm(x[token], dy, sizes),
                    (X[:5], DY, SIZES, LIST % 5)),
    'tgmm_dy_listed': (lambda x, dy, sizes, token: tgmm.tgmm(x, dy, sizes, dy_token=token),
                       lambda x, dy, sizes, token: tgmm_reference.tgmm(x, dy[token], sizes),
                       (X, DY[:5], SIZES, LIST % 5)),
    'tgmm': (lambda *args: tgmm.tgmm(*args), tgmm_reference.tgmm, (X, DY, SIZES)),
    'combine': (lambda *args: combine.combine(*args), combine_reference.combine, (X, AT, ONES)),
    'combine_unweighted': (lambda *args: combine.combine(*args), combine_reference.combine, (X, AT)),
    'route': (lambda x: route.route(x, 2), lambda x: route_reference.route(x, 2), (X,)),
}


@pytest.mark.parametrize('name', CALLS)
@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_here_it_is_what_cpus_run(name, wrap):
  f, reference, args = CALLS[name]
  rows = 30 if name.startswith('gmm') else None                      # the last two belong to nobody
  for got, want in zip(jax.tree.leaves(wrap(f)(*args)), jax.tree.leaves(reference(*args))):
    agree.close(got.astype(jnp.float32), want.astype(jnp.float32), rows)


@pytest.mark.parametrize('name', CALLS)
@pytest.mark.parametrize('platform, kernel', [('cpu', None), ('tpu', 'tpu_custom_call'), ('cuda', 'triton')])
def test_other_platforms_get_their_kernel(name, platform, kernel):
  f, _, args = CALLS[name]
  # From JAX 0.11 on, Triton must be told of a GPU that is not there.
  h100 = jax.sharding.AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu') if platform == 'cuda' else None
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=h100)):
    text = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
  assert {word for word in ('tpu_custom_call', 'triton') if word in text} == ({kernel} - {None})
