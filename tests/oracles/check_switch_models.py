"""Whole models of the switch cases; see `models_flaxformer` and `models_hf` for the translations."""

import functools

import jax
import jax.numpy as jnp
import models_flaxformer
import models_hf
import numpy as np
import optax


def encoder_decoder(case):
  models_flaxformer.check(case)


def hf_forward(case):
  c = case.config
  experts = dict(name='mlp', d_ff=c['d_ff'], activation=c['dense_act_fn'])
  # A group is a row, and an expert has `expert_capacity` slots whatever its length.
  router = lambda length: dict(name='switch', num_experts=c['num_experts'], min_capacity=1,
                               capacity_factor=(c['expert_capacity'] * c['num_experts'] / length,) * 2)
  sparse = lambda ids: dict(layer='moe', executor='einsum', experts=experts, router=router(ids.shape[1]))
  blocks = dict(d=dict(layer='dense', d_ff=c['d_ff'], activation=c['dense_act_fn']),
                e=sparse(case['input_ids']), f=sparse(case['decoder_input_ids']))
  step = c['encoder_sparse_step']
  assert step == c['decoder_sparse_step'] <= 2                       # sparse iff i mod step = 1
  unit = 'd' * (step - 1)
  model = models_hf.build(c, case.group('weight:'), blocks,
                          encoder=((f'{unit}e', c['num_layers'] // step),),
                          decoder=((f'{unit}f', c['num_decoder_layers'] // step),))
  logits, memory, seen = jax.jit(functools.partial(_recorded, case=case))(model)
  case.assert_close('logits', logits)
  case.assert_close('encoder_last_hidden_state', memory)
  for name, (router_logits, a) in seen.items():
    case.assert_close(f'router_logits:{name}', router_logits)
    # The reference reports expert 0 for a dropped token.
    case.assert_close(f'expert_index:{name}', jnp.where(a.expert < a.num_experts, a.expert, 0))
    dropped = int((a.expert >= a.num_experts).sum())
    assert dropped == case.info['dropped_tokens_per_router'][f'router_logits:{name}']
  real = case['labels'] > 0
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(case['labels']))
  case.assert_close('nll_mean', np.float32((nll * real).sum() / real.sum()))


def _recorded(model, case):
  """(logits, memory, dict layer -> (router logits, Assignment)) of a model that is thrown away."""
  routers = {}
  for stack in model.stacks():
    for i, block in enumerate(models_hf.layers_of(stack)):
      if hasattr(block.layer, 'router'):
        block.layer.router = routers[f'{stack.name}:{i}'] = models_flaxformer.Recording(block.layer.router)
  logits, memory, _ = models_hf.forward(model, case)
  seen = {name: (r.seen[0] @ r.router.w[...], r.seen[2].assignment) for name, r in routers.items()}
  return logits, memory, seen
