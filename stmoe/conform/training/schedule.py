"""What every schedule of the learning rate must do."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import declared
from stmoe import lookup
from stmoe.conform import generic
from stmoe.train import schedules

STEPS = 50
_KNOWN = dict(peak=1e-3, value=1e-3, warmup_steps=5)


def is_a_rate(name: str, **fields) -> None:
  """It gives a finite rate of at least 0 for every step, the same compiled, and once a rate above 0."""
  needed = {key for key, field in lookup.fields('schedule', name).items()
            if field.default is declared.REQUIRED and field.range}
  known = {key: value for key, value in _KNOWN.items() if key in needed} | fields
  if unknown := sorted(needed - set(known)):
    raise generic.Unknown(f'schedule {name}', unknown[0])
  rate = schedules.of(ml_collections.ConfigDict(dict(name=name) | known), STEPS)
  steps = jnp.arange(STEPS, dtype=jnp.int32)
  rates = np.asarray(jax.jit(jax.vmap(rate))(steps))
  assert np.all(np.isfinite(rates)) and np.all(rates >= 0), f'rates are {rates.min()} to {rates.max()}'
  assert np.any(rates > 0), 'every rate is 0'
  np.testing.assert_allclose([float(rate(step)) for step in steps[::10]], rates[::10], rtol=1e-5)
