"""Checks of X-MoE's four published forms: LibMoE's two, torchscale's, and Tutel's logits."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_libmoe
import numpy as np

from stmoe.core import balance
from stmoe.core import losses
from stmoe.routers import gshard
from stmoe.routers import perturbed_cosine
from stmoe.routers import x_moe


def layer(case):
  """LibMoE's vision layer; of the perturbed cosine with a theta."""
  c = case.config
  mask = jnp.ones(case['x'].shape[:2], bool)
  router = _build(case)
  before = models_libmoe.copy(router, v=case['embeddings_before'])
  case.assert_close('embeddings_after', before.embeddings())
  case.option('zero_token', {True: None, False: None})               # of the data, as the next two
  case.option('tied_embeddings', {True: None, False: None})
  assert c['input_scale'] > 0 and c['R'] == router.w.shape[1]

  def run(x, w, v, w2):
    cosines = x_moe.gate.logits(models_libmoe.copy(router, w=w.T).projected(x), v.T)
    a, aux = x_moe.x_moe(cosines, mask, x.shape[1], c['k'], scale=router.scale(), double_softmax=True,
                         choose=models_libmoe.recorded(case))
    y = models_libmoe.execute(x, a, models_libmoe.bank(case, w2))
    loss = c['balance_loss_coef'] * aux.losses['balance'] + c['router_z_loss_coef'] * aux.losses['z']
    return jnp.sum(y * case['cotangent']) + loss, (cosines, a, y, aux, loss)

  args = [jnp.asarray(case[name]) for name in ('x', 'reduction', 'embeddings_after', 'w2')]
  grads, (cosines, a, y, aux, loss) = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3), has_aux=True))(*args)
  case.assert_close('logits', cosines)
  probs = jax.nn.softmax(cosines * router.scale())
  case.assert_close('probs', probs)
  models_libmoe.same_experts(case, probs, c['k'])
  case.assert_close('weights', models_libmoe.by_choice(a, c['k']))
  case.assert_close('output', y)
  case.assert_close('balance_loss', aux.losses['balance'])
  case.assert_close('z_loss', aux.losses['z'])
  case.assert_close('aux_loss', loss)
  for name, grad in zip(('grad_x', 'grad_reduction', 'grad_embeddings', 'grad_w2'), grads):
    case.assert_close(name, grad)


def _build(case):
  """Our router with the settings of LibMoE's; theta, where there is one, is added to all lengths."""
  c = case.config
  fields = dict(num_experts=c['E'], k=c['k'], width=c['R'], temperature=c['temperature'],
                fixed_temperature=True, embedding_norm=c['embedding_norm'], rngs=nnx.Rngs(0))
  if c['theta'] is None:
    return x_moe.XMoE(c['D'], **fields)
  return perturbed_cosine.PerturbedCosine(c['D'], tau=c['theta'], tau_experts=c['theta'], **fields)


def lm_layer(case):
  """LibMoE's layer of language models: norm 1.5, temperature 0.3, softmax twice."""
  c, mask = case.config, jnp.ones(case['x'].shape[:2], bool)
  case.option('selection_mode', {'gate': None})                      # the softmax of the softmax
  regularise = case.option('perplexity_reg_mode', _REGULARISERS)
  width = case['router'].shape[0]
  router = x_moe.XMoE(c['D'], num_experts=c['E'], k=c['k'], width=width, temperature=0.3,
                      fixed_temperature=True, embedding_norm=1.5, rngs=nnx.Rngs(0))
  before = models_libmoe.copy(router, v=case['embeddings_before'])
  case.assert_close('embeddings_after', before.embeddings())
  experts = models_libmoe.bank(case)

  def run(x, w, v):
    cosines = x_moe.gate.logits(models_libmoe.copy(router, w=w.T).projected(x), v.T)
    a, aux = x_moe.x_moe(cosines, mask, x.shape[1], c['k'], scale=router.scale(), double_softmax=True,
                         choose=models_libmoe.recorded(case))
    scores = jax.nn.softmax(jax.nn.softmax(cosines * router.scale()))
    y = models_libmoe.execute(x, a, experts)
    loss = c['perplexity_reg'] * regularise(scores, case['selected'], mask)
    return jnp.sum(y * case['cotangent']) + loss, (scores, a, y, aux, loss)

  args = [jnp.asarray(case[name]) for name in ('x', 'router', 'embeddings_after')]
  grads, (scores, a, y, aux, loss) = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(*args)
  case.assert_close('scores', scores)
  models_libmoe.same_experts(case, scores, c['k'])
  case.assert_close('weights', models_libmoe.by_choice(a, c['k']))
  case.assert_close('output', y)
  case.assert_close('reg_loss', loss)
  if regularise is _by_sequence:                                      # the one that the router itself reports
    np.testing.assert_allclose(c['perplexity_reg'] * aux.losses['entropy'], loss, rtol=1e-5)
  for name, grad in zip(('grad_x', 'grad_router', 'grad_embeddings'), grads):
    case.assert_close(name, grad)


def _by_sequence(scores, choice, mask):
  """f32[]: sum_e P_e ln P_e of every sequence."""
  return balance.negative_entropy(balance.shares(scores, choice, mask))


def _whole_batch(scores, choice, mask):
  """f32[]: the same over all tokens at once."""
  flat = lambda a: a.reshape(1, -1, *a.shape[2:])
  return _by_sequence(flat(scores), flat(choice), flat(mask))


def _each_token(scores, choice, mask):
  """f32[]: the same of every token alone."""
  flat = lambda a: a.reshape(-1, 1, *a.shape[2:])
  return _by_sequence(flat(scores), flat(choice), flat(mask))


def _shares_of_all(scores, choice, mask):
  """f32[]: sum_e f_e P_e of every sequence, P of scores over their sum, f over all choices."""
  probs = scores / scores.sum(-1, keepdims=True)
  return balance.expert_loss(balance.shares(probs, choice, mask))


# Of one layer, which is what is recorded.
_REGULARISERS = {'time': _by_sequence, 'layers_time': _by_sequence, 'global': _whole_batch,
                 'step': _each_token, 'standard': _shares_of_all}


def torchscale_gate(case):
  """Lengths of tokens stay, no temperature; then Top1Gate, or Top2Gate without chance."""
  c, mask = case.config, ~jnp.asarray(case['padding'])[None]
  case.option('second_expert_policy', {None: None, 'all': None})
  assert case.option('k', {1: 1, 2: 2}) == 1 or c['second_expert_policy'] == 'all'
  assert c['padding_tokens'] == case['padding'].sum()
  _capacity(c)
  router = x_moe.XMoE(c['D'], num_experts=c['E'], k=c['k'], width=c['R'], temperature=1.0,
                      fixed_temperature=True, normalize_tokens=False, embedding_norm=1.5, rngs=nnx.Rngs(0))
  before = models_libmoe.copy(router, v=case['embeddings_before'])
  case.assert_close('embeddings_after', before.embeddings())

  def run(x, w, v):
    h = models_libmoe.copy(router, w=w.T).projected(x[None])
    logits = x_moe.gate.logits(h, x_moe.unit(v).T)
    a, _ = gshard.gshard(logits, mask, c['capacity'], c['k'], second_policy='all', normalize_after_drop=True)
    combine = a.masks()[1][0]                                        # [S, E, C]
    # Padding chooses nobody here, but its probabilities and the divisor count.
    probs = jax.nn.softmax(logits)
    first = jnp.where(mask, probs.argmax(-1), c['E'])[..., None]
    loss = losses.balance(probs, first, jnp.ones_like(mask))
    return loss + jnp.sum(combine * case['cotangent']), (logits[0], combine, loss)

  args = [jnp.asarray(case[name]) for name in ('x', 'reduction', 'embeddings_after')]
  grads, (logits, combine, loss) = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(*args)
  case.assert_close('logits', logits)
  case.assert_close('combine', combine)
  case.assert_close('aux_loss', loss)
  for name, grad in zip(('grad_x', 'grad_reduction', 'grad_embeddings'), grads):
    case.assert_close(name, grad)


def _capacity(c):
  """Asserts that the recorded capacity is the reference's."""
  shared = -(-c['S'] // c['E'])
  fraction = c['eval_capacity_token_fraction']
  if not c['train'] and fraction > 0:
    assert c['capacity'] == int(np.ceil(fraction * c['S']))
  else:
    assert c['capacity'] == (int(c['capacity_factor'] * shared) if c['k'] == 1 else 2 * shared)


def cosine_logits(case):
  """Tutel: a projection with bias, and a learned scale that is clamped."""
  c = case.config
  router = x_moe.XMoE(c['D'], num_experts=c['E'], k=1, width=c['R'], use_bias=True, rngs=nnx.Rngs(0))
  assert abs(c['clamp_max'] - np.log(100)) < 1e-6
  np.testing.assert_allclose(case['log_scale'], c['log_scale'], rtol=1e-6)

  def run(x, w, v, log_scale):
    own = models_libmoe.copy(router, w=w.T, v=v.T, log_scale=log_scale, b=case['reduction_bias'])
    logits = own.logits(x[None], None)[0]
    return jnp.sum(logits * case['cotangent']), logits

  args = [jnp.asarray(case[name]) for name in ('x', 'reduction', 'embeddings', 'log_scale')]
  grads, logits = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3), has_aux=True))(*args)
  case.assert_close('logits', logits)
  for name, grad in zip(('grad_x', 'grad_reduction', 'grad_embeddings', 'grad_log_scale'), grads):
    case.assert_close(name, grad)
