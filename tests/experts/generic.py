"""Any bank of experts with the same arguments: those of FIELDS that its signature has."""

import inspect

from flax import nnx
import jax

from stmoe import lookup

# As large as training makes them, and every optional array there.
FIELDS = dict(d_ff=12, init_scale=1.0, use_bias=True, multiplicative_bias=True, rank=3)


def build(name, d_model, num_experts, seed=0, **changed):
  """Returns the bank `name` with its generic fields; no array of it is constant."""
  return of(lookup.constructor('experts', name), d_model, num_experts, seed, **changed)


def of(make, d_model, num_experts, seed=0, **changed):
  """Returns the bank of class `make`; see `build`."""
  known = inspect.signature(make.__init__).parameters
  fields = {key: value for key, value in (FIELDS | changed).items() if key in known}
  bank = make(d_model, num_experts=num_experts, **fields, rngs=nnx.Rngs(seed))
  for i, (_, value) in enumerate(nnx.to_flat_state(nnx.state(bank, nnx.Param))):
    value[...] += 0.1 * jax.random.normal(jax.random.key(seed + i), value.shape)
  return bank
