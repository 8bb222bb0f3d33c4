"""Names of activation functions of the references -> ours, see `core/units/activations.py`."""

COMMON = {name: name for name in ('relu', 'silu', 'swish', 'tanh', 'sigmoid', 'relu6', 'elu', 'selu',
                                  'leaky_relu', 'softplus', 'mish')}
# transformers: 'gelu' is the exact one.
TORCH = COMMON | {'gelu': 'gelu_exact', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu',
                  'gelu_accurate': 'gelu', 'linear': 'identity', 'gelu exact (erf)': 'gelu_exact',
                  'exact (erf)': 'gelu_exact', 'gelu (erf)': 'gelu_exact', 'gelu erf': 'gelu_exact',
                  'tanh approximation': 'gelu'}
# flax.linen, as flaxformer calls it: 'gelu' is the approximation.
FLAX = COMMON | {'gelu': 'gelu', 'linear': 'identity'}


def gated(names):
  """Returns (activation, gated) of flaxformer's list of activations, whose product the layer takes.

  One function is a plain layer, ours. Of two one must be linear, and it may be the first: then the
  matrices change places, which `order` says.
  """
  assert 1 <= len(names) <= 2 and all(name in FLAX for name in names), f'unknown activations {names}'
  if len(names) == 1:
    return FLAX[names[0]], False
  assert 'linear' in names, f'no layer of ours multiplies two functions, {names}'
  return FLAX[names[0] if names[1] == 'linear' else names[1]], True


def order(names):
  """Returns (reference's matrix under the activation, the other one) of `gated` names."""
  return ('wi_0', 'wi_1') if names[-1] == 'linear' else ('wi_1', 'wi_0')
