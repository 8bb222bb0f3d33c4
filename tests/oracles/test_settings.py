"""Recorded cases with other settings than were recorded, against values worked out in NumPy."""

import json
import types

import cases
import check_expert_choice
import check_m_smoe
import check_momentum_smoe
import check_promoe
import numpy as np
import pytest
from test_translations import case_of


def recorded(name):
  """(info, arrays) of our copy of the case METHOD/NAME."""
  path = cases.DEFAULT / f'{name}.json'
  with np.load(path.with_suffix('.npz')) as arrays:
    return json.loads(path.read_text()), dict(arrays)


def run(folder, info, arrays, **config):
  """Runs the check of a case with other settings `config`."""
  (folder / 'made.json').write_text(json.dumps(info | dict(config=info['config'] | config)))
  np.savez(folder / 'made.npz', **arrays)
  cases.run(cases.find(folder)[0])


def gradient(f, x, step=1e-5):
  """f64 of x's shape: the gradient of f(x) by central differences."""
  g = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    move = np.zeros_like(x)
    move[i] = step
    g[i] = (f(x + move) - f(x - move)) / (2 * step)
  return g


def softmax(z):
  return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


SCORES = dict(softmax=softmax, sigmoid=lambda z: 1 / (1 + np.exp(-z)),
              sqrtsoftplus=lambda z: np.sqrt(np.log1p(np.exp(z))))


def megatron(z, c, bias, given=None):
  """(weights [T,E], choices [T,k] in order of their index) of Megatron-LM's router."""
  scores, of = SCORES[c['score_function']](z), c['score_function']
  chooser = scores if of == 'softmax' or bias is None else scores + bias
  choice = np.sort(np.argsort(-chooser, -1)[:, :c['k']]) if given is None else given
  weights = np.take_along_axis(scores, choice, -1)
  if of == 'softmax' and not c['softmax_before_topk'] or of != 'softmax' and c['k'] > 1:
    weights = weights / weights.sum(-1, keepdims=True)
  dense = np.zeros_like(z)
  np.put_along_axis(dense, choice, weights * (c['scale'] or 1), -1)
  return dense, choice.astype(np.int32)


@pytest.mark.parametrize('score, before, k, scale, biased', [
    ('softmax', False, 1, 2.5, False), ('softmax', True, 2, 2.0, True), ('sigmoid', True, 1, None, False),
    ('sqrtsoftplus', False, 2, 1.5, True)])
def test_replay_of_every_score(tmp_path, score, before, k, scale, biased):
  info, _ = recorded('routing_replay/softmax_before')
  c = dict(T=6, E=4, k=k, score_function=score, softmax_before_topk=before, scale=scale, expert_bias=biased)
  rng = np.random.default_rng(0)
  old, new, cotangent = (rng.normal(size=(6, 4)).astype(np.float32).astype(float) for _ in range(3))
  bias = np.float32([0.3, -0.3, 0.2, 0]) if biased else None
  rollout, choice = megatron(old, c, bias)
  live, chosen = megatron(new, c, bias)
  loss = lambda z: np.sum(megatron(z, c, bias, choice)[0] * cotangent)
  arrays = dict(rollout_probs=rollout, replay_probs=megatron(new, c, bias, choice)[0], live_probs=live,
                grad_train_logits=gradient(loss, new), rollout_logits=old, train_logits=new,
                cotangent=cotangent) | ({} if bias is None else dict(expert_bias=bias))
  arrays = {name: np.float32(a) for name, a in arrays.items()}
  arrays |= dict(recorded=choice, changed=np.int32((choice != chosen).any(-1).sum()))
  run(tmp_path, info, arrays, **c)


def test_one_choice_of_quantile_balancing_weighs_its_score(tmp_path):
  info, _ = recorded('quantile_balancing/softmax_k2')
  z = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  falling, choice = np.sort(z)[:, ::-1], z.argmax(-1)
  quantile = np.sort(z - falling[:, 1:2], axis=0)[::-1][2]           # T k / E = 2 are above it
  probs = np.eye(3)[choice] * SCORES['sigmoid'](z)
  arrays = dict(logits=z[None], indices=choice[None, :, None].astype(np.int32), probs=np.float32(probs[None]),
                quantile=quantile[None], bias=np.stack([np.zeros(3, np.float32), quantile - quantile.mean()]))
  run(tmp_path, info, arrays, T=6, E=3, k=1, steps=1, score_function='sigmoid')


def test_expert_choice_has_no_balance_loss_and_may_have_no_expert_without_classes(tmp_path):
  info, arrays = recorded('promoe/ec_sigmoid_c4')
  arrays['labels'][0] = 1000                                         # chosen for like the others
  for name in ('w_up', 'b_up', 'w_down', 'b_down', 'grad_w_up'):
    arrays[name] = arrays[name][:-1]
  run(tmp_path, info, arrays, load_balance_loss_coef=0.1, use_uncond_expert=False)


def test_balance_of_gates_that_are_no_probabilities():
  rng = np.random.default_rng(0)
  x, prototypes = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 4))
  unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
  gates = SCORES['sigmoid'](unit(x[1]) @ unit(prototypes).T)         # the first image has no class
  f = np.bincount(np.argsort(-gates)[:, :2].ravel(), minlength=3) / 6
  router = types.SimpleNamespace(prototypes=prototypes, gate='sigmoid', k=2)
  found = check_promoe._balance(router, np.float32(x), np.array([[False] * 3, [True] * 3]))
  np.testing.assert_allclose(found, 3 * np.sum(f * softmax(gates).mean(0)), rtol=1e-5)


def test_an_expert_that_was_never_called_is_not_pruned(tmp_path):
  info, arrays = recorded('wanda/n2_m4')
  arrays |= {name: np.zeros_like(arrays[name]) for name in ('scaler_row', 'score', 'pruned_mask')}
  arrays |= dict(x=arrays['x'][:0], pruned_weight=arrays['weight'])
  run(tmp_path, info, arrays, calls=0, tokens_per_call=[])


def test_as_many_groups_as_experts_are_all_but_the_least_used():
  used = np.array([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
  merged = np.array([True, True, False])
  assert check_m_smoe._allocated(used, 3, merged).tolist() == [3, 1, 3]


def test_the_one_choice_of_mixtral_weighs_1():
  rng = np.random.default_rng(0)
  w, v, gate = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3))
  x = np.float32(rng.normal(size=(1, 5, 3)))
  y = check_m_smoe._block(dict(E=2, top_k=1, F=4, D=3), dict(wi=w, wg=w, wo=v), np.arange(2), gate, x)
  h = np.einsum('td,edf->etf', x[0], w)
  each = np.einsum('etf,efd->etd', h * h * SCORES['sigmoid'](h), v)
  expected = each[(x[0] @ gate.T).argmax(-1), np.arange(5)]
  np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-4)


def test_a_stack_has_routers_of_one_choice(tmp_path):
  info, arrays = recorded('momentum_smoe/stack_glam_momentum_cache')
  header = case_of(tmp_path, 'momentum_smoe', 'stack', info['config'] | dict(k=1), **arrays)
  case = cases.Case(header.path)
  blocks = check_momentum_smoe.models_hf.layers_of(check_momentum_smoe._model(case).decoder)
  weights = case.group('param/')
  for i, block in enumerate(blocks):
    check_momentum_smoe._block(block, f'layers.{i}.', weights, 1)
  assert {block.layer.inner.router.k for block in blocks if hasattr(block.layer, 'inner')} == {1}


def test_a_loss_of_other_levels_and_ratios_without_variances(tmp_path):
  rng = np.random.default_rng(0)
  image, noise, output = (rng.normal(size=(3, 1, 2, 2)).astype(np.float32) for _ in range(3))
  t, abar = np.array([0, 20, 99]), np.cumprod(1 - np.linspace(1e-3, 0.2, 100))
  of = lambda a: a[t][:, None, None, None]
  weight = of(np.minimum(abar / (1 - abar), 3) / (abar / (1 - abar)))
  mse = (weight * (output - noise) ** 2).mean((1, 2, 3))
  c = dict(schedule='linear', steps=100, loss_weight='min_snr_3', B=3, C=1, H=2, learn_sigma=False)
  arrays = dict(x0=image, noise=noise, model_output=output, mse=mse, loss=mse.mean(),
                grad_model_output=weight * 2 * (output - noise) / 12, alpha_bar=abar[[0, 1, 10]],
                x_t=of(np.sqrt(abar)) * image + of(np.sqrt(1 - abar)) * noise)
  header = case_of(tmp_path, 'switch_dit', 'ddpm_loss', c, t=t,
                   **{name: np.float32(array) for name, array in arrays.items()})
  cases.run(header)


def test_the_whole_rate_loses_the_least_active_unit(tmp_path):
  info, a = recorded('read_me/mask_c4_ties')
  size = np.abs(np.random.default_rng(0).normal(size=a['activation'].shape)).astype(np.float32)
  mask = size > size.min(1, keepdims=True)
  h = np.float64(a['x']) @ a['gate_proj'].T
  h = h * SCORES['sigmoid'](h) * (a['x'] @ a['up_proj'].T)
  run(tmp_path, info, a | dict(
      activation=size, residual=np.float32(mask.all(0)), private=np.float32(mask & ~mask.all(0)),
      **{f'y_{name}': np.float32((h * of) @ a['down_proj'].T)
         for name, of in dict(ids=mask[a['ids']], expert1=mask[1], dense=1).items()}), remain_rate=1.0)


def test_a_convolution_without_padding(tmp_path):
  """Kernels of 3 x 3 with nothing beside their middle do what those of 1 x 1 do, to inner pixels."""
  info, a = recorded('adv_moe/conv_e3_ties')
  inner, own = np.s_[..., 1:3, 1:3], np.arange(3)[:, None] == a['choice']          # [E, B]
  out, upstream = a['out'][inner], a['upstream'][inner]
  dx, dw = np.zeros_like(a['x']), np.zeros((3, 3, 2, 3, 3), np.float32)            # [E, F, C, 3, 3]
  dx[inner] = a['grad_x'][inner]
  for i, j in np.ndindex(3, 3):
    dw[..., i, j] = np.einsum('eb,bfhw,bchw->efc', own, upstream, a['x'][..., i:i + 2, j:j + 2])
  of_images = np.sum(out * upstream, axis=(1, 2, 3))
  run(tmp_path, info, a | dict(
      weight=np.pad(a['weight'], ((0, 0), (0, 0), (1, 1), (1, 1))), out=out, upstream=upstream, grad_x=dx,
      grad_weight=dw.reshape(9, 2, 3, 3), grad_scores=own.T * of_images[:, None]), kernel=3)


def test_thirds_of_nodes_that_three_does_not_divide(tmp_path):
  one = np.float32([[0.9, 0.1]])
  arrays = dict(p_weak=one.repeat(4, 0), p_strong=one[:, ::-1].repeat(4, 0), y=np.array([0, 1, 0, 1]),
                confidence=np.full((4, 1), 0.75, np.float32), uniform=np.full((1, 4, 1), 0.5, np.float32))
  values = dict(acc_multi=[1, 0, 0.5], acc_joint=[1, 0, 0.5], weak_share_multi=1, weak_share_joint=0.75)
  cases.run(case_of(tmp_path, 'mowst', 'inference', dict(N=4, C=2, m_times=1), **arrays,
                    **{name: np.float32(value) for name, value in values.items()}))


def test_another_distance_inside_of_a_node(tmp_path):
  info, arrays = recorded('moetuner/l3_e6_g3')
  arrays |= {name: 2 * arrays[name] for name in ('distance', 'placement_cost', 'best_stage2_cost')}
  run(tmp_path, info, arrays, distance='0 same device, 2 same node, 7 across nodes')


def test_experts_that_take_all_tokens_have_no_ties():
  plan = np.array([[0.5, 0.5], [1.0, 0.2]])
  assert check_expert_choice._clear(plan, 1).tolist() == [False, True]
  assert check_expert_choice._clear(plan, 2).tolist() == [True, True]


def test_corrupted_spans_alone(tmp_path):
  info, arrays = recorded('backbone/span_corruption')
  arrays.pop('length_table')
  run(tmp_path, info, arrays)


def test_two_real_tokens_of_twenty(tmp_path):
  """Each of two experts is the first of one token and the second of the other."""
  c = dict(expert_capacity_argument=2, capacity_factor=None, second_expert_policy='all', gating_logit_cap=0.0,
           second_expert_threshold=0.0, normalise_before_drop=False)
  z = np.zeros((1, 20, 2))
  z[0, :2] = [[1.0, -0.5], [0.3, 0.8]]
  cotangent = np.random.default_rng(0).normal(size=(1, 20, 2, 2)).astype(np.float32)
  slots = np.zeros((1, 20, 2, 2), np.float32)
  slots[0, :2] = [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]

  def aux(z):
    share = 0.1 + 1e-6                                               # f and P are means over all 20
    return 2 * np.sum(1 / 20 / share * softmax(z[0, :2]).sum(0) / 20 / share)
  combine = lambda z: softmax(z)[..., None] * slots
  values = dict(aux_loss=aux(z), combine_tensor=combine(z), over_capacity_1=0, over_capacity_2=0,
                paddings=np.arange(20)[None] > 1, grad_aux_wrt_logits=gradient(aux, z), logits=z,
                grad_combine_wrt_logits=gradient(lambda z: np.sum(cotangent * combine(z)), z))
  cases.run(case_of(tmp_path, 'gshard', 'praxis_top2', c, cotangent=cotangent, dispatch_tensor=slots,
                    dispatch_0_1_2=np.int32([0, 0, 2]),
                    **{name: np.float32(value) for name, value in values.items()}))


def test_units_match_by_their_gelus(tmp_path):
  wi, x = (np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32) for n in (3, 9))
  cases.run(case_of(tmp_path, 'm_smoe', 'permutation_activation_matching', dict(activation='gelu', eps=1e-7),
                    ref_wi=wi, tgt_wi=wi[[2, 0, 1]], x=x, perm=np.int32([1, 2, 0])))


def test_groups_of_an_odd_number_of_layers(tmp_path):
  logits = np.float32([[[2, 1], [2, 1], [0, 1]], [[1, 2], [1, 2], [1, 2]], [[2, 1], [2, 1], [2, 1]]])
  length = np.sqrt(np.einsum('lte,lte->le', logits, logits))
  cosine = np.einsum('lti,ltj->lij', logits, logits) / length[:, :, None] / length[:, None]
  c = dict(layers=3, average_groups=1, merged_layers=[True] * 3, encoder_group_capacity=None)
  cases.run(case_of(tmp_path, 'm_smoe', 'statistics_and_groups', c, router_logits=logits,
                    usage=np.float32([[2 / 3, 1 / 3], [0, 1], [1, 0]]), similarity=(cosine + 1) / 2,
                    num_groups=np.int32([1, 1, 1]), labels=np.zeros((3, 2), np.int32),
                    dominant=np.int32([[0, -1], [1, -1], [0, -1]])))
