"""What every executor computes: what `einsum` computes, values and all gradients."""

import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import execution
from stmoe.core import assignment


def every_case_of_choices(name: str) -> None:
  """Choices of all kinds: one expert takes all, some get nothing, ties, padding, drops; dead edges of NaN."""
  for k, capacity in ((1, 5), (2, 9), (4, execution.S)):
    execution.choices(name, k, capacity)


def every_bank(name: str) -> None:
  """Every bank of experts."""
  for bank in lookup.available('experts'):
    execution.against(name, execution.made('random', 2, 9), execution.bank(bank))


def bfloat16_in_and_out(name: str) -> None:
  """Activations in bfloat16 give bfloat16, and float32 gradients of weights and parameters."""
  x, bank, a = execution.activations(jnp.bfloat16), execution.bank('mlp'), execution.made('padding', 2, 9)
  y, (dx, dweight, dbank) = execution.run(x, a.weight, bank, a, executor=name)
  assert y.dtype == dx.dtype == jnp.bfloat16, (y.dtype, dx.dtype)
  assert dweight.dtype == jnp.float32, dweight.dtype
  want = execution.run(x.astype(jnp.float32), a.weight, bank, a, executor='einsum')
  execution.same((y, (dx, dweight, dbank)), want, tolerance=0.03)


def virtual_experts_never_reach_a_matmul(name: str) -> None:
  """Edges to virtual experts are left to the layer."""
  shape, experts = (execution.G, execution.S, 2), execution.E
  expert = jnp.asarray(np.random.default_rng(0).integers(0, experts + 2, size=shape))
  edges = assignment.from_choices(expert, jnp.ones(shape), experts, num_virtual=2)
  execution.against(name, assignment.cap(edges, 9), execution.bank('mlp'))


def choices_of_routers(name: str) -> None:
  """What routers choose: Switch, GShard and expert choice, in which an expert chooses its tokens."""
  for router in ('switch', 'gshard', 'expert_choice'):
    execution.agree(router, [name])
