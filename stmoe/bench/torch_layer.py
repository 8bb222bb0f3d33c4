"""What the peers made with PyTorch share: arrays moved over, a floor of their own, timed calls."""

import importlib.util

import jax

from stmoe.bench import layers as bench


def missing(*packages):
  """Returns why a peer that needs PyTorch and `packages` cannot run here, '' if it can."""
  for package in ('torch', *packages):
    if importlib.util.find_spec(package) is None:
      return f'{package} is not installed (pip install {package})'
  import torch
  if jax.default_backend() != 'cpu' and not torch.cuda.is_available():
    return 'PyTorch sees no GPU'
  return ''


def tensor(a):
  """Returns a leaf tensor that shares the memory of a JAX array, on its device; None of None."""
  import torch
  if a is None:
    return None
  shared = torch.from_dlpack(a)
  return shared.requires_grad_(shared.dtype.is_floating_point)


def variant(layer, arguments, floor=None):
  """Returns a `bench.Variant` of layer(*arguments) and of its gradients to all arguments that have some."""
  import torch
  learned = [a for a in arguments if a is not None and a.requires_grad]
  wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

  def forward():
    with torch.no_grad():
      layer(*arguments)
    wait()

  def train():
    y = layer(*arguments)
    torch.autograd.grad(y, learned, y.detach().cos())
    wait()
  return bench.Variant(dict(forward=forward, train=train), {}, floor=floor)


def dense(problem):
  """Returns the Variant of a dense layer with the FLOPs of the active experts, as PyTorch computes it."""
  import torch
  hidden = problem.wi.shape[2] * problem.expert.shape[1]
  x = tensor(problem.x)
  normal = lambda *shape: torch.randn(*shape, device=x.device, dtype=x.dtype).mul_(0.02).requires_grad_()
  width = x.shape[1]
  if problem.wg is None:
    mlp = lambda x, wi, wo: torch.relu(x @ wi) @ wo
    return variant(mlp, (x, normal(width, hidden), normal(hidden, width)))
  glu = lambda x, wi, wg, wo: (torch.nn.functional.silu(x @ wi) * (x @ wg)) @ wo
  return variant(glu, (x, normal(width, hidden), normal(width, hidden), normal(hidden, width)))
