"""Hugging Face transformers' experts in its implementation 'grouped_mm', `torch.nn.functional.grouped_mm`."""

import types

from stmoe.bench import torch_layer


def missing():
  return torch_layer.missing('transformers')


def variant(problem, floor):
  """Returns a Variant compared with a dense layer in PyTorch; `floor` is not used."""
  import torch
  from transformers.integrations import moe
  gated, functional = problem.wg is not None, torch.nn.functional
  fixed = dict(num_experts=problem.wi.shape[0], has_gate=gated, has_bias=False, has_post_expert_norm=False,
               is_transposed=True, is_concatenated=True, _is_expert_parallel=False,
               act_fn=functional.silu if gated else functional.relu)

  def gate(both):
    into, up = both.chunk(2, dim=-1)
    return functional.silu(into) * up

  def layer(x, expert, weight, into, out):
    experts = types.SimpleNamespace(**fixed, up_proj=into, gate_up_proj=into, down_proj=out, _apply_gate=gate)
    return moe.grouped_mm_experts_forward(experts, x, expert, weight)

  t = torch_layer.tensor
  into = t(problem.wi)                                               # [E, D, F], or [E, D, 2F]
  if gated:
    into = torch.cat([into, t(problem.wg)], -1).detach().requires_grad_()
  arguments = t(problem.x), t(problem.expert).long(), t(problem.weight), into, t(problem.wo)
  return torch_layer.variant(layer, arguments, torch_layer.dense(problem))
