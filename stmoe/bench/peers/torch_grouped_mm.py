"""A layer around PyTorch's grouped products, `torch.nn.functional.grouped_mm`, differentiated by PyTorch.

Rows are sorted by expert and gathered once; weighted rows are added to their tokens by `index_add`.
"""

from stmoe.bench import torch_layer


def missing():
  reason = torch_layer.missing()
  if not reason:
    import torch
    if not hasattr(torch.nn.functional, 'grouped_mm'):
      return f'torch {torch.__version__} has no grouped_mm (pip install -U torch)'
  return reason


def variant(problem, floor):
  """Returns a Variant compared with a dense layer in PyTorch; `floor` is not used."""
  import torch
  functional, (num_experts, k) = torch.nn.functional, (problem.wi.shape[0], problem.expert.shape[1])

  def layer(x, expert, weight, wi, wg, wo):
    flat = expert.reshape(-1)                                        # [T k]
    order = flat.argsort(stable=True)
    token = order // k
    end = functional.one_hot(flat, num_experts).sum(0).cumsum(0).to(torch.int32)
    times = lambda rows, w: functional.grouped_mm(rows, w, offs=end)
    rows = x[token]                                                  # [T k, D]
    h = times(rows, wi)                                              # [T k, F]
    h = torch.relu(h) if wg is None else functional.silu(h) * times(rows, wg)
    y = times(h, wo) * weight.reshape(-1)[order, None].to(x.dtype)   # [T k, D]
    return torch.zeros_like(x).index_add(0, token, y)

  t = torch_layer.tensor
  banks = t(problem.wi), t(problem.wg), t(problem.wo)
  arguments = t(problem.x), t(problem.expert).long(), t(problem.weight), *banks
  return torch_layer.variant(layer, arguments, torch_layer.dense(problem))
