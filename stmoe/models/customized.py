"""A deployed network, a small local expert of one user, and a gate that says which of the two answers."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts.tasks import tower

# What the gate learns; see `Customized`.
LEARNS = dict(source='whose row this is', error='which network is right', joint='likelihood of the mixture')
READS = dict(input='the features', states="the generic network's last hidden layer")
ANSWERS = dict(hard='of the network that the gate chooses', soft='the mixture of both',
               generic='of the generic network alone', local='of the local expert alone')


class Customized(nnx.Module):
  """Low-cost customisation (Zhang, Davoodi and Hu, 2018, arXiv:1811.00056); details are ours (unverified).

  GE, LE and the gate GN are networks with ReLU. r(x) = sigmoid(GN(x)), and the answer is LE(x) if r > 1/2,
  else GE(x). Each learns from its own rows, and no gradient passes from one to another:
    GE from generic rows, the loss of the target. User rows are in its value, but have no gradient
    LE from user rows: loss `local`, the cross-entropy
    GN from user rows and stored generic rows: loss `gate`
  Section `groups` of the configuration says when each trains: GE first, then LE, then GN.

  Args:
    num_features, vocab_size: of a row; K classes.
    generic, local, gate: widths of the hidden layers of GE, LE, GN.
    learns:  'source': log loss of r for 1 on user rows, 0 on generic ones. 'error': 1 where GE is wrong and
      LE right, 0 where GE is right; other rows do not count. 'joint': -log of the mixture's probability.
    reads:   what the gate reads; with 'states' GE runs for every row.
    answers: in evaluation: 'hard', or 'soft': r softmax(LE / T) + (1 - r) softmax(GE). 'generic' and 'local'
      are of GE and of LE alone, whatever the gate says.
    right:   weight in `local` of user rows which GE gets right; below 1 LE corrects GE's errors.
    classes: of the local expert, which gives -1e9 for other classes; () = all.
    temperature: T of LE in mixtures: an expert of few rows is over-confident.
  Losses: local, gate; both sums over their rows, over all rows of a batch.
  """

  targets = ('labels',)

  def __init__(self, *, num_features: ranges.Count, vocab_size: ranges.Count, d_model: ranges.Count = 1,
               generic: ranges.Many(ranges.Count, least=1) = (64,), local: ranges.Many(ranges.Count) = (16,),
               gate: ranges.Many(ranges.Count) = (8,), learns: ranges.Choice(*LEARNS) = 'source',
               reads: ranges.Choice(*READS) = 'input', answers: ranges.Choice(*ANSWERS) = 'hard',
               right: ranges.Share = 1.0, classes: ranges.Many(ranges.Natural) = (),
               temperature: ranges.Positive = 1.0, blocks=None, rngs):
    if max(classes, default=0) >= vocab_size:
      raise UserError(f'model.classes={tuple(classes)}: there are {vocab_size} classes, from 0; nearest: '
                      f'{tuple(c for c in classes if c < vocab_size)}')
    self.trunk = tower.Tower((num_features, *generic), rngs=rngs)
    self.generic = tower.Tower((generic[-1], vocab_size), rngs=rngs)
    self.local = tower.Tower((num_features, *local, vocab_size), rngs=rngs)
    read = num_features if reads == 'input' else generic[-1]
    self.gate = tower.Tower((read, *gate, 1), rngs=rngs)
    self.num_features, self.vocab_size = num_features, vocab_size
    self.learns, self.reads, self.answers = learns, reads, answers
    self.right, self.classes, self.temperature = right, tuple(classes), temperature

  def __call__(self, batch: dict, key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (logits f32[B,1,K], aux: dict(gate=Aux)); in training the logits of GE.

    Args:
      batch: features f32[B,F], labels i32[B,1], weights [B,1]; given/user i32[B], 1 for rows of the user;
        given/stored i32[B], 1 for rows that the gate learns from.
      key, train, step: as of all models; nothing is random.
      tokens: dict of `count_tokens`; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    x, real = self._features(batch), batch['weights'][:, 0] > 0
    states = jax.nn.relu(self.trunk(x))                              # [B, D]
    generic, local = self.generic(states), self._local(x)            # [B, K]
    read = x if self.reads == 'input' else jax.lax.stop_gradient(states)
    r = self.gate(read)[:, 0]                                        # [B], before the sigmoid
    chosen = jnp.stack([r <= 0, r > 0], axis=1) & real[:, None]
    aux = contract.Aux({}, jnp.sum(chosen, axis=0, dtype=jnp.float32), {})
    if train:
      user, stored = batch['given/user'] > 0, batch['given/stored'] > 0
      labels = batch['labels'][:, 0]
      losses = dict(local=jnp.where(user & real, self._wanted(generic, local, labels), 0),
                    gate=jnp.where(stored & real, self._gate_loss(r, generic, local, labels, user), 0))
      mean = {name: jnp.sum(each) / jnp.maximum(tokens['decoder'], 1) for name, each in losses.items()}
      logits = jnp.where(user[:, None], jax.lax.stop_gradient(generic), generic)
      return logits[:, None], dict(gate=aux.replace(losses=mean))
    answers = dict(hard=jnp.where(r[:, None] > 0, local, generic), soft=self._mixture(r, generic, local),
                   generic=generic, local=local)
    return answers[self.answers][:, None], dict(gate=aux)

  def _features(self, batch):
    found = batch['features'].shape[-1] if 'features' in batch else 0
    if found != self.num_features:
      raise UserError(f'model.num_features={self.num_features}, and the data have {found}; nearest: '
                      f'model.num_features={found}')
    for name in ('user', 'stored'):
      if f'given/{name}' not in batch:
        raise UserError(f"model.name='customized' reads given/{name}, whether a row is so (0 or 1), and the "
                        'data have none; nearest: data.source=customized_digits')
    return batch['features']

  def _local(self, x):
    logits = self.local(x)
    if not self.classes:
      return logits
    there = jnp.isin(jnp.arange(self.vocab_size), jnp.array(self.classes))
    return jnp.where(there, logits, -1e9)

  def _wanted(self, generic, local, labels):
    """F32[B], the weighted cross-entropy of the local expert."""
    wrong = jnp.argmax(generic, axis=1) != labels
    return jnp.where(wrong, 1.0, self.right) * _nll(jax.nn.log_softmax(local), labels)

  def _gate_loss(self, r, generic, local, labels, user):
    """F32[B], the loss of the gate's r f32[B], before the sigmoid."""
    generic, local = jax.lax.stop_gradient((generic, local))
    if self.learns == 'joint':
      return _nll(self._mixture(r, generic, local), labels)
    wanted, counts = user, jnp.ones_like(user)
    if self.learns == 'error':
      of_generic, of_local = (jnp.argmax(x, axis=1) == labels for x in (generic, local))
      wanted, counts = ~of_generic & of_local, of_generic | of_local
    return jnp.where(counts, jax.nn.softplus(r) - wanted * r, 0)

  def _mixture(self, r, generic, local):
    """Log f32[B,K] of the mixture's probabilities."""
    parts: tuple[typing.Any, ...] = (
        jax.nn.log_sigmoid(r)[:, None] + jax.nn.log_softmax(local / self.temperature),
        jax.nn.log_sigmoid(-r)[:, None] + jax.nn.log_softmax(generic))
    return jnp.logaddexp(*parts)

  def count_tokens(self, batch: dict) -> dict:
    """Returns the real rows of `batch`: dict(decoder=f32[])."""
    return {'decoder': jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list:
    """Returns the list of the model's stacks: there are none."""
    return []


def _nll(logs, labels):
  """F32[B], minus the entries of logs f32[B,K] at labels i32[B]."""
  return -jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
