"""HoME: tasks in groups, a hierarchy of experts, normalised experts, feature gates, self-gates."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import batch_norm
from stmoe.parts.tasks import multi_gate

# What gates of the second level read, and what its experts read of the first one.
READ = dict(level='the states of the first level', features='x')


class FeatureGate(nnx.Module):
  """v * sum_r w_r 2 sigmoid(v B_r A_r), B_r [D,r], A_r [r,D]; w = softmax(v W), of one rank r it is 1.

  A gate of 1 is neutral. Differs: the public implementation returns the gate; this returns the product.
  """

  label = 'router'

  def __init__(self, width: int, ranks: tuple[int, ...], *, rngs):
    init = nnx.initializers.lecun_normal()
    self.down = nnx.List([axes.param(init, (width, r), 'embed', 'unmodeled', rngs=rngs) for r in ranks])
    self.up = nnx.List([axes.param(init, (r, width), 'unmodeled', 'embed', rngs=rngs) for r in ranks])
    self.mix = multi_gate.Gate(width, len(ranks), rngs=rngs)

  def __call__(self, v: jax.Array) -> jax.Array:
    """Returns [B,D] for v [B,D]."""
    gates = [2 * jax.nn.sigmoid(v @ b[...] @ a[...]) for b, a in zip(self.down, self.up)]
    return v * jnp.einsum('br,brd->bd', self.mix(v), jnp.stack(gates, axis=1))


class Home(multi_gate.Levels):
  """HoME (Wang et al., 2024, arXiv:2408.05430), for tasks in groups.

  First level, with a bank for each group g and a shared one S, gates G and self-gates over one's own bank:
    z_g = sum_{e in g+S} G_g(x)_e E_e + sum_{e in g} self_g(x)_e E_e,  z_S alike, of all banks
  Second level, of task t of group g: o_t mixes specific(t), category(g) and global experts, and once more
  specific(t) by a self-gate. Specific and category experts read z_g, global ones z_S.
  An expert is Swish(BN(MLP(v))). Ahead of the banks of the first level and of specific experts is a feature
  gate.

  Args:
    groups:     the tasks, by number from 0, of every group.
    meta, shared: experts of each group, and shared ones, in the first level.
    specific, category, common: experts of each task, of each group, and global ones, in the second.
    hidden:     widths of further layers of an expert, before the one of width H.
    normalized: False leaves BN away and takes ReLU, as MMoE's experts.
    group_size: rows that are normalised together, see `batch_norm.BatchNorm`.
    ranks:      of a feature gate's matrices, several are mixed (unverified); () = no feature gates.
    self_gate:  whether there are self-gates.
    reads:      what gates of the second level read: 'level', z_g, or 'features', x (unverified).
    joined:     experts of the second level read z_g and z_S side by side, global ones z_S twice (unverified).
  Losses: none. Metrics: zero_share of each level, see `multi_gate.Level`.
  Differs: the equations were checked in part against a public implementation. No reference numbers exist.
  """

  def __init__(self, width: int, d_model: int, num_tasks: int, *,
               groups: ranges.Many(ranges.Many(ranges.Natural, least=1), least=1), meta: ranges.Count = 2,
               shared: ranges.Count = 2, specific: ranges.Count = 1, category: ranges.Count = 1,
               common: ranges.Count = 1, hidden: ranges.Many(ranges.Count) = (),
               normalized: ranges.Flag = True, group_size: ranges.Count | None = None,
               ranks: ranges.Many(ranges.Count) = (8,), self_gate: ranges.Flag = True,
               reads: ranges.Choice(*READ) = 'level', joined: ranges.Flag = False, rngs):
    if sorted(sum(map(list, groups), [])) != list(range(num_tasks)):
      raise UserError(f'model.mixer.groups={tuple(map(tuple, groups))}: each of the {num_tasks} tasks, 0 to '
                      f'{num_tasks - 1}, is in one group; nearest: {(tuple(range(num_tasks)),)}')
    norm = functools.partial(batch_norm.BatchNorm, group_size=group_size) if normalized else None
    experts = dict(norm=norm, activation='swish' if normalized else 'relu')
    names = [f'group_{g}' for g in range(len(groups))]
    self.tasks = tuple((f'task_{t}', f'group_{g}') for t in range(num_tasks)
                       for g, members in enumerate(groups) if t in members)
    own = lambda name: name if self_gate else ''
    first = dict.fromkeys(names, meta) | dict(shared=shared)
    sees = {name: multi_gate.Sees((name, 'shared'), own(name)) for name in names}
    sees |= dict(shared=multi_gate.Sees(tuple(first), own('shared')))
    second = {task: specific for task, _ in self.tasks} | dict.fromkeys(names, category) | dict(common=common)
    mixes = {task: multi_gate.Sees((task, group, 'common'), own(task)) for task, group in self.tasks}
    above = 2 * d_model if joined else d_model
    level = functools.partial(multi_gate.Level, widths=(*hidden, d_model), experts=experts, rngs=rngs)
    self.levels = nnx.List([
        level(width, banks=first, sees=sees, gated=width),
        level(above, banks=second, sees=mixes, gated=width if reads == 'features' else d_model)])
    gate = functools.partial(FeatureGate, ranks=tuple(ranks), rngs=rngs)
    before = [(first, width), ([task for task, _ in self.tasks], above)] if ranks else []
    self.feature_gates = nnx.List([nnx.Dict({name: gate(size) for name in of}) for of, size in before])
    self.of_features, self.joined = reads == 'features', joined

  def __call__(self, x: jax.Array, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns ([B,K,H], dict layer name -> Aux) for x [B,D]."""
    first, second = self.levels
    inputs = {name: self._gated(0, name, x) for name, _ in first.banks}
    z, report = first(inputs, {name: x for name, _ in first.sees}, ctx)              # [B, H] each
    shared = z['shared']
    v = {name: jnp.concatenate([each, shared], -1) if self.joined else each for name, each in z.items()}
    inputs = v | dict(common=v['shared'])
    inputs |= {task: self._gated(1, task, v[group]) for task, group in self.tasks}
    read = {task: x if self.of_features else z[group] for task, group in self.tasks}
    o, other = second(inputs, read, ctx)
    return jnp.stack([o[task] for task, _ in self.tasks], axis=1), self.reported([report, other])

  def _gated(self, level, name, v):
    """V [B,D] of a bank, through its feature gate where there is one."""
    return self.feature_gates[level][name](v) if len(self.feature_gates) else v
