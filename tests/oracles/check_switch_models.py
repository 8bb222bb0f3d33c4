"""Whole models of the switch cases; see `models_flaxformer` and `models_hf` for the translations."""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_flaxformer
import models_hf
import numpy as np
import optax

from stmoe.core import assignment
from stmoe.core import choices

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}


def encoder_decoder(case):
  models_flaxformer.check(case)


def letters(layers, step, sparse):
  """Returns the blocks of a stack: layer i is sparse iff i mod step is 1, all are for step 1, none for 0."""
  return ''.join(sparse if step == 1 or step > 1 and i % step == 1 else 'd' for i in range(layers))


def steps(c):
  """Returns (encoder, decoder) sparse steps: stated, or made of the numbers of layers, sparse and all."""
  made = []
  for name, layers in zip(('encoder', 'decoder'), models_hf.depths(c)):
    sparse = c.get(f'num_sparse_{name}_layers', 3)
    step = c.get(f'{name}_sparse_step')
    made.append(step if step is not None else layers // sparse if sparse > 0 else layers)
  return made


def hf_forward(case):
  c = case.config
  weights = case.group('weight:')
  activation = case.option('dense_act_fn', activations.TORCH, 'relu')
  experts = dict(name='mlp', d_ff=c['d_ff'], activation=activation)
  # A group is a row, and an expert has `expert_capacity` slots whatever its length.
  router = lambda length: dict(name='switch', num_experts=c['num_experts'], min_capacity=1,
                               capacity_factor=(c['expert_capacity'] * c['num_experts'] / length,) * 2)
  sparse = lambda ids: dict(layer='moe', executor='einsum', experts=experts, router=router(ids.shape[1]))
  blocks = dict(d=dict(layer='dense', d_ff=c['d_ff'], activation=activation),
                e=sparse(case['input_ids']), f=sparse(case['decoder_input_ids']))
  # `router_ignore_padding_tokens` is read there and used nowhere; `router_jitter_noise` is for training.
  patterns = [models_hf.pattern(letters(layers, step, letter))
              for layers, step, letter in zip(models_hf.depths(c), steps(c), 'ef')]
  biases = {name: weights.pop(name) for name in list(weights) if name.endswith('router.classifier.bias')}
  assert bool(biases) == (case.option('router_bias', {False: False, True: True}, False)
                          and any(letter in pattern[0][0] for pattern, letter in zip(patterns, 'ef')))
  model = models_hf.build(c, weights, blocks, *patterns)
  dtype = case.option('router_dtype', DTYPES, 'float32')
  run = functools.partial(_recorded, case=case, biases=biases, dtype=dtype)
  logits, memory, seen = jax.jit(run)(model)
  case.assert_close('logits', logits)
  case.assert_close('encoder_last_hidden_state', memory)
  dropped = case.info.get('dropped_tokens_per_router', {})
  for name, (router_logits, a) in seen.items():
    case.assert_close(f'router_logits:{name}', router_logits)
    # The reference reports expert 0 for a dropped token.
    case.assert_close(f'expert_index:{name}', jnp.where(a.expert < a.num_experts, a.expert, 0))
    lost = int((a.expert >= a.num_experts).sum())
    assert lost == dropped.get(f'router_logits:{name}', lost)
  real = (case['labels'] >= 0) & (case['labels'] != c.get('pad_token_id', 0))
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(np.maximum(case['labels'], 0)))
  case.assert_close('nll_mean', np.float32((nll * real).sum() / real.sum()))


class Classifier(nnx.Module):
  """The reference's router: our Switch, or one with a bias, or of probabilities in another dtype."""

  def __init__(self, router, bias, dtype):
    self.router = router
    self.num_experts = router.num_experts
    self.bias = nnx.Variable(jnp.zeros(router.num_experts) if bias is None else jnp.asarray(bias))
    self.plain = bias is None and dtype == jnp.float32
    self.dtype = dtype

  def __call__(self, x, ctx, carry):
    routed = self.router(x, ctx, carry)
    # What torch computes in a narrow dtype: float32 inside each operation, its result rounded.
    cast = lambda array: array.astype(self.dtype).astype(jnp.float32)
    logits = jnp.einsum('gsd,de->gse', cast(x), cast(self.router.w[...]), precision='highest')
    logits = cast(logits + cast(self.bias[...]))
    if not self.plain:
      probs = cast(jax.nn.softmax(logits, axis=-1))
      choice = jnp.argmax(probs, axis=-1)[..., None]
      edges = assignment.from_choices(choice, choices.values(probs, choice), self.num_experts)
      routed = routed.replace(assignment=assignment.cap(edges, routed.assignment.capacity))
    self.seen = nnx.data((logits, routed.assignment))
    return routed


def _recorded(model, case, biases, dtype):
  """(logits, memory, dict layer -> (router logits, Assignment)) of a model that is thrown away."""
  routers = {}
  for stack in model.stacks():
    for i, block in enumerate(models_hf.layers_of(stack)):
      if hasattr(block.layer, 'router'):
        place = 2 if block.cross is not None else 1
        bias = biases.get(f'{stack.name}.block.{i}.layer.{place}.mlp.router.classifier.bias')
        block.layer.router = routers[f'{stack.name}:{i}'] = Classifier(block.layer.router, bias, dtype)
  logits, memory, _ = models_hf.forward(model, case)
  return logits, memory, {name: router.seen for name, router in routers.items()}
