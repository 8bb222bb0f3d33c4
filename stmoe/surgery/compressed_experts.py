"""Compressed experts: half of a token's experts become vectors, one for each expert (arXiv:2503.00634).

The layer is `layers/compressed_experts.py`. Vectors are ones at first, and fine-tuning trains them: alone

  stmoe train NEW --config.groups.base.where=rest --config.groups.base.train=False \
    --config.groups.compressed.train=True

or with the model, without these groups. Stored parameters grow by a vector an expert; active ones shrink.
"""

import jax.numpy as jnp
import ml_collections

from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.surgery import aside
from stmoe.surgery import sparse


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5) -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of a token's experts computed; see `sparse`.

  Args:
    keep: experts that are computed over experts of a token. At 1.0 nothing changes.
  """
  if keep == 1.0:
    return params, {}
  made = aside.Made()
  changes: dict[str, object] = {}
  for layer in sparse.found(config):
    section, k = sparse.section(config, layer.where), contract.offered(layer.module.router, 'k')
    key = 'layer' if 'layer' in section else 'name'
    if section[key] != 'moe':
      raise errors.UserError(f"{layer.where} is {section[key]!r}, and experts become vectors in layers 'moe' "
                             'alone; nearest: another surgery')
    if k is None or sparse.share(k, keep) >= k:
      raise errors.UserError(f'keep={keep}: a token of {layer.where} has {k or "no fixed number of"} '
                             'experts, of which none would become a vector; nearest: keep=1.0')
    vectors = jnp.ones((layer.num_experts, layer.module.d_model))
    made |= {(*layer.path, 'compressed'): vectors,
             (*layer.path, 'router'): dict(inner=sparse.router(layer, params))}
    changes |= {f'{layer.where}.{key}': 'compressed_experts', f'{layer.where}.main': sparse.share(k, keep)}
  return sparse.replaced(params, made), changes
