"""ScatterMoE's `parallel_linear` in Triton (Tan et al., 2024, arXiv:2403.08245).

Its interface is that of the public repository in 2026 (`flatten_sort_count`, `parallel_linear`); it needs a
GPU, and this file has not been run on one yet.
"""

import jax

from stmoe.bench import torch_layer


def missing():
  if jax.default_backend() != 'gpu':
    return 'scattermoe runs on GPUs only'
  return torch_layer.missing('scattermoe')


def variant(problem, floor):
  """Returns a Variant compared with a dense layer in PyTorch; `floor` is not used."""
  import torch
  from scattermoe import parallel_experts
  num_experts, k = problem.wi.shape[0], problem.expert.shape[1]

  def layer(x, expert, weight, wi, wg, wo):
    tables = parallel_experts.flatten_sort_count(expert, num_experts)
    into = lambda w: parallel_experts.parallel_linear(x, w, k, *tables, grouped_out=True)
    h = torch.relu(into(wi)) if wg is None else torch.nn.functional.silu(into(wi)) * into(wg)
    return parallel_experts.parallel_linear(h, wo, 1, *tables, grouped_in=True, gates=weight)

  t = torch_layer.tensor
  arguments = (t(problem.x), t(problem.expert).long(), t(problem.weight.astype(problem.x.dtype)),
               t(problem.wi), t(problem.wg), t(problem.wo))
  return torch_layer.variant(layer, arguments, torch_layer.dense(problem))
