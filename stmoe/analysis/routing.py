"""Where tokens go: the choices of every router of a model, read from its Assignments.

`trace` wraps each router so that its Assignment comes back in Aux beside the metrics. The
wrapped model is the same model: it runs under scan, rematerialisation and jit as before.
"""

import dataclasses

from flax import nnx
import jax
import numpy as np

from stmoe.core import assignment


class Traced(nnx.Module):
  """A router that also reports its edges, as Aux.metrics['edges']."""

  def __init__(self, router):
    self.router = router
    self.num_experts = router.num_experts

  def init_carry(self, x):
    """Returns the wrapped router's memory across layers, {} for most."""
    return self.router.init_carry(x) if hasattr(self.router, 'init_carry') else {}

  def __call__(self, x, ctx, carry):
    """Returns the wrapped router's Routed for x [G,S,D], with its edges [G,N] among the metrics."""
    routed = self.router(x, ctx, carry)
    a = routed.assignment
    if not isinstance(a, assignment.Edges):                          # mixtures of all tokens have none
      return routed
    edges = dict(token=a.token, expert=a.expert, weight=a.weight)
    return routed.replace(aux=routed.aux.replace(metrics={**routed.aux.metrics, 'edges': edges}))


@dataclasses.dataclass(frozen=True)
class Choices:
  """What one sparse layer did with one batch.

  experts: [B][T] list of (expert, weight) of each token, largest weight first; an empty
    list for a token that no expert took, and for padding.
  num_experts: E.
  """
  layer: str
  experts: list
  num_experts: int


def trace(model):
  """Returns a copy of `model` whose routers report their edges; `model` is unchanged."""
  copy = nnx.clone(model)
  owners = [m for _, m in nnx.iter_modules(copy) if hasattr(m, 'router') and not isinstance(m, Traced)]
  for owner in owners:
    owner.router = Traced(owner.router)
  return copy


def choices(model, batch):
  """Returns dict layer name -> Choices for one batch, as at evaluation (no noise).

  A layer with several routers reports a tuple of their edges; they are called NAME.0, NAME.1, ...
  Layers whose router mixes all tokens instead of choosing are left out, and heads, which choose once a row.

  Args:
    model: a model of `stmoe.models`.
    batch: dict of i32[B,T], the names of the data pipeline.
  """
  _, aux = jax.jit(lambda m, b: m(b))(trace(model), batch)
  found = {}
  for layer, report in jax.device_get(aux).items():
    if 'edges' not in report.metrics or f'{stack_of(layer)}_segment_ids' not in batch:
      continue
    mask, several = np.asarray(batch[f'{stack_of(layer)}_segment_ids']) > 0, report.metrics['edges']
    routers = {layer: several} if isinstance(several, dict) else {
        f'{layer}.{m}': edges for m, edges in enumerate(several)}
    num_experts = report.load.shape[-1] // len(routers)
    for name, edges in routers.items():
      found[name] = Choices(name, per_token(**edges, mask=mask, num_experts=num_experts), num_experts)
  return found


def stack_of(layer):
  """Returns 'encoder' or 'decoder' for a layer name such as 'decoder_03'."""
  return layer.split('_')[0]


def per_token(token, expert, weight, mask, num_experts):
  """Returns [B][T] lists of (expert, weight) from edges, largest weight first.

  Args:
    token, expert: i32[G,N]; weight: f32[G,N]. Expert ids >= num_experts are dead edges.
    mask: bool[B,T] real tokens; groups are runs of its B*T tokens in order.
  """
  groups, size = token.shape[0], mask.size // token.shape[0]
  place = (np.arange(groups)[:, None] * size + token).ravel()        # [G*N] in [0, B*T)
  taken = [[] for _ in range(mask.size)]
  for where, e, w in zip(place, expert.ravel(), weight.ravel()):
    if e < num_experts and mask.flat[where]:
      taken[where].append((int(e), float(w)))
  taken = [sorted(t, key=lambda pair: -pair[1]) for t in taken]
  return [taken[row * mask.shape[1]:(row + 1) * mask.shape[1]] for row in range(mask.shape[0])]


def specialisation(chosen, ids, top=8):
  """Returns, for each expert, (share of all choices, [(token id, count, lift), ...]).

  The tokens are those whose count n at the expert most exceeds what independence of token
  and expert would give, m, by the G statistic n log(n/m); lift is n/m, 1.0 for a token
  that the expert gets as often as any other.

  Args:
    chosen: Choices.
    ids:    i32[B,T] token ids.
  """
  ids = np.asarray(ids)
  pairs = np.array([(e, ids[b, t]) for b, row in enumerate(chosen.experts) for t, taken in enumerate(row)
                    for e, _ in taken], dtype=np.int64).reshape(-1, 2)
  counts = np.zeros((chosen.num_experts, int(ids.max()) + 1))        # [E, V]
  np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
  total = max(counts.sum(), 1)
  expected = counts.sum(1, keepdims=True) * counts.sum(0) / total    # [E, V]
  lift = counts / np.maximum(expected, 1e-9)
  score = counts * np.log(np.maximum(lift, 1e-9))
  table = []
  for e in range(chosen.num_experts):
    best = [v for v in np.argsort(-score[e], kind='stable')[:top] if score[e, v] > 0]
    table.append((float(counts[e].sum() / total),
                  [(int(v), int(counts[e, v]), float(lift[e, v])) for v in best]))
  return table
