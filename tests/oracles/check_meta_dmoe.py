"""Checks of Meta-DMoE: the aggregator with and without its own expert, and a meta-step with its gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.units import classes
from stmoe.models import meta_dmoe

# The reference's names in a block -> ours, and whether torch has a matrix [out,in].
BLOCK = {'0.norm.weight': (('attention_norm', 'scale'), False),
         '0.norm.bias': (('attention_norm', 'bias'), False),
         '0.fn.attend.in_proj_weight': (('attention', 'joined', 'w'), True),
         '0.fn.attend.in_proj_bias': (('attention', 'joined', 'b'), False),
         '0.fn.attend.out_proj.weight': (('attention', 'out', 'w'), True),
         '0.fn.attend.out_proj.bias': (('attention', 'out', 'b'), False),
         '1.norm.weight': (('norm', 'scale'), False), '1.norm.bias': (('norm', 'bias'), False),
         '1.fn.net.0.weight': (('first', 'w'), True), '1.fn.net.0.bias': (('first', 'b'), False),
         '1.fn.net.3.weight': (('second', 'w'), True), '1.fn.net.3.bias': (('second', 'b'), False)}
BACKBONE = {'a.weight': (('first', 'w'), True), 'a.bias': (('first', 'b'), False),
            'b.weight': (('second', 'w'), True), 'b.bias': (('second', 'b'), False)}
HEAD = {'0.weight': (('norm', 'scale'), False), '0.bias': (('norm', 'bias'), False),
        '1.weight': (('of_aggregator', 'w'), True), '1.bias': (('of_aggregator', 'b'), False)}


def _blocks(depth):
  return {f'transformer.layers.{i}.{name}': (('blocks', i, *path), turn)
          for i in range(depth) for name, (path, turn) in BLOCK.items()}


def _at(module, path):
  for key in path:
    module = module[key] if isinstance(key, int) else getattr(module, key)
  return module


def _set(case, module, names, prefix):
  for name, (path, turn) in names.items():
    array, variable = case[prefix + name], _at(module, path)
    array = array.T if turn else array
    assert variable.shape == array.shape, (name, variable.shape, array.shape)
    variable[...] = jnp.asarray(array)
  return module


def _compare(case, grads, names, prefix):
  """Compares gradients, or parameters after a step, with rtol 1e-3 as the case says of gradients."""
  for name, (path, turn) in names.items():
    array, expected = np.asarray(_at(grads, path)[...]), case[prefix + name]
    np.testing.assert_allclose(array.T if turn else array, expected, rtol=1e-3,
                               atol=1e-5 * np.abs(expected).max(), err_msg=name)


def _aggregator(case, prefix, width, depth, heads, d_ff, tokens):
  made = meta_dmoe.Aggregator(width, depth, heads, d_ff, tokens, 0.0, 1, rngs=nnx.Rngs(0))
  return _set(case, made, _blocks(depth), prefix)


def aggregator(case):
  c = case.config
  for key, known in (('norm', 'pre, eps 1e-5'), ('activation', 'gelu erf'), ('dropout', 'off')):
    case.option(key, {known: known})
  made = _aggregator(case, 'w.', c['D'], c['depth'], c['heads'], c['mlp_dim'], c['M'])
  head = _set(case, meta_dmoe.Pretrained(c['D'], c['classes'], c['M'], rngs=nnx.Rngs(0)), HEAD, 'w.mlp.')
  features, kept = jnp.asarray(case['features']), np.ones((c['B'], c['M']), bool)
  if 'own_expert' in case:
    kept &= case['own_expert'][:, None] != np.arange(c['M'])
  np.testing.assert_array_equal(case['features'][kept].reshape(case['tokens'].shape), case['tokens'])

  @jax.jit
  def run(made, features):
    def loss(made, features):
      y = made(features, jnp.asarray(kept))
      logits = head.logits(y)
      return jnp.sum(y * case['upstream_feature']) + jnp.sum(logits * case['upstream_logits']), (y, logits)
    return jax.grad(loss, argnums=(0, 1), has_aux=True)(made, features)

  with jax.default_matmul_precision('highest'):
    (grads, dx), (y, logits) = run(made, features)
  case.assert_close('feature_out', y), case.assert_close('logits', logits)
  case.assert_close('grad_tokens', np.asarray(dx)[kept].reshape(case['tokens'].shape))
  assert not np.asarray(dx)[~kept].any()
  case.assert_close('grad_in_proj', grads.blocks[0].attention.joined.w[...].T)


def meta_step(case):
  c = case.config
  case.option('binary', {True: True, False: False})
  assert c['binary'] == (c['C'] == 1)
  depth = sum(name.endswith('0.norm.weight') for name in case.names('agg.transformer.layers.'))
  made = meta_dmoe.MetaDmoe(
      num_features=c['Din'], num_outputs=c['C'], d_model=c['D'], d_ff=len(case['student.a.bias']),
      activation='tanh', num_experts=c['M'], num_domains=c['M'], depth=depth, num_heads=c['heads'],
      aggregator_d_ff=len(case['agg.transformer.layers.0.1.fn.net.0.bias']), support=c['B'],
      inner_rate=c['inner_lr'], inner_steps=c['inner_steps'],
      first_order=case.option('first_order', {True: True, False: False}), rngs=nnx.Rngs(0))
  _set(case, made.student, BACKBONE, 'student.')
  _set(case, made.head, {'weight': (('w',), True), 'bias': (('b',), False)}, 'head.')
  _set(case, made.aggregator, _blocks(depth), 'agg.')
  for name in case.names('agg.mlp.'):
    case.ignore(name, 'the head of the aggregator, which a meta-step does not use')
  for name, (path, turn) in BACKBONE.items():
    arrays = np.stack([case[f'expert{m}.{name}'] for m in range(c['M'])])
    _at(made.experts, path)[...] = jnp.asarray(arrays.swapaxes(1, 2) if turn else arrays)
  own = int(case['own_expert'])
  batch = dict(features=jnp.concatenate([case['x_support'], case['x_query']])[None],
               labels=jnp.pad(jnp.asarray(case['y_query']), (c['B'], 0))[None],
               weights=jnp.pad(jnp.ones(c['Bq']), (c['B'], 0))[None], **{'given/domain': jnp.array([own])})

  @jax.jit
  def run(made):
    def loss(made):
      logits = made(batch, train=True)[0][0, :, 0]                   # of the adapted student
      lost = jnp.sum(batch['weights'][0] * classes.miss(logits, batch['labels'][0])) / c['Bq']
      return lost, logits[c['B']:]
    x, kept = batch['features'][:, :c['B']], jnp.arange(c['M'])[None] != own
    tokens = made.tokens(x)[0]
    teacher = made.aggregator(tokens, jnp.broadcast_to(kept[0], tokens.shape[:-1]))
    after = jax.tree.map(lambda p: p[0], made.students(x, kept))
    return jax.value_and_grad(loss, has_aux=True)(made), tokens, teacher, after, meta_dmoe.distance(
        made.student, teacher, x[0])

  with jax.default_matmul_precision('highest'):
    ((lost, logits), grads), tokens, teacher, after, inner = run(made)
  case.assert_close('tokens', np.delete(tokens, own, axis=1)), case.assert_close('teacher', teacher)
  case.assert_close('inner_loss', inner), case.assert_close('outer_loss', lost)
  case.assert_close('query_logits', logits)
  _compare(case, grads.student, BACKBONE, 'g.student.')
  _compare(case, grads.head, {'weight': (('w',), True), 'bias': (('b',), False)}, 'g.head.')
  _compare(case, grads.aggregator, _blocks(depth), 'g.agg.')
  _compare(case, after, BACKBONE, 'adapted.')
  assert not any(np.any(g) for g in jax.tree.leaves(grads.experts))  # they are frozen
