"""flaxformer's sparse encoder-decoder in our form: weights by name, its treatment of padding."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np
import optax

from stmoe.core import losses as core_losses
from stmoe.layers import attention
from stmoe.models import t5


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
  model = build(c, case['encoder_input_tokens'].size, case['decoder_input_tokens'].size)
  params = case.group('param:')
  for name, variable in variables(model).items():
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
  grads = variables(nnx.merge(graphdef, grads))
  for name in case.names('grad:'):
    case.assert_close(name, grads[name.removeprefix('grad:')][...])
  for name in case.names('gradnorm:'):
    case.assert_close(name, jnp.linalg.norm(grads[name.removeprefix('gradnorm:')][...]))


def build(c, encoder_tokens, decoder_tokens):
  """Returns our unrolled T5 for the reference's configuration `c` and its tokens per batch."""
  gated, activation = len(c['acts']) == 2, c['acts'][0]
  dense = dict(layer='dense', d_ff=c['F'], activation=activation, gated=gated)
  # `random`, normalised gates and counting first choices are ST-MoE's; flaxformer has none of them.
  slots = dict(num_experts=c['E'], capacity_factor=(c['cf'],) * 2, min_capacity=c['minC'])
  choose = (dict(name='switch', jitter=0.0, **slots) if c['k'] == 1 else
            dict(name='st_moe', k=c['k'], normalize_gates=False, second_policy='all',
                 balance_choices='any', **slots))
  first = dict(name='expert_choice', **slots) if c['ec_enc'] else choose
  if c['bpr_enc']:
    first = first | dict(batch_priority=True)
  experts = dict(name='glu' if gated else 'mlp', d_ff=c['F'], activation=activation)
  # The reference makes at least as many groups as there are experts.
  sparse = lambda router, tokens: dict(layer='moe', executor='einsum', router=router, experts=experts,
                                       group_size=min(c['maxg'], tokens // c['E']))
  blocks = dict(d=dense, e=sparse(first, encoder_tokens), f=sparse(choose, decoder_tokens),
                x=dense | dict(attention=False))
  assert (c['nl'], c['ns']) == (2, 1)                                # MIXED: the last layer is sparse
  extra = 'x' if c['extra'] else ''
  return t5.T5(vocab_size=c['V'], d_model=c['D'], encoder=((f'de{extra}', 1),), decoder=((f'df{extra}', 1),),
               blocks=blocks, num_heads=c['H'], head_dim=c['K'], tie_embeddings=c['tied'], scan_layers=False,
               rngs=nnx.Rngs(0))


def variables(model):
  """Returns dict flaxformer name -> Variable of `model`."""
  found = {'token_embedder/embedding': model.embed.table}
  if model.head is not None:
    found['decoder/logits_dense/kernel'] = model.head.w
  for stack, bias in ((model.encoder, model.encoder_bias), (model.decoder, model.decoder_bias)):
    found[f'{stack.name}/relpos_bias/rel_embedding'] = bias.table
    found[f'{stack.name}/{stack.name}_norm/scale'] = stack.norm.scale
    attend = 'attention' if stack is model.encoder else 'self_attention'
    layer = -1
    for block in models_hf.layers_of(stack):
      extra = block.attention is None
      layer += not extra
      prefix = f'{stack.name}/layers_{layer}'
      parts = {attend: block.attention, 'encoder_decoder_attention': block.cross}
      for name, module in parts.items():
        if module is not None:
          found |= {f'{prefix}/{name}/{theirs}/kernel': getattr(module, ours) for ours, theirs in
                    (('wq', 'query'), ('wk', 'key'), ('wv', 'value'), ('wo', 'out'))}
          short = 'cross_attention' if module is block.cross else attend
          norm = block.cross_norm if module is block.cross else block.attention_norm
          found[f'{prefix}/pre_{short}_layer_norm/scale'] = norm.scale
      mlp = 'extra_mlp' if extra else 'mlp'
      found[f'{prefix}/pre_{mlp}_layer_norm/scale'] = block.layer_norm.scale
      found |= _feed_forward(block.layer, f'{prefix}/{mlp}')
  return found


def _feed_forward(layer, prefix):
  if not hasattr(layer, 'router'):
    return _matrices(layer, prefix)
  router = {f'{prefix}/router/router_weights/w/kernel': layer.router.w}
  return router | _matrices(layer.experts, f'{prefix}/expert')


def _matrices(module, prefix):
  gate = getattr(module, 'wg', None)
  first = {f'{prefix}/wi/kernel': module.wi} if gate is None else {
      f'{prefix}/wi_0/kernel': module.wi, f'{prefix}/wi_1/kernel': gate}
  return first | {f'{prefix}/wo/kernel': module.wo}


class Masked(nnx.Module):
  """A norm whose output is multiplied by the padding mask, as flaxformer does everywhere."""

  def __init__(self, norm, mask):
    self.norm = norm
    self.mask = nnx.Variable(mask[..., None].astype(jnp.float32))

  def __call__(self, x):
    return self.norm(x) * self.mask[...]


class Recording(nnx.Module):
  """A router that keeps what it saw and answered; for the losses, which flaxformer scales otherwise."""

  def __init__(self, router):
    self.router = router
    self.num_experts = router.num_experts

  def __call__(self, x, ctx, carry):
    routed = self.router(x, ctx, carry)
    self.seen = nnx.data((x, ctx.mask, routed))
    return routed


def loss(model, batch, c):
  """Returns (total loss, (logits, dict of the reference's metrics)); the model is changed and thrown away."""
  encoder, decoder, target = (batch[n] for n in ('encoder_input', 'decoder_input', 'decoder_target'))
  masks = {'encoder': encoder > 0, 'decoder': jnp.asarray(decoder_mask(decoder)) > 0}
  layers = {}
  for stack in model.stacks():
    mask = masks[stack.name]
    stack.norm = Masked(stack.norm, mask)
    for i, block in enumerate(models_hf.layers_of(stack)):
      for name in ('attention_norm', 'cross_norm', 'layer_norm'):
        if getattr(block, name) is not None:
          setattr(block, name, Masked(getattr(block, name), mask))
      if hasattr(block.layer, 'router'):
        block.layer.router = Recording(block.layer.router)
        layers[f'{stack.name}/layers_{i}/mlp'] = block.layer.router
  logits = forward(model, encoder, decoder, target, masks, c['ignore_pad'])
  reports = {}
  for name, router in layers.items():
    x, mask, routed = router.seen
    losses = _losses(router.router.w[...], x, mask, routed, c)
    reports |= {f'{name}/{key}': value for key, value in losses.items()}
  mean = lambda key: jnp.mean(jnp.stack([v for n, v in reports.items() if n.endswith(key)]))
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
  memory, _ = model.encoder(model.embed(encoder), models_hf.context(encoder, route('encoder')),
                            _visible(both(encoder, encoder), model.encoder_bias(size, size)))
  x, _ = model.decoder(
      model.embed(decoder), models_hf.context(decoder, route('decoder'), causal=True),
      _visible(both(target, target) & causal, model.decoder_bias(length, length)),
      _visible(both(target, encoder), 0.0, memory))
  return model.embed.logits(x) if model.head is None else model.head(x)


def _visible(mask, bias, memory=None):
  """The mask as a bias of -1e10: a query without any key then still passes gradients to its logits."""
  return attention.Visible(mask=jnp.ones_like(mask), bias=jnp.where(mask, 0, -1e10) + bias, memory=memory)


def _losses(w, x, mask, routed, c):
  """The reference's losses and metrics of one sparse layer.

  When it ignores padding it still divides by all tokens: f and P by S each, and padding
  adds (ln E)^2 to the z-loss, because its logits are zeroed, not left out.
  """
  logits = jnp.einsum('gsd,de->gse', x, w)
  probs = jax.nn.softmax(logits, axis=-1)
  balance, z = routed.aux.losses['balance'], routed.aux.losses['z']
  if c['ignore_pad']:
    share = mask.mean(axis=1)                                        # [G]
    choice = jax.lax.top_k(probs, c['k'])[1]
    balance = jnp.mean(core_losses.balance_of_groups(probs, choice, mask) * share ** 2)
    z = z * mask.mean() + np.log(c['E']) ** 2 * (1 - mask.mean())
  metrics = routed.aux.metrics
  return dict(auxiliary_loss=balance, router_z_loss=z, fraction_tokens_left_behind=metrics['left_behind'],
              router_confidence=metrics['router_conf'], expert_usage=metrics['slot_usage'])
