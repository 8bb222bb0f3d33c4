"""LibMoE's and CompeteSMoE's layers in our form: their experts, choices that are given, comparisons."""

import activations
from flax import nnx
import jax.numpy as jnp
import numpy as np

from stmoe.core.execute import einsum
from stmoe.experts import mlp

GELU = activations.TORCH['gelu']


def bank(case, w2=None):
  """Returns the experts of `case`: y = w2 gelu(w1 x + b1) + b2, or relu(x keys) values without biases.

  w2: f32[E,D,F] instead of the recorded one, for its gradient.
  """
  if 'keys' in case:
    wi, wo = case['keys'], case['values']
    return _mlp(wi, wo, 'relu')
  w2 = case['w2'] if w2 is None else w2
  return _mlp(case['w1'].swapaxes(1, 2), w2.swapaxes(1, 2), GELU, case['b1'], case['b2'])


def _mlp(wi, wo, activation, bi=None, bo=None):
  experts, width, d_ff = wi.shape
  made = mlp.Mlp(width, num_experts=experts, d_ff=d_ff, activation=activation, use_bias=bi is not None,
                 rngs=nnx.Rngs(0))
  for name, value in dict(wi=wi, wo=wo, bi=bi, bo=bo).items():
    if value is not None:
      variable = getattr(made, name)
      assert variable.shape == value.shape, (variable.shape, value.shape)
      variable[...] = jnp.asarray(value)
  return made


def copy(module, **arrays):
  """Returns a copy of `module` with other arrays, by their names; also inside of a transformation."""
  graph, state = nnx.split(module)
  held = nnx.to_pure_dict(state)
  for name, value in arrays.items():
    assert held[name].shape == value.shape, (name, value.shape)
  return nnx.merge(graph, held | {name: jnp.asarray(value) for name, value in arrays.items()})


def recorded(case, name='selected'):
  """Returns `choose` of the recorded choices: among tied experts it takes those of the reference."""
  return lambda scores, k: jnp.asarray(case[name])


def execute(x, a, experts):
  """Returns the layer's output [B,T,D]."""
  return einsum.execute(x, a, experts)


def by_choice(a, k):
  """Returns the weights f32[B,T,k] of an Assignment of k choices, in their order."""
  return a.weight.reshape(a.weight.shape[0], k, -1).swapaxes(1, 2)


def same_experts(case, scores, k, name='selected'):
  """Asserts that the recorded experts are the k of largest scores, as sets; tied ones are as good."""
  scores, chosen = np.asarray(scores), case[name]
  best = -np.sort(-scores, axis=-1)[..., :k]
  found = -np.sort(-np.take_along_axis(scores, chosen, -1), axis=-1)
  assert all(len(set(row)) == k for row in chosen.reshape(-1, k).tolist())
  np.testing.assert_allclose(found, best, rtol=1e-5)
