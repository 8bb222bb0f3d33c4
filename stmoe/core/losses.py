"""Every published auxiliary loss of a router, one pure function each, unweighted.

Letters: G groups, S tokens per group, E experts, k choices. Each function returns the
sum over groups and real tokens divided by `tokens` (default: the number of real tokens).
A trainer passes the count of the whole batch divided by the number of microbatches. Then
the mean over microbatches is the value of the undivided batch. Coefficients and
the reduction over layers belong to the configuration.
"""

import jax
import jax.numpy as jnp


def token_mean(values: jax.Array, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns sum over real tokens of `values` divided by `tokens`; masked values may be NaN.

  Args:
    values: f32[G,S], an entry per token, or f32[G], an entry per group that counts for each of its tokens.
    mask:   bool[G,S], True = real token.
    tokens: f32[] divisor; None = the number of real tokens (at least 1).

  >>> import jax.numpy as jnp
  >>> mask = jnp.array([[True, True, False]])
  >>> float(token_mean(jnp.array([[1.0, 3.0, jnp.nan]]), mask))
  2.0
  >>> float(token_mean(jnp.array([5.0]), mask, tokens=4.0))
  2.5
  """
  mask = mask.astype(bool)
  count = jnp.sum(mask, axis=1, dtype=jnp.float32)                   # [G]
  tokens = jnp.maximum(count.sum(), 1) if tokens is None else tokens
  if values.ndim == 1:
    return jnp.sum(jnp.where(count > 0, values * count, 0)) / tokens
  return jnp.sum(jnp.where(mask, values, 0)) / tokens


def balance_of_groups(probs: jax.Array, choice: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[G], E * sum_e f_e P_e of each group over its real tokens; see `balance`.

  The references differ only in how they combine these numbers. Switch and GShard average
  them over groups of equal size. flaxformer, when it ignores padding, still divides both
  f and P by S: flaxformer's value is the value here times (real tokens / S) squared.

  Args:
    probs:  f32[G,S,E].
    choice: i32[G,S,k]; every listed choice counts.
    mask:   bool[G,S].

  >>> import jax.numpy as jnp
  >>> probs = jnp.array([[[0.75, 0.25], [0.75, 0.25]]])
  >>> balance_of_groups(probs, jnp.zeros((1, 2, 1), int), jnp.ones((1, 2), bool)).tolist()
  [1.5]
  """
  experts = probs.shape[-1]
  real = mask.astype(probs.dtype)[..., None]                         # [G, S, 1]
  count = jnp.maximum(real.sum(axis=1), 1)                           # [G, 1]
  chosen = jax.nn.one_hot(choice, experts, dtype=probs.dtype).sum(axis=2)          # [G, S, E]
  f = jnp.sum(chosen * real, axis=1) / count                         # [G, E], no gradient
  p = jnp.sum(jnp.where(real > 0, probs, 0), axis=1) / count         # [G, E]
  return experts * jnp.sum(f * p, axis=-1)                           # [G]


def balance(probs: jax.Array, choice: jax.Array, mask: jax.Array,
            tokens: jax.Array | None = None) -> jax.Array:
  """Returns the load-balancing loss of GShard and Switch.

  E * sum_e f_e P_e per group: f_e is the share of real tokens that chose expert e before
  any drop, P_e their mean probability. The gradient goes through P only. GShard
  (arXiv:2006.16668, section 2.2), Switch (arXiv:2101.03961, eq. 4-6).

  Args:
    probs:  f32[G,S,E] router probabilities.
    choice: i32[G,S,k] the choices that count: the first only (`choice[..., :1]`; GShard,
      ST-MoE, Mesh) or any of the k (flaxformer).
    mask:   bool[G,S] real tokens.
    tokens: see `token_mean`.
  Returns:
    f32[]: 1 at uniform probabilities per choice counted (k when all k count), E when one
    expert takes every token with certainty.
  Differs: GShard prints 1/E * sum_e (c_e/S) m_e; all code multiplies by E squared.

  >>> import jax.numpy as jnp
  >>> mask = jnp.ones((1, 4), bool)
  >>> choice = jnp.array([[[0], [1], [0], [1]]])
  >>> float(balance(jnp.full((1, 4, 2), 0.5), choice, mask))
  1.0
  >>> certain = jnp.tile(jnp.array([1.0, 0.0]), (1, 4, 1))
  >>> float(balance(certain, jnp.zeros((1, 4, 1), int), mask))
  2.0
  """
  return token_mean(balance_of_groups(probs, choice, mask), mask, tokens)


def without_first(probs: jax.Array, first: jax.Array) -> jax.Array:
  """Returns f32[G,S,E], the probabilities of the second choice: `probs` without `first`, rescaled.

  >>> import jax.numpy as jnp
  >>> without_first(jnp.array([[[0.5, 0.25, 0.25]]]), jnp.array([[0]])).tolist()
  [[[0.0, 0.5, 0.5]]]
  """
  rest = jnp.where(jax.nn.one_hot(first, probs.shape[-1], dtype=bool), 0, probs)   # [G, S, E]
  return rest / (rest.sum(axis=-1, keepdims=True) + 1e-9)


def second_place(probs: jax.Array, choice: jax.Array, mask: jax.Array,
                 tokens: jax.Array | None = None) -> jax.Array:
  """Returns the balance loss of second choices (Mesh-TensorFlow, there weighted by 0.5).

  As `balance`, with the second choices and with the probabilities that remain when the
  first choice is taken away.

  Args:
    probs:  f32[G,S,E].
    choice: i32[G,S,k], k >= 2.
    mask, tokens: see `balance`.
  Returns:
    f32[], 1 at perfect balance.

  >>> import jax.numpy as jnp
  >>> choice = jnp.array([[[0, 1], [1, 0]]])
  >>> float(second_place(jnp.full((1, 2, 2), 0.5), choice, jnp.ones((1, 2), bool)))
  1.0
  """
  return balance(without_first(probs, choice[..., 0]), choice[..., 1:2], mask, tokens)


def z(logits: jax.Array, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns the router z-loss of ST-MoE (arXiv:2202.08906, eq. 5): mean of logsumexp squared.

  Args:
    logits: f32[G,S,E], the logits that gave the probabilities.
    mask:   bool[G,S] real tokens.
    tokens: see `token_mean`.
  Returns:
    f32[]: (ln E)^2 at zero logits; 0 only where logsumexp is 0.

  >>> import jax.numpy as jnp
  >>> round(float(z(jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool))), 4)
  1.9218
  """
  safe = jnp.where(mask.astype(bool)[..., None], logits, 0)          # logsumexp of -inf has a NaN gradient
  return token_mean(jax.nn.logsumexp(safe, axis=-1) ** 2, mask, tokens)


def popularity(token_probs: jax.Array, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns the loss of Mesh-TensorFlow's expert selection: all tokens should be wanted equally.

  Per group n * sum_s P_s^2. P_s is the mean over experts of token s's probability (a
  softmax over the n real tokens of the group).

  Args:
    token_probs: f32[G,S,E], normalised over S for every expert.
    mask, tokens: see `balance`.
  Returns:
    f32[]: 1 when every token is equally wanted, n when all experts want one token.

  >>> import jax.numpy as jnp
  >>> float(popularity(jnp.full((1, 4, 2), 0.25), jnp.ones((1, 4), bool)))
  1.0
  """
  real = mask.astype(jnp.float32)
  wanted = jnp.mean(token_probs, axis=-1) * real                     # [G, S]
  return token_mean(real.sum(axis=1) * jnp.sum(wanted ** 2, axis=1), mask, tokens)


def squared_variation(amounts: jax.Array) -> jax.Array:
  """Returns f32[G], the squared coefficient of variation over experts of amounts f32[G,E]; 0 = balanced.

  Population variance over squared mean; a group without any amount has 0.

  >>> import jax.numpy as jnp
  >>> squared_variation(jnp.array([[2.0, 2.0], [4.0, 0.0], [0.0, 0.0]])).tolist()
  [0.0, 1.0, 0.0]
  """
  mean = jnp.mean(amounts, axis=-1)
  safe = jnp.where(mean > 0, mean, 1)
  return jnp.var(amounts, axis=-1) / safe ** 2                       # not std: its gradient at 0 is NaN


def importance(probs: jax.Array, mask: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
  """Returns the importance loss: experts should have equal summed probabilities.

  Squared coefficient of variation over experts of sum_s p_s, per group (Shazeer et al.,
  arXiv:1701.06538, section 4; V-MoE, arXiv:2106.05974, appendix A).

  Args:
    probs: f32[G,S,E], of the logits without noise.
    mask, tokens: see `balance`.
  Returns:
    f32[]: 0 at balance, E - 1 when one expert has everything.

  >>> import jax.numpy as jnp
  >>> float(importance(jnp.array([[[1.0, 0.0], [0.5, 0.5]]]), jnp.ones((1, 2), bool)))
  0.25
  """
  amounts = jnp.sum(jnp.where(mask[..., None], probs, 0), axis=1)    # [G, E]
  return token_mean(squared_variation(amounts), mask, tokens)


def load(logits: jax.Array, noisy: jax.Array, k: int, noise_std: float, mask: jax.Array,
         tokens: jax.Array | None = None) -> jax.Array:
  """Returns the load loss: experts should be among the k best equally often, were the noise drawn anew.

  Squared coefficient of variation over experts of sum_s 1 - Phi((t_s - z_s) / sigma), per
  group. t_s is the k-th largest noisy logit of token s (V-MoE, arXiv:2106.05974, appendix
  A). The gradient goes through z and through t.

  Args:
    logits:    f32[G,S,E] without noise; noisy: f32[G,S,E] with the noise that was drawn.
    noise_std: sigma, the standard deviation of that noise, above 0.
    mask, tokens: see `balance`.
  Returns:
    f32[]: 0 at balance, E - 1 when for k = 1 one expert is sure of every token.

  >>> import jax.numpy as jnp
  >>> logits = jnp.array([[[9.0, 0.0], [9.0, 0.0]]])
  >>> round(float(load(logits, logits, 1, 0.5, jnp.ones((1, 2), bool))), 4)
  1.0
  """
  # A product, because the transpose of a gather or of top_k is a scatter.
  at = jax.lax.top_k(jax.lax.stop_gradient(noisy), k)[1][..., -1]    # [G, S]
  chosen = jax.nn.one_hot(at, logits.shape[-1], dtype=bool)
  threshold = jnp.sum(jnp.where(chosen, noisy, 0), axis=-1, keepdims=True)         # [G, S, 1]
  wins = jax.scipy.stats.norm.cdf((logits - threshold) / noise_std)  # 1 - Phi(x) = Phi(-x)
  amounts = jnp.sum(jnp.where(mask[..., None], wins, 0), axis=1)     # [G, E]
  return token_mean(squared_variation(amounts), mask, tokens)
