"""Routing by softmax: probabilities, the k largest of them, and how many tokens each expert gets."""

from pallas_kernels import target as targets


def route(logits, k, *, target=None):
  """Returns (weight f32[T,k], expert i32[T,k], counts i32[E]) of logits [T,E].

  Weights are the k largest entries of the softmax over E, in float32 and falling order, not normalised
  again. Of equal entries the lower expert's comes first. Counts say how many of the T*k choices each
  expert got. A row may hold -inf, not +inf or NaN, and at least one finite entry. `route` has no derivative.

  Source: softmax gating (Shazeer et al., 2017, arXiv:1701.06538, equation 2). The largest gates are kept as
  they are, as in Switch Transformer (Fedus et al., 2021, arXiv:2101.03961, equation 1) with its k = 1.

  Args:
    logits: [T,E] of any float dtype.
    k: choices per token, 1 <= k <= E.
    target: 'cpu', 'tpu', 'gpu', or None: the platform that the program is lowered for.
  Raises:
    ValueError: shapes do not fit.
  """
  if logits.ndim != 2:
    raise ValueError(f'logits {list(logits.shape)} is not [T,E]')
  if not 1 <= k <= logits.shape[1]:
    nearest = min(max(k, 1), logits.shape[1])
    raise ValueError(f'k {k} is not in 1..{logits.shape[1]}, the number of experts; nearest: {nearest}')
  return targets.choose(target, **targets.modules('pallas_kernels.route', k=k))(logits)
