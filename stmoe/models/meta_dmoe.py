"""Meta-DMoE: experts of groups of domains teach a student one step on unlabelled images of a new domain.

(arXiv:2210.03885). The features of the experts, which are frozen, become the teacher's features of an image.
The student is trained so that one step towards the teacher's features makes it better in that domain.
"""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.core import noise
from stmoe.core.units import activations
from stmoe.core.units import classes
from stmoe.errors import UserError
from stmoe.parts import norm as norms


class Linear(nnx.Module):
  """x w + b; of several experts w is [M,D,F], and `jax.vmap` over the module runs them."""

  def __init__(self, fan_in: int, fan_out: int, *, experts: int = 0, axis: str = 'mlp', rngs):
    many, named = ((experts,), ('expert',)) if experts else ((), ())
    init = nnx.initializers.lecun_normal(batch_axis=tuple(range(len(many))))
    self.w = axes.param(init, (*many, fan_in, fan_out), *named, 'embed', axis, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (*many, fan_out), *named, axis, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [...,F] for x [...,D]."""
    return x @ self.w[...] + self.b[...]


class Backbone(nnx.Module):
  """Features [...,D] of an image of F numbers: w2 act(w1 x + b1) + b2.

  Args:
    experts: M of several backbones with arrays [M,...], or 0.
    rows:    images of a row of a batch that pass, for counting operations.
  """

  def __init__(self, num_features: int, d_ff: int, d_model: int, activation: str, rows: int, *,
               experts: int = 0, rngs):
    self.first = Linear(num_features, d_ff, experts=experts, rngs=rngs)
    self.second = Linear(d_ff, d_model, experts=experts, axis='unmodeled', rngs=rngs)
    self.activation = activation
    self.rows_per_sequence = rows

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [...,D] for x [...,F]."""
    return self.second(activations.named(self.activation)(self.first(x)))


class Attention(nnx.Module):
  """Multi-head attention among the M tokens of an image, with biases; scores over sqrt(D / heads)."""

  def __init__(self, d_model: int, heads: int, tokens: int, *, rngs):
    self.joined = Linear(d_model, 3 * d_model, axis='unmodeled', rngs=rngs)
    self.out = Linear(d_model, d_model, axis='unmodeled', rngs=rngs)
    self.heads = heads
    self.products_per_row = 4 * d_model ** 2 + 2 * tokens * d_model

  def __call__(self, x: jax.Array, kept: jax.Array, drop: typing.Callable) -> jax.Array:
    """Returns [...,M,D] for x [...,M,D]; kept: bool[...,M] the tokens that there are."""
    q, k, v = (part.reshape(*x.shape[:-1], self.heads, -1)
               for part in jnp.split(self.joined(x), 3, axis=-1))    # [..., M, H, P]
    scores = jnp.einsum('...mhp,...nhp->...hmn', q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(kept[..., None, None, :], scores, -jnp.inf), axis=-1)
    y = jnp.einsum('...hmn,...nhp->...mhp', drop(weights, 'attention'), v)
    return self.out(y.reshape(x.shape))


class Block(nnx.Module):
  """T + attention(LN T), then T + W2 gelu(W1 LN T)."""

  def __init__(self, d_model: int, heads: int, d_ff: int, tokens: int, *, rngs):
    self.attention_norm, self.norm = (norms.LayerNorm(d_model, rngs=rngs) for _ in range(2))
    self.attention = Attention(d_model, heads, tokens, rngs=rngs)
    self.first = Linear(d_model, d_ff, rngs=rngs)
    self.second = Linear(d_ff, d_model, axis='unmodeled', rngs=rngs)

  def __call__(self, x: jax.Array, kept: jax.Array, drop: typing.Callable) -> jax.Array:
    """Returns [...,M,D] for tokens x [...,M,D]; see `Aggregator`."""
    x = x + self.attention(self.attention_norm(x), kept, drop)
    hidden = jax.nn.gelu(self.first(self.norm(x)), approximate=False)
    return x + drop(self.second(drop(hidden, 'hidden')), 'out')


class Aggregator(nnx.Module):
  """The teacher's features of an image: a transformer over its M expert tokens, then their mean.

  There are no positions and no norm at the end. A token that is not kept is not there: attention does not see
  that token, nor does the mean.
  """

  label = 'aggregator'

  def __init__(self, d_model: int, depth: int, heads: int, d_ff: int, tokens: int, dropout_rate: float,
               rows: int, *, rngs):
    if d_model % heads:
      near = ', '.join(map(str, errors.divisors(d_model)))
      raise UserError(f'model.num_heads={heads} does not divide model.d_model={d_model}; possible: {near}')
    self.blocks = nnx.List([Block(d_model, heads, d_ff, tokens, rngs=rngs) for _ in range(depth)])
    self.dropout_rate = dropout_rate
    self.rows_per_sequence = rows * tokens

  def __call__(self, tokens: jax.Array, kept: jax.Array, ctx: contract.Context | None = None) -> jax.Array:
    """Returns f32[...,D] for tokens [...,M,D] and kept bool[...,M]; ctx: of dropout, None = without."""
    x = tokens
    for i, block in enumerate(self.blocks):
      def drop(y, name, i=i):
        return y if ctx is None else noise.dropout(y, self.dropout_rate, ctx.fold(f'{name}_{i}').key)
      x = block(x, kept, drop)
    there = kept[..., None]
    return jnp.sum(jnp.where(there, x, 0), axis=-2) / jnp.sum(there, axis=-2)


class Pretrained(nnx.Module):
  """What only the pre-training needs: heads of the M experts, and the norm and head of the aggregator."""

  products_per_row = 0                 # in meta-training nothing passes

  def __init__(self, d_model: int, num_outputs: int, num_experts: int, *, rngs):
    self.of_experts = Linear(d_model, num_outputs, experts=num_experts, axis='unmodeled', rngs=rngs)
    self.norm = norms.LayerNorm(d_model, rngs=rngs)
    self.of_aggregator = Linear(d_model, num_outputs, axis='unmodeled', rngs=rngs)
    self.label = 'pretrained'

  def expert_logits(self, features: jax.Array) -> jax.Array:
    """Returns f32[...,M,C] for the experts' features [...,M,D]."""
    return jnp.einsum('...md,mdc->...mc', features, self.of_experts.w[...]) + self.of_experts.b[...]

  def logits(self, features: jax.Array) -> jax.Array:
    """Returns f32[...,C] for the aggregator's features [...,D]."""
    return self.of_aggregator(self.norm(features))


def distance(student: typing.Callable, teacher: jax.Array, x: jax.Array) -> jax.Array:
  """Returns f32[], the inner loss mean (A(T(x)) - h(x))^2 of teacher [n,D] and images x [n,F]."""
  return jnp.mean(jnp.square(teacher - student(x)))


def adapted(student: typing.Any, teacher: jax.Array, x: jax.Array, rate: float, steps: int = 1,
            first_order: bool = False) -> typing.Any:
  """Returns the student after steps of theta - rate grad distance(theta) on images x [n,F] without labels.

  Args:
    student:     a module, images [n,F] -> features [n,D].
    teacher:     f32[n,D], which has a gradient through the step.
    first_order: no gradient goes through the gradient of the step.
  """
  for _ in range(steps):
    grads = jax.grad(distance)(student, teacher, x)
    grads = jax.lax.stop_gradient(grads) if first_order else grads
    student = jax.tree.map(lambda p, g: p - rate * g, student, grads)
  return student


class MetaDmoe(nnx.Module):
  """A student that adapts to a domain, its M experts and their aggregator (arXiv:2210.03885).

  A row of a batch holds S images of one domain. The first of them, without labels, adapt a copy of the
  student, which predicts all S. Source domains are cut into M groups of nearly equal number, in order. In
  training the expert of the row's own group is not there; new domains have all M.

  In the first `pretrain_steps`, everything is trained by itself: each expert on the images of its group, the
  aggregator with a head of its own, and the student, which does not adapt yet. Experts and that head then
  belong to a group of parameters that trains no more.

  Args:
    num_features: F of an image.
    num_outputs: C, 1 for a yes or no.
    d_model, d_ff: D of features, hidden width of backbones.
    activation: in between.
    num_experts:  M.
    num_domains: of the sources.
    depth, num_heads, aggregator_d_ff, dropout_rate: of the aggregator; its hidden width None = 2 D. Dropout
      is for the pre-training alone.
    support:      images of a row that adapt.
    inner_rate:   alpha; 0.0 = the student does not adapt. The inner loss is a mean over images and widths, so
      that alpha has to grow with D.
    inner_steps, first_order: see `adapted`.
    mask_own:     whether a domain's own expert is away in training.
    pretrain_steps: before meta-training.
  Losses: experts and aggregator, cross entropies in the pre-training, 0 after it.
  Differs: the paper trains the stages after one another, with rates of their own. Experts, aggregator and
    student are here pre-trained together; they do not depend on one another but by the features that the
    aggregator reads. Backbones are networks of two layers, not a ResNet-50.
  """

  targets = 'labels'                   # a class of every image of a row

  def __init__(self, *, num_features: ranges.Count, num_outputs: ranges.Count, d_model: ranges.Count,
               d_ff: ranges.Count, activation: ranges.Activation = 'relu', num_experts: ranges.Count,
               num_domains: ranges.Count, depth: ranges.Count = 1, num_heads: ranges.Count = 16,
               aggregator_d_ff: ranges.Count | None = None, dropout_rate: ranges.Below1 = 0.1,
               support: ranges.Count, inner_rate: ranges.NonNegative = 1e-3, inner_steps: ranges.Count = 1,
               first_order: ranges.Flag = False, mask_own: ranges.Flag = True,
               pretrain_steps: ranges.Natural = 0, rngs):
    if mask_own and num_experts == 1:
      raise UserError('model.num_experts=1 with model.mask_own=True: no expert is left; nearest: '
                      'model.num_experts=2')
    if num_experts > num_domains:
      raise UserError(f'model.num_experts={num_experts}, and there are {num_domains} domains to train them '
                      f'on; nearest: model.num_experts={num_domains}')
    make = lambda rows, **more: Backbone(num_features, d_ff, d_model, activation, rows, **more, rngs=rngs)
    self.experts = make(support, experts=num_experts)
    self.aggregator = Aggregator(d_model, depth, num_heads, aggregator_d_ff or 2 * d_model, num_experts,
                                 dropout_rate, support, rngs=rngs)
    self.pretrained = Pretrained(d_model, num_outputs, num_experts, rngs=rngs)
    self.student = make(0)
    self.head = Linear(d_model, num_outputs, axis='unmodeled', rngs=rngs)
    self.num_features = num_features
    self.num_experts = num_experts
    self.num_domains = num_domains
    self.support = support
    self.inner = dict(rate=inner_rate, steps=inner_steps, first_order=first_order)
    self.mask_own = mask_own
    self.pretrain_steps = pretrain_steps

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (logits f32[B,S,2,C] of the adapted student and of the student before, aux: dict(encoder=Aux)).

    Args:
      batch:  as `data/sources/domains.py` has it; labels of images without a weight are not read.
      key:    PRNG key, or None for no randomness.
      train:  whether the own expert is away. In evaluation the student always adapts.
      step:   i32[] optimizer step, which decides what is trained.
      tokens: dict of `count_tokens`: divisor of the pre-training's losses; None = of this batch.
    """
    x = batch['features']                                            # [B, S, F]
    self._check(x)
    tokens = self.count_tokens(batch) if tokens is None else tokens
    own = jax.nn.one_hot(batch['given/domain'] * self.num_experts // self.num_domains, self.num_experts)
    kept = own == 0 if train and self.mask_own else jnp.ones_like(own, bool)         # [B, M]
    meta = jnp.asarray(step) >= self.pretrain_steps if train else jnp.bool_(True)
    students = jax.lax.cond(meta, self.students, self._copied, x[:, :self.support], kept)
    logits = jnp.stack([self.head(jax.vmap(lambda student, x: student(x))(students, x)),
                        self.head(self.student(x))], axis=2)         # [B, S, 2, C]
    ctx = contract.Context(**contract.numbered(batch['weights'] > 0), key=key, step=jnp.asarray(step),
                           tokens=tokens['encoder'], train=train).fold('encoder')
    losses = self._losses(batch, own, kept, meta, ctx) if train and self.pretrain_steps else {}
    there = jnp.any(batch['weights'] > 0, axis=1)                    # [B], rows that are no filler
    load = there.astype(jnp.float32) @ kept * self.support           # [M], images that an expert sees
    return logits, {'encoder': contract.Aux(losses=losses, load=load, metrics={})}

  def _check(self, x):
    """Raises UserError where the images are not the model's, or none is left to judge."""
    if x.shape[-1] != self.num_features:
      raise UserError(f'model.num_features={self.num_features}, and the data have {x.shape[-1]}; nearest: '
                      f'model.num_features={x.shape[-1]}')
    if x.shape[1] <= self.support:
      raise UserError(f'model.support={self.support} of the data.size={x.shape[1]} images of a row leave '
                      f'none to learn from; nearest: model.support={x.shape[1] - 1}')

  def tokens(self, x: jax.Array) -> jax.Array:
    """Returns f32[...,M,D], the experts' features of images x [...,F]."""
    return jnp.moveaxis(jax.vmap(lambda expert: expert(x))(self.experts), 0, -2)

  def students(self, x: jax.Array, kept: jax.Array) -> typing.Any:
    """Returns a student for each row, arrays [B,...], adapted to its images x [B,n,F].

    Args:
      kept: bool[B,M], the experts whose features make the teacher's.
    """
    def of_row(x, kept):
      tokens = jax.lax.stop_gradient(self.tokens(x))                # [n, M, D]
      teacher = self.aggregator(tokens, jnp.broadcast_to(kept, tokens.shape[:-1]))
      return adapted(self.student, teacher, x, **self.inner)
    return jax.vmap(of_row)(x, kept)

  def _copied(self, x, kept):
    """The student for each row, as it is."""
    return jax.tree.map(lambda p: jnp.broadcast_to(p, (len(x), *p.shape)), self.student)

  def _losses(self, batch, own, kept, meta, ctx):
    """Dict of the losses f32[] of the pre-training, 0 once it is over."""
    def losses():
      features, labels = self.tokens(batch['features']), batch['labels']            # [B, S, M, D]
      of_experts = classes.miss(self.pretrained.expert_logits(features), labels[..., None])
      whole = jnp.ones(features.shape[:-1], bool)
      teacher = self.aggregator(jax.lax.stop_gradient(features), whole, ctx)
      of_teacher = classes.miss(self.pretrained.logits(teacher), labels)
      mean = lambda x: jnp.sum(batch['weights'] * x) / ctx.tokens
      return dict(experts=mean(jnp.sum(own[:, None] * of_experts, axis=-1)), aggregator=mean(of_teacher))
    return jax.lax.cond(meta, lambda: dict(experts=jnp.zeros(()), aggregator=jnp.zeros(())), losses)

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the images in `batch` that are judged: dict(encoder=f32[])."""
    return {'encoder': jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list:
    """Returns the list of the model's stacks: it has none, and no state across steps."""
    return []
