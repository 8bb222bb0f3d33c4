"""Mowst: a weak and a strong network over nodes, and how sure the weak one is decides between them.

(arXiv:2311.05185). The weak network, an MLP, sees a node alone. The strong network, a GNN, sees its
neighbours, too. How the two predictions become a loss and an answer is the target's (`targets/mowst.py`).
"""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import mixture
from stmoe.models import graph as graph_models
from stmoe.parts import alone
from stmoe.parts import graph as graphs
from stmoe.parts.networks import mlp


def dispersion(logits: jax.Array) -> jax.Array:
  """Returns f32[...,2], how far predictions are from uniform, by variance and by entropy; no gradient.

  Var_c(p) / (1/C - 1/C^2) and 1 - H(p) / ln C, of p = softmax(logits) (arXiv:2311.05185). Both are 0 of a
  uniform prediction, 1 of a certain one.

  >>> dispersion(jnp.array([[0.0, 0.0, 0.0], [99.0, 0.0, 0.0]])).round(4).tolist()
  [[0.0, 0.0], [1.0, 1.0]]

  Args:
    logits: f32[...,C].
  """
  log_p = jax.nn.log_softmax(jax.lax.stop_gradient(logits))
  p, classes = jnp.exp(log_p), max(logits.shape[-1], 2)
  variance = jnp.mean(jnp.square(p - jnp.mean(p, axis=-1, keepdims=True)), axis=-1)
  entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0), axis=-1)
  certain = 1 / classes - 1 / classes ** 2                           # the variance of a one-hot
  return jnp.stack([variance / certain, 1 - entropy / math.log(classes)], axis=-1)


def answered(confidence: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns f32[...], the share of draws in which the weak expert answers: u < c.

  Args:
    confidence: c f32[...]; uniform: u f32[n,...], n draws.
  """
  return jnp.mean(uniform < confidence, axis=0, dtype=jnp.float32)


class Hyper(nnx.Module):
  """w2 relu(d w1 + b1) + b2 for every node; a matrix makes w1, b1, w2 and b2 of the node's features x.

  The note gives no sizes of this form of the gate: its hidden width is D, and nothing is in between (u).
  """

  def __init__(self, num_features: int, width: int, *, rngs):
    self.maker = graphs.Linear(num_features, 4 * width + 1, 'unmodeled', rngs=rngs)
    self.width = width

  def __call__(self, x: jax.Array, graph: graphs.Graph, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (f32[B,N,1], {}) for x [B,N,2+F], dispersions d and features."""
    d, w = x[..., :2], self.width
    first, b1, second, b2 = jnp.split(self.maker(x[..., 2:]), [2 * w, 3 * w, 4 * w], axis=-1)
    hidden = jnp.einsum('bni,bniw->bnw', d, first.reshape(*d.shape, w)) + b1
    return jnp.sum(jax.nn.relu(hidden) * second, axis=-1, keepdims=True) + b2, {}


class Gate(nnx.Module):
  """The confidence c = sigmoid(G(d)), or sigmoid(G([d, x])), of the weak expert's dispersions d.

  Args:
    num_features: F of x.
    kind:         'dispersion', 'features' for [d, x], or 'hyper', see `Hyper`.
    fields:       of an MLP as the weak expert is one: width, num_layers, dropout_rate, batch_norm.
  """

  label = 'gate'

  def __init__(self, num_features: int, kind: str, fields: dict, *, rngs):
    self.reads_features = kind != 'dispersion'
    wide = 2 + num_features * self.reads_features
    self.network: typing.Any = mlp.Mlp(wide, 1, **fields, name='gate', rngs=rngs)
    if kind == 'hyper':
      self.network = Hyper(num_features, fields['width'], rngs=rngs)

  def __call__(self, d: jax.Array, x: jax.Array, graph: graphs.Graph,
               ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (c f32[B,N], dict name -> Statistic) for d [B,N,2] and x [B,N,F]."""
    read = jnp.concatenate([d, x], axis=-1) if self.reads_features else d
    logits, statistics = self.network(read, graph, ctx)              # [B, N, 1]
    return jax.nn.sigmoid(logits)[..., 0], statistics


class Experts(nnx.Module):
  """A weak network, a strong network and a gate; see `Mowst`."""

  def __init__(self, num_features: int, num_outputs: int, weak: str, strong: str, gate: str, fields: dict, *,
               rngs):
    make = lambda kind, name: lookup.recipe('network', dict(name=kind))(
        num_features, num_outputs, **fields, name=name, rngs=rngs)
    self.weak, self.strong = make(weak, 'weak'), make(strong, 'strong')
    self.gate = Gate(num_features, gate, fields, rngs=rngs)

  def __call__(self, x: jax.Array, graph: graphs.Graph, ctx: contract.Context,
               again: bool = False) -> tuple:
    """Returns (logits f32[B,N,2,C], c f32[B,N], dict name -> Statistic) for x [B,N,F].

    again: takes the dispersion of the softmax, to which softmax is applied once more.
    """
    weak, of_weak = self.weak(x, graph, ctx)                         # [B, N, C]
    strong, of_strong = self.strong(x, graph, ctx)
    d = dispersion(jax.nn.softmax(weak) if again else weak)          # [B, N, 2]
    with jax.named_scope('route'):
      confidence, of_gate = self.gate(d, x, graph, ctx)
    return jnp.stack([weak, strong], axis=2), confidence, of_weak | of_strong | of_gate


class Mowst(nnx.Module):
  """A weak expert answers with confidence c, the strong expert with 1 - c (arXiv:2311.05185).

  In training by turns (Mowst), two groups of parameters take turns: weak and gate, and strong. Without groups
  all train together (Mowst*). See `configs/mowst`.

  Args:
    num_features: F.
    num_outputs: C.
    d_model:      D, hidden width of both experts and of the gate.
    weak, strong: networks of `parts/networks`: 'mlp', 'gcn', 'sage', 'gin'.
    num_layers:   of both experts and of the gate.
    dropout_rate, batch_norm: of all three.
    gate:         what the gate reads: 'dispersion'; 'features', those of the node beside; or 'hyper', where
      the features make the gate.
    draws:        draws of an expert for every node in evaluation, whose mean counts; 0 = their expectation.
    double_softmax: evaluation takes the dispersion of softmax(softmax(logits)), as the released test of
      Mowst* does. The confidence is then another than in training.
  State: running means of the batch norms.
  Differs: the published code keeps the last gate with the best experts; here all are of one step.
  """

  targets = 'labels'                   # a class of every node

  def __init__(self, *, num_features: ranges.Count, num_outputs: ranges.Count, d_model: ranges.Count,
               weak: ranges.Called('network') = 'mlp', strong: ranges.Called('network') = 'gcn',
               num_layers: ranges.Count = 2, dropout_rate: ranges.Below1 = 0.0,
               batch_norm: ranges.Flag = True,
               gate: ranges.Choice('dispersion', 'features', 'hyper') = 'dispersion',
               draws: ranges.Natural = 50, double_softmax: ranges.Flag = False, rngs):
    fields = dict(width=d_model, num_layers=num_layers, dropout_rate=dropout_rate, batch_norm=batch_norm)
    self.encoder = alone.Alone('encoder', Experts(num_features, num_outputs, weak, strong, gate, fields,
                                                  rngs=rngs))
    self.num_features = num_features
    self.draws = draws
    self.double_softmax = double_softmax

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (`mixture.Mixture` of nodes [B,N] and E = 2, aux: dict(encoder=Aux)).

    The load of an expert is the sum of its weights over nodes.

    Args:
      batch, key, train, step, tokens: see `graph.Graph`. In evaluation the key draws who answers.
    """
    x, graph, ctx = graph_models.read(batch, self.num_features, key, train, step, tokens)
    again = self.double_softmax and not train
    logits, confidence, statistics = self.encoder.network(x, graph, ctx, again)
    weights = apart(confidence)                                      # [B, N, 2]
    answers = weights if train else apart(self._drawn(confidence, ctx.fold('draws').key))
    load = jnp.sum(jnp.where(ctx.mask[..., None], weights, 0), axis=(0, 1))
    aux = contract.Aux(losses={}, load=load, statistics=statistics,
                       metrics=dict(confidence=load[0] / jnp.maximum(ctx.tokens, 1)))
    return mixture.Mixture(logits, weights, answers), {'encoder': aux}

  def _drawn(self, confidence: jax.Array, key: typing.Any) -> jax.Array:
    """f32[B,N], the share of the draws in which the weak expert answers."""
    if key is None or not self.draws:
      return confidence
    return answered(confidence, jax.random.uniform(key, (self.draws, *confidence.shape)))

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the nodes in `batch`: dict(encoder=f32[])."""
    return graph_models.count(batch)

  def stacks(self) -> list:
    """Returns the list of the model's stacks: both experts and the gate."""
    return [self.encoder]


def apart(confidence: jax.Array) -> jax.Array:
  """Returns f32[...,2], what the weak and the strong expert have: c and 1 - c, of c f32[...]."""
  return jnp.stack([confidence, 1 - confidence], axis=-1)
