"""Balance losses of another scope than a group of tokens: sequences, devices, what is sent, layers.

Letters: G groups, S tokens per group, E experts, k choices, Q sequences of a group.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def sequences(segments: jax.Array, positions: jax.Array) -> jax.Array:
  """Returns i32[G,S], the number of each token's sequence in its group, counted from 0.

  A sequence begins where the segment changes or the position falls back, because groups may hold several
  packed rows. A sequence that a group's border cuts counts as two.

  >>> sequences(jnp.array([[1, 1, 2, 1, 1]]), jnp.array([[0, 1, 0, 0, 1]])).tolist()
  [[0, 0, 1, 2, 2]]
  """
  begins = (segments[:, 1:] != segments[:, :-1]) | (positions[:, 1:] < positions[:, :-1])
  return jnp.cumsum(jnp.pad(begins, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)


def neighbours(segments: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns bool[G,S,S], whether two tokens are real (mask bool[G,S]) and of one of `sequences`.

  >>> ones = jnp.ones((1, 3), jnp.int32)
  >>> neighbours(ones, jnp.array([[1, 0, 1]]), jnp.array([[True, True, False]])).tolist()
  [[[True, False, False], [False, True, False], [False, False, False]]]
  """
  sequence = sequences(segments, positions)                          # [G, S]
  return (sequence[:, :, None] == sequence[:, None, :]) & mask[:, None, :] & mask[:, :, None]


class Shares(NamedTuple):
  """What balance losses multiply, for each sequence (or each whole group: Q = 1).

  f:     f32[G,Q,E] share of the choices of each expert times E: 1 at balance; no gradient.
  p:     f32[G,Q,E] mean probability.
  count: f32[G,Q] real tokens.
  """
  f: jax.Array
  p: jax.Array
  count: jax.Array                   # type: ignore[assignment]  # hides the method of tuples


def shares(probs: jax.Array, choice: jax.Array, mask: jax.Array, sequence: jax.Array | None = None) -> Shares:
  """Returns the Shares of probs f32[G,S,E] and choice i32[G,S,k] over the real tokens mask bool[G,S].

  Args:
    sequence: i32[G,S] of `sequences`, or None: a whole group is one sequence.

  >>> s = shares(jnp.full((1, 4, 2), 0.5), jnp.array([[[0], [0], [0], [1]]]), jnp.ones((1, 4), bool))
  >>> s.f.tolist(), s.p.tolist(), s.count.tolist()
  ([[[1.5, 0.5]]], [[[0.5, 0.5]]], [[4.0]])
  """
  experts, k = probs.shape[-1], choice.shape[-1]
  chosen = jax.nn.one_hot(choice, experts, dtype=jnp.float32).sum(axis=2)          # [G, S, E]
  count = _sums(jnp.ones(mask.shape + (1,)), mask, sequence)[..., 0]               # [G, Q]
  mean = lambda values: _sums(values, mask, sequence) / jnp.maximum(count, 1)[..., None]
  return Shares(mean(chosen) * (experts / k), mean(probs), count)


def _sums(values, mask, sequence):
  """[G,S,N] -> [G,Q,N]: sums over the real tokens of each sequence."""
  values = jnp.where(mask.astype(bool)[..., None], values, 0)
  if sequence is None:
    return values.sum(axis=1, keepdims=True)
  add = lambda values, sequence: jax.ops.segment_sum(values, sequence, values.shape[0])
  return jax.vmap(add)(values, sequence)


def _mean(each, count, tokens):
  """Mean over sequences of f32[G,Q]; every sequence counts for each of its tokens (`losses.token_mean`)."""
  return jnp.sum(each * count) / (jnp.maximum(count.sum(), 1) if tokens is None else tokens)


def expert_loss(shares: Shares, tokens: jax.Array | None = None) -> jax.Array:
  """Returns the expert-level balance loss f32[] (DeepSeekMoE, arXiv:2401.06066, section 3.3): 1 at balance.

  sum_e f_e P_e of every sequence, averaged with their tokens as weights; gradient through P only.

  Args:
    shares: f, p: f32[G,Q,E]; tokens: see `losses.token_mean`.
  Differs: the released code's mean gives sequences equal weights; its sequences have equal lengths.

  >>> s = shares(jnp.array([[[0.75, 0.25]]]), jnp.array([[[0]]]), jnp.ones((1, 1), bool))
  >>> float(expert_loss(s))
  1.5
  """
  return _mean(jnp.sum(shares.f * shares.p, axis=-1), shares.count, tokens)


def counted_loss(probs: jax.Array, counts: jax.Array, mask: jax.Array,
                 tokens: jax.Array | None = None) -> jax.Array:
  """Returns the balance loss f32[] of all groups together, by choices that were counted: 1 at balance.

  E sum_e f_e P_e, f the share of `counts`, P the mean probability of the real tokens here. f may be of more
  tokens than these, those of a whole step (arXiv:2501.11873). The gradient goes through P only.

  Args:
    probs:  f32[G,S,E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    counts: f32[E] choices of each expert.

  >>> float(counted_loss(jnp.array([[[0.75, 0.25]]]), jnp.array([3.0, 1.0]), jnp.ones((1, 1), bool)))
  1.25
  """
  f = jax.lax.stop_gradient(counts / jnp.maximum(counts.sum(), 1)) * counts.size
  real = jnp.where(mask[..., None], probs, 0)
  count = jnp.maximum(mask.sum(dtype=jnp.float32), 1) if tokens is None else tokens
  return jnp.sum(f * real.sum(axis=(0, 1))) / count


def device_loss(shares: Shares, num_groups: int, tokens: jax.Array | None = None) -> jax.Array:
  """Returns the device-level balance loss f32[] (arXiv:2401.06066, section 3.3): 1 at balance.

  sum_d f'_d P'_d over `num_groups` contiguous groups of experts: f' is the mean of f, P' the sum of P.

  Args:
    shares: f, p: f32[G,Q,E]; tokens: see `losses.token_mean`.

  >>> probs, choice = jnp.array([[[0.75, 0.25, 0.0, 0.0]]]), jnp.array([[[0, 1]]])
  >>> float(device_loss(shares(probs, choice, jnp.ones((1, 1), bool)), 2))
  2.0
  """
  f, p = (a.reshape(*a.shape[:2], num_groups, -1) for a in shares[:2])             # [G, Q, groups, E/groups]
  return _mean(jnp.sum(f.mean(axis=-1) * p.sum(axis=-1), axis=-1), shares.count, tokens)


def communication_loss(shares: Shares, choice: jax.Array, mask: jax.Array, sequence: jax.Array | None,
                       num_groups: int, kept_groups: int, tokens: jax.Array | None = None) -> jax.Array:
  """Returns the communication balance loss f32[] (DeepSeek-V2, arXiv:2405.04434, section 2.2.3).

  sum_d f''_d P'_d: f'' is the share of tokens with a choice in group d, times groups / kept
  groups. The loss is 1 at balance when every token reaches all groups it may.

  Args:
    shares: p: f32[G,Q,E]; choice: i32[G,S,k]; mask: bool[G,S]; sequence: i32[G,S] or None.
    tokens: see `losses.token_mean`.

  >>> choice, mask = jnp.array([[[0, 1]]]), jnp.ones((1, 1), bool)
  >>> s = shares(jnp.array([[[0.75, 0.25, 0.0, 0.0]]]), choice, mask)
  >>> float(communication_loss(s, choice, mask, None, num_groups=2, kept_groups=1))
  2.0
  """
  group = choice // (shares.p.shape[-1] // num_groups)               # [G, S, k]
  sent = jax.nn.one_hot(group, num_groups, dtype=jnp.float32).max(axis=2)          # [G, S, groups]
  f = _sums(sent, mask, sequence) / jnp.maximum(shares.count, 1)[..., None] * (num_groups / kept_groups)
  p = shares.p.reshape(*f.shape, -1).sum(axis=-1)                    # [G, Q, groups]
  return _mean(jnp.sum(f * p, axis=-1), shares.count, tokens)


def layers(probs: jax.Array, chosen: jax.Array, count: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[G], l times the balance loss C_l of a group's tokens in l sparse layers together; 0 of none.

  C_l = E sum_e f_e P_e with f and P means over layers and tokens (RMoE, arXiv:2408.06793, the released code):
  k at balance. One layer's imbalance may be made up for by another layer. If layer l reports
  l C_l - (l-1) C_(l-1), the mean over L layers is C_L, and no layer needs to know L.

  Args:
    probs, chosen: f32[G,S,E] sums over layers of probabilities, and of choices as ones; no gradient of these.
    count: f32[G,S] l, the same for all tokens.
    mask:  bool[G,S] real tokens.

  Two layers that send everything to one expert each, another one:

  >>> probs = jnp.array([[[1.0, 1.0]]])
  >>> layers(probs, probs, jnp.array([[2.0]]), jnp.ones((1, 1), bool)).tolist()
  [2.0]
  """
  tokens = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]            # [G, 1]
  mean = lambda sums: jnp.sum(jnp.where(mask[..., None], sums, 0), axis=1) / tokens          # [G, E]
  product = jnp.sum(mean(chosen) * mean(probs), axis=-1)             # l^2 sum_e f_e P_e
  return probs.shape[-1] * product / jnp.maximum(count[:, 0], 1)


def passes(sums: jax.Array, count: jax.Array, mask: jax.Array, sequence: jax.Array | None = None,
           tokens: jax.Array | None = None) -> jax.Array:
  """Returns f32[], l times the entropy loss C_l of l passes of tokens through one layer together; 0 of none.

  C_l is `negative_entropy`, with P a mean over passes and tokens of a sequence (MoEUT, arXiv:2405.16039). An
  expert may be left out of one pass and used in another. If pass l reports l C_l - (l-1) C_(l-1), the mean
  over L passes is C_L, and no pass needs to know L.

  Args:
    sums:  f32[G,S,E] probabilities, added up over passes.
    count: f32[G,S] l, the same for all tokens.
    mask, sequence, tokens: see `shares` and `losses.token_mean`.

  Two passes, a sure expert in each of them, the other one:

  >>> ones = jnp.ones((1, 1))
  >>> of = lambda sums, l: round(float(passes(jnp.array([[sums]]), l * ones, ones)), 4) + 0.0
  >>> of([0.0, 0.0], 0), of([1.0, 0.0], 1), of([1.0, 1.0], 2)
  (0.0, 0.0, -1.3863)
  """
  mean = sums / jnp.maximum(count, 1)[..., None]                     # [G, S, E]
  first = jnp.zeros((*mask.shape, 1), jnp.int32)                     # no choice matters
  return jnp.max(count) * negative_entropy(shares(mean, first, mask, sequence), tokens)


def negative_entropy(shares: Shares, tokens: jax.Array | None = None) -> jax.Array:
  """Returns f32[], the mean over sequences of sum_e P_e ln P_e: -ln E at balance. Tokens are the weights.

  The regulariser of sigma-MoE (arXiv:2310.10837, section 4) and SwitchHead (arXiv:2312.07987).

  Args:
    shares: p: f32[G,Q,E]; tokens: see `losses.token_mean`.

  >>> s = shares(jnp.full((1, 4, 2), 0.5), jnp.zeros((1, 4, 1), int), jnp.ones((1, 4), bool))
  >>> round(float(negative_entropy(s)), 4)
  -0.6931
  """
  logs = jnp.log(jnp.where(shares.p > 0, shares.p, 1))               # safe before the singular function
  return _mean(jnp.sum(shares.p * logs, axis=-1), shares.count, tokens)
