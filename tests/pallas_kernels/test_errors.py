"""Arguments that do not fit are named before anything is traced."""

import jax.numpy as jnp
import pytest

from pallas_kernels.combine import api as combine
from pallas_kernels.gmm import api as gmm
from pallas_kernels.route import api as route
from pallas_kernels.tgmm import api as tgmm

X, W, SIZES = jnp.ones((4, 3)), jnp.ones((2, 3, 5)), jnp.array([1, 2])
HALF = X.astype('float16')


@pytest.mark.parametrize('call, words', [
    (lambda: gmm.gmm(X, W, SIZES, transposed=True), r'w \[2, 3, 5\] is not \[E,N,K\] for x \[M,K\] \[4, 3\]'),
    (lambda: gmm.gmm(X, W.swapaxes(1, 2), SIZES), r'is not \[E,K,N\]'),
    (lambda: gmm.gmm(X, W.astype(jnp.bfloat16), SIZES), 'w is bfloat16, x is float32'),
    (lambda: gmm.gmm(HALF, W.astype('float16'), SIZES), 'x is float16; nearest: float32, bfloat16'),
    (lambda: tgmm.tgmm(HALF, HALF, SIZES), 'x is float16; nearest: float32, bfloat16'),
    (lambda: combine.combine(HALF, SIZES[None]), 'rows is float16; nearest: float32, bfloat16'),
    (lambda: gmm.gmm(X, W, SIZES[:1]), r'sizes int32\[1\] is not int32\[2\]'),
    (lambda: gmm.gmm(X, W, SIZES, target='npu'), "target 'npu'"),
    (lambda: gmm.gmm(X, W, SIZES, SIZES[None]), r'token int32\[1, 2\] is not int32\[M\]'),
    (lambda: tgmm.tgmm(X, X[:2], SIZES), r'dy has 2 rows, x has 4: x \[4, 3\], dy \[2, 3\]'),
    (lambda: tgmm.tgmm(X, X, SIZES, dy_token=SIZES), r'dy has 2 rows, x has 4'),
    (lambda: tgmm.tgmm(X, X, SIZES, SIZES * 1.), r'token float32\[2\] is not int32\[M\]'),
    (lambda: tgmm.tgmm(X, X.astype(jnp.bfloat16), SIZES), 'dy is bfloat16'),
    (lambda: tgmm.tgmm(X, X, SIZES * 1.), r'sizes float32\[2\] is not int32'),
    (lambda: combine.combine(X, SIZES), r'at int32\[2\] is not int32\[T,k\]'),
    (lambda: combine.combine(X[0], SIZES), r'rows \[3\] is not \[M,D\]'),
    (lambda: combine.combine(X, SIZES[None], jnp.ones(2)), r'weight float32\[2\] is not float32\[1, 2\]'),
    (lambda: route.route(X, 4), r'k 4 is not in 1..3, the number of experts; nearest: 3'),
    (lambda: route.route(X[0], 1), r'logits \[3\] is not \[T,E\]'),
])
def test_arguments_that_do_not_fit_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()
