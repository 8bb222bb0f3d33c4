"""flaxformer's sparse encoder-decoder in our form: weights by name, its treatment of padding."""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np
import optax
import routers_flaxformer

from stmoe.models import t5
from stmoe.parts import visible


def decoder_mask(inputs):
  """Returns i32[B,T], 1 where flaxformer's decoder counts a position as real.

  Computed from shifted inputs: a position counts if its token or the next one is real, or
  if it is the first. So a start token (id 0) counts, and so does the first padding target.
  """
  inputs = np.asarray(inputs)
  after = np.pad(inputs[:, 1:], ((0, 0), (0, 1)))
  real = (inputs > 0) | (after > 0)
  real[:, 0] = True
  return real.astype(np.int32)


def check(case):
  """Checks the whole sparse encoder-decoder of `case`: logits, losses, metrics, gradients."""
  c = case.config
  model = build(case)
  params = case.group('param:')
  for name, variable in variables(model, c['acts']).items():
    value = params.pop(name)
    assert variable.shape == value.shape, name
    variable[...] = jnp.asarray(value)
  assert not params, sorted(params)
  batch = {name: jnp.asarray(case[f'{name}_tokens'])
           for name in ('encoder_input', 'decoder_input', 'decoder_target')}
  graphdef, state = nnx.split(model, nnx.Param)
  run = lambda state: loss(nnx.merge(graphdef, state), batch, c)
  (total, (logits, reports)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(state)
  case.assert_close('logits', logits)
  case.assert_close('total_loss', total)
  for name, value in reports.items():
    case.assert_close(f'metric:{name}', value)
  grads = variables(nnx.merge(graphdef, grads), c['acts'])
  for name in case.names('grad:'):
    case.assert_close(name, grads[name.removeprefix('grad:')][...])
  for name in case.names('gradnorm:'):
    case.assert_close(name, jnp.linalg.norm(grads[name.removeprefix('gradnorm:')][...]))


# Which of n layers, m of them sparse, is sparse.
LAYOUTS = {
    'MIXED': lambda i, n, m: m > 0 and i % (n // m) == n // m - 1,
    'BOTTOM': lambda i, n, m: i < m,
    'MIDDLE': lambda i, n, m: n - m <= 2 * i < n + m,
    'TOP': lambda i, n, m: i >= n - m,
}


def build(case):
  """Returns our unrolled T5 for the reference's configuration and the tokens per batch of `case`."""
  c = case.config
  activation, gated = activations.gated(c['acts'])
  dense = dict(layer='dense', d_ff=c['F'], activation=activation, gated=gated)
  experts = dict(name='glu' if gated else 'mlp', d_ff=c['F'], activation=activation)

  def sparse(kind, batch_priority, tokens):
    router = routers_flaxformer.router_of(kind, c['k'], batch_priority, num_experts=c['E'],
                                          capacity_factor=(c['cf'],) * 2, min_capacity=c['minC'])
    batch, length = routers_flaxformer.padded(*tokens.shape, c['E'])
    return dict(layer='moe', executor='einsum', router=router, experts=experts,
                group_size=routers_flaxformer.group_size(batch * length, c['E'], c['maxg']))

  blocks = dict(d=dense, x=dense | dict(attention=False),
                e=sparse('experts' if c['ec_enc'] else 'masked', c['bpr_enc'], case['encoder_input_tokens']),
                f=sparse('masked', False, case['decoder_input_tokens']))
  layout, layers = case.option('layout', LAYOUTS, 'MIXED'), range(c['nl'])
  letters = lambda letter: ''.join(
      letter + 'x' * c['extra'] if layout(i, c['nl'], c['ns']) else 'd' for i in layers)
  return t5.T5(vocab_size=c['V'], d_model=c['D'], encoder=models_hf.pattern(letters('e')),
               decoder=models_hf.pattern(letters('f')), blocks=blocks, num_heads=c['H'], head_dim=c['K'],
               tie_embeddings=c['tied'], scan_layers=False, rngs=nnx.Rngs(0))


def numbered(stack):
  """Yields (the reference's number of the layer, block); an extra block belongs to the one before."""
  layer = -1
  for block in models_hf.layers_of(stack):
    layer += block.attention is not None
    yield layer, block


def variables(model, names):
  """Returns dict flaxformer name -> Variable of `model`; `names` are the reference's activations."""
  found = {'token_embedder/embedding': model.embed.table}
  if model.head is not None:
    found['decoder/logits_dense/kernel'] = model.head.w
  for stack, bias in ((model.encoder, model.encoder_bias), (model.decoder, model.decoder_bias)):
    found[f'{stack.name}/relpos_bias/rel_embedding'] = bias.table
    found[f'{stack.name}/{stack.name}_norm/scale'] = stack.norm.scale
    attend = 'attention' if stack is model.encoder else 'self_attention'
    for layer, block in numbered(stack):
      prefix = f'{stack.name}/layers_{layer}'
      parts = {attend: block.attention, 'encoder_decoder_attention': block.cross}
      for name, module in parts.items():
        if module is not None:
          found |= {f'{prefix}/{name}/{theirs}/kernel': getattr(module, ours) for ours, theirs in
                    (('wq', 'query'), ('wk', 'key'), ('wv', 'value'), ('wo', 'out'))}
          short = 'cross_attention' if module is block.cross else attend
          norm = block.cross_norm if module is block.cross else block.attention_norm
          found[f'{prefix}/pre_{short}_layer_norm/scale'] = norm.scale
      mlp = 'mlp' if block.attention is not None else 'extra_mlp'
      found[f'{prefix}/pre_{mlp}_layer_norm/scale'] = block.layer_norm.scale
      found |= _feed_forward(block.layer, f'{prefix}/{mlp}', names)
  return found


def _feed_forward(layer, prefix, names):
  if not hasattr(layer, 'router'):
    return _matrices(layer, prefix, names)
  router = {f'{prefix}/router/router_weights/w/kernel': layer.router.w}
  return router | _matrices(layer.experts, f'{prefix}/expert', names)


def _matrices(module, prefix, names):
  gate = getattr(module, 'wg', None)
  inner, outer = activations.order(names)
  first = {f'{prefix}/wi/kernel': module.wi} if gate is None else {
      f'{prefix}/{inner}/kernel': module.wi, f'{prefix}/{outer}/kernel': gate}
  return first | {f'{prefix}/wo/kernel': module.wo}


class Masked(nnx.Module):
  """A norm whose output is multiplied by the padding mask, as flaxformer does everywhere."""

  def __init__(self, norm, mask):
    self.norm = norm
    self.mask = nnx.Variable(mask[..., None].astype(jnp.float32))

  def __call__(self, x):
    return self.norm(x) * self.mask[...]


def loss(model, batch, c):
  """Returns (total loss, (logits, dict of the reference's metrics)); the model is changed and thrown away."""
  encoder, decoder, target = (batch[n] for n in ('encoder_input', 'decoder_input', 'decoder_target'))
  masks = {'encoder': encoder > 0, 'decoder': jnp.asarray(decoder_mask(decoder)) > 0}
  layers = {}
  for stack in model.stacks():
    mask = masks[stack.name]
    stack.norm = Masked(stack.norm, mask)
    for i, block in numbered(stack):
      for name in ('attention_norm', 'cross_norm', 'layer_norm'):
        if getattr(block, name) is not None:
          setattr(block, name, Masked(getattr(block, name), mask))
      if hasattr(block.layer, 'router'):
        block.layer.router = routers_flaxformer.Recording(block.layer.router)
        layers[f'{stack.name}/layers_{i}/mlp'] = block.layer.router
        block.layer = routers_flaxformer.Padded(block.layer, not c['ignore_pad'])
  logits = forward(model, encoder, decoder, target, masks, c['ignore_pad'])
  reports = {}
  for name, router in layers.items():
    kind = 'experts' if c['ec_enc'] and name.startswith('encoder') else 'masked'
    values = routers_flaxformer.reports(kind, router.router.w[...], router.seen, c['k'], c['ignore_pad'],
                                        c['cf'], c['minC'])
    reports |= {f'{name}/{key}': value for key, value in values.items()}
  def mean(key):
    each = [value for name, value in reports.items() if name.endswith(key)]
    return sum(each) / max(len(each), 1)
  real = target > 0
  z = jax.nn.logsumexp(logits, axis=-1)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, target) + c['z_loss'] * z * z
  total = (jnp.sum(nll * real) / real.sum() + c['aux_loss_factor'] * mean('auxiliary_loss')
           + c['router_z_loss_factor'] * mean('router_z_loss'))
  return total, (logits, reports)


def forward(model, encoder, decoder, target, masks, ignore_padding):
  """Returns logits [B,T,V] with the reference's attention masks and routing of padding."""
  both = lambda q, k: ((q > 0)[:, :, None] & (k > 0)[:, None, :])[:, None]
  causal = jnp.tril(jnp.ones(target.shape[1:] * 2, bool))
  size, length = encoder.shape[1], decoder.shape[1]
  route = lambda name: masks[name] if ignore_padding else None
  own = dict(attention=_visible(both(encoder, encoder), model.encoder_bias(size, size)))
  memory, _ = model.encoder(model.embed(encoder),
                            models_hf.context(encoder, route('encoder')).replace(visible=own))
  own = dict(attention=_visible(both(target, target) & causal, model.decoder_bias(length, length)),
             cross=_visible(both(target, encoder), 0.0, memory))
  x, _ = model.decoder(model.embed(decoder),
                       models_hf.context(decoder, route('decoder'), causal=True).replace(visible=own))
  return model.embed.logits(x) if model.head is None else model.head(x)


def _visible(mask, bias, memory=None):
  """The mask as a bias of -1e10: a query without any key then still passes gradients to its logits."""
  return visible.Visible(mask=jnp.ones_like(mask), bias=jnp.where(mask, 0, -1e10) + bias, memory=memory)
