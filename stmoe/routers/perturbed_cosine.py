"""The perturbed cosine router: constants are added to the lengths (arXiv:2405.14131)."""

import jax

from stmoe import ranges
from stmoe.core import gate
from stmoe.routers import x_moe


class PerturbedCosine(x_moe.XMoE):
  """X-MoE with cosines h v / ((|h| + tau) (|v| + tau_experts)), smooth at h = 0 (arXiv:2405.14131).

  Near h = 0 the gradient is at most |v| / tau; that of the cosine grows as 1 / |h|. Short tokens have flat
  probabilities.

  Args:
    tau, tau_experts: what is added to the lengths of tokens and of experts (0.1 in CompeteSMoE's code).
    others:           see `x_moe.XMoE`.
  Losses: balance (first choices), z (of the cosines), entropy (of sequences).
  Differs: experts' vectors are divided in the graph. CompeteSMoE's code divides the parameter at every call:
    its length tends to embedding_norm - tau_experts, so that tau_experts has no lasting effect there.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               width: ranges.Whole(2) | None = None, tau: ranges.Positive = 0.1,
               tau_experts: ranges.NonNegative = 0.1,
               temperature: ranges.Number('of at least 0.01', low=0.01) = 0.3,
               fixed_temperature: ranges.Flag = False, embedding_norm: ranges.Positive = 1.0,
               double_softmax: ranges.Flag = False, capacity_factor: ranges.Factors = (None, None), rngs):
    super().__init__(d_model, num_experts=num_experts, k=k, width=width, temperature=temperature,
                     fixed_temperature=fixed_temperature, embedding_norm=embedding_norm,
                     double_softmax=double_softmax, capacity_factor=capacity_factor, rngs=rngs)
    self.tau = tau
    self.tau_experts = tau_experts

  def embeddings(self) -> jax.Array:
    """Returns the experts' vectors f32[E,R]."""
    return self.embedding_norm * perturbed(self.v[...], self.tau_experts)

  def projected(self, x: jax.Array) -> jax.Array:
    """Returns f32[G,S,R] for x [G,S,D]."""
    return perturbed(gate.logits(x, self.w[...]), self.tau)


def perturbed(x: jax.Array, tau: float) -> jax.Array:
  """Returns vectors x [...,R] over their length + tau."""
  return x / (x_moe.length(x) + tau)
