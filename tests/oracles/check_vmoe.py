"""Checks of V-MoE: capacity, slots with and without batch priority, and the auxiliary losses."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.routers import vmoe


def capacity(case):
  # float32 in the file: the reference was called with the decimal number.
  factors = [round(float(factor), 4) for factor in case['capacity_factor']]
  rows = zip(case['num_tokens'].tolist(), case['num_experts'].tolist(), factors, case['multiple_of'].tolist())
  case.assert_close('capacity', np.array([vmoe.capacity(*row) for row in rows], np.int32))


def dispatcher(case):
  config, gates = case.config, jnp.asarray(case['gates'])[None]
  mask = jnp.ones((1, config['S']), bool)
  _, a = vmoe.dispatch(gates, mask, config['k'], config['capacity'], config['batch_priority'])
  dispatch, combine = assignment.masks(a)                            # [1, S, E, C] twice
  case.assert_close('dispatch_mask', dispatch[0].astype(jnp.int32))
  case.assert_close('combine_weights', combine[0])


def losses(case):
  config, std = case.config, case.config['noise_std']
  logits, noisy = jnp.asarray(case['logits'])[None], jnp.asarray(case['logits_noisy'])[None]
  mask = jnp.ones((1, config['S']), bool)
  noise = (noisy - logits) / std if std else None                    # without noise there is no load loss
  found = jax.jit(lambda logits, noise: vmoe.vmoe(
      logits, mask, config['S'], config['k'], noise=noise, noise_std=std)[1].losses)(logits, noise)
  case.assert_close('importance_loss', found['importance'][None])
  case.assert_close('load_loss', found['load'][None])
  case.assert_close('gshard_loss', found['gshard'][None])
