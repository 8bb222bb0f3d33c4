"""Adversarial training around another target: images are moved, in a ball, to where predictions change."""

import typing

import jax
import jax.numpy as jnp

from stmoe import modules
from stmoe import ranges
from stmoe import targets
from stmoe.core import contract
from stmoe.errors import UserError

IMAGE = 'image'                          # the entry of a batch that is attacked
SHOWN = 12                               # images of a batch that are drawn
ATTACKS = ('joint', 'model', 'router')
ROUTER_TARGETS = ('class_mod', 'trades_model')


class Attacked(typing.NamedTuple):
  """What a model gives for images and for the same images after an attack.

  clean, moved:  predictions [B,...] of both.
  images:        [B,H,W,C] after the attack.
  scores, moved_scores: of the router, f32[B,E]; None of a dense model.
  """
  clean: jax.Array
  moved: jax.Array
  images: jax.Array
  scores: jax.Array | None
  moved_scores: jax.Array | None


def pgd(image: jax.Array, start: jax.Array, gradient: typing.Callable[[jax.Array], jax.Array], *,
        epsilon: float, step_size: float, steps: int, low: float = 0.0, high: float = 1.0) -> jax.Array:
  """Returns [B,H,W,C] after projected steps along the signs of a gradient (PGD, arXiv:1706.06083, section 2).

  x <- clip(clip(x + step_size sign(gradient(x)), image - epsilon, image + epsilon), low, high). The first
  gradient is that of `start`, as it is.
  """
  def move(x, _):
    x = x + step_size * jnp.sign(gradient(x))
    return jnp.clip(jnp.clip(x, image - epsilon, image + epsilon), low, high), None
  return jax.lax.scan(move, start, None, length=steps)[0]


def divergence(scores: jax.Array, moved: jax.Array) -> jax.Array:
  """Returns f32[B], KL(p || q) of p = softmax(scores) and q = softmax(moved), both f32[B,E]."""
  log_p, log_q = jax.nn.log_softmax(scores), jax.nn.log_softmax(moved)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def cross_entropy(scores: jax.Array, expert: jax.Array) -> jax.Array:
  """Returns f32[B], -log of the softmax of scores f32[B,E] at expert i32[B]."""
  return -jnp.take_along_axis(jax.nn.log_softmax(scores), expert[:, None], axis=-1)[:, 0]


class Adversarial:
  """L + beta KL(f(x) || f(x')) (TRADES, arXiv:1901.08573), and the loss of a router (arXiv:2308.10110).

  Training moves x to x' by steps that raise KL(f(x) || f(x')) + KL(s(x) || s(x')), s the router's logits.
  The attack sees the model as evaluation does, but for s(x). The router's loss, with 'class_mod', is
  alpha CE(s(x), y mod E) + beta KL(s(x) || s(x')), and L does not train the router. With 'trades_model' the
  loss of the model trains the router, too, through its choice. A model without a router has no such terms.
  For alternating steps of router and experts see section `groups` of a configuration.

  Evaluation attacks with L(f(x'), y) + beta CE(s(x'), y mod E), or one of the terms alone, from a uniform
  start in the ball. Its metrics are those of `inner`, and the same after the attack as 'eval/robust_...'.

  Args:
    inner:      recipe of the target of the data, such as ids.
    epsilon:    radius of the ball of the largest difference of a pixel.
    step_size, steps, noise: of the attack of training, which starts from x + noise N(0, 1).
    eval_step_size, eval_steps: of that of evaluation.
    attack:     of evaluation: 'joint', 'model' or 'router'.
    beta:       0.0 = training without attacks.
    alpha:      of 'class_mod'.
    router_target: 'class_mod', the released code, or 'trades_model', the paper's objective (u).
    low, high:  least and largest value of a pixel in the data.
  Differs: both losses are computed in a step, on one attack. The released code attacks the batch again for
    the router, after the step of the experts.
  """

  kinds: tuple = ()                      # those of `inner`, as are its measures
  passes, run, hidden = 1, '', ()
  measures = {'loss/spread': targets.Measure('nats'), 'loss/route': targets.Measure('nats'),
              'eval/loss': targets.Measure(''),
              'eval/moved': targets.Measure('', 'lower', 'other experts {:.1%}', of='moved')}

  def __init__(self, *, inner: ranges.Named('target'), epsilon: ranges.NonNegative = 8 / 255,
               step_size: ranges.NonNegative = 5 / 255, steps: ranges.Natural = 2,
               noise: ranges.NonNegative = 1e-3, eval_step_size: ranges.NonNegative = 2 / 255,
               eval_steps: ranges.Natural = 20, attack: ranges.Choice(*ATTACKS) = 'joint',
               beta: ranges.NonNegative = 6.0, alpha: ranges.NonNegative = 6.0,
               router_target: ranges.Choice(*ROUTER_TARGETS) = 'class_mod', low: ranges.Any = 0.0,
               high: ranges.Any = 1.0):
    self.inner = inner()
    if not hasattr(self.inner, 'apart') or self.inner.passes > 1 or low >= high:
      raise UserError(f'loss.inner.name: {type(self.inner).__name__} has no distance of two predictions, or '
                      f'several passes, or low={low} is not below high={high}; nearest: ids, low=0.0, high=1')
    self.epsilon, self.noise, self.beta, self.alpha = epsilon, noise, beta, alpha
    self.train_steps = dict(step_size=step_size, steps=steps)
    self.eval_steps = dict(step_size=eval_step_size, steps=eval_steps)
    self.attack, self.router_target = attack, router_target
    self.low, self.high = low, high
    self.kinds = self.inner.kinds
    # Of a forward and backward are three: f(x) and f(x') for the loss, one forward, and two of three a step.
    self.forwards = 2 + (1 + 2 * steps) / 3 if beta else 1
    self.measures = self.inner.measures | self._measures()

  def _measures(self):
    """The measures of the attack and of the router."""
    robust = {_robust(name): measure._replace(said=measure.said and f'attacked: {measure.said}')
              for name, measure in self.inner.measures.items() if name.startswith('eval/')}
    own = ('loss/spread', 'eval/moved', 'loss/route') if self.beta else ('eval/moved', 'loss/route')
    return robust | {name: type(self).measures[name] for name in own}

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[...], the weights of `inner`."""
    return self.inner.weights(batch)

  def counts(self, batch: dict) -> tuple:
    """Returns (counts of `inner`, f32[] the weight of all targets)."""
    return self.inner.counts(batch), targets.divisor(self.weights(batch))

  def predict(self, model: typing.Any, batch: dict, key: jax.Array | None = None, train: bool = False,
              **context) -> tuple[Attacked, dict[str, contract.Aux]]:
    """Returns (Attacked [B,...], aux) of a model for a batch; without a key attacks have no random start."""
    score = getattr(model, 'scores', lambda batch, train: None)
    whole = modules.constant(model, 'router') if self.router_target == 'class_mod' else model
    run = lambda images: whole(batch | {IMAGE: images}, key=key, train=train, **context)
    image = batch[IMAGE]
    clean, aux = run(image)
    scores = score(batch, train=train)
    if train and not self.beta:
      return Attacked(clean, clean, image, scores, scores), aux
    images = self._attacked(modules.constant(model), batch, scores, key, train)
    moved, again = run(images)
    aux = {name: report.replace(statistics=_together(report, again[name])) for name, report in aux.items()}
    return Attacked(clean, moved, images, scores, score(batch | {IMAGE: images}, train=train)), aux

  def _attacked(self, model, batch, scores, key, train):
    """The images [B,H,W,C] after the attack of training or of evaluation on a constant model."""
    image, scores = batch[IMAGE], jax.lax.stop_gradient(scores)
    if train:
      clean = model(batch)[0]
      gain = lambda moved, s: self._apart(moved, clean, batch) + (
          0.0 if s is None else jnp.sum(divergence(scores, s)))
    else:
      gain = lambda moved, s: self._harm(moved, s, batch)
    start, draw = image, (jax.random.normal if train else jax.random.uniform)
    if key is not None:
      noise = draw(jax.random.fold_in(key, 0), image.shape, image.dtype)
      start += self.noise * noise if train else self.epsilon * (2 * noise - 1)
    return self.attacked(model, batch, start, gain, **(self.train_steps if train else self.eval_steps))

  def attacked(self, model: typing.Any, batch: dict, start: jax.Array,
               gain: typing.Callable[..., jax.Array], step_size: float, steps: int) -> jax.Array:
    """Returns images [B,H,W,C] that `gain` (predictions [B,...], scores f32[B,E] or None) has grown at."""
    def objective(images):
      at = batch | {IMAGE: images}
      return gain(model(at)[0], model.scores(at) if hasattr(model, 'scores') else None)
    return pgd(batch[IMAGE], start, jax.grad(objective), epsilon=self.epsilon, step_size=step_size,
               steps=steps, low=self.low, high=self.high)

  def _harm(self, moved, scores, batch):
    """What the attack of evaluation raises, f32[]."""
    of_model = self.inner.loss(moved, batch, 1.0)[0] if self.attack != 'router' else 0.0
    if scores is None or self.attack == 'model':
      return of_model
    weight = self.beta if self.attack == 'joint' else 1.0
    return of_model + weight * jnp.sum(cross_entropy(scores, self._expert(scores, batch)))

  def _expert(self, scores, batch):
    """i32[B], the expert of each class: y mod E."""
    return batch['labels'][:, 0] % scores.shape[-1]

  def _apart(self, moved, clean, batch):
    """The weighted sum f32[] of KL(f(x) || f(x')) of predictions [B,...]."""
    return jnp.sum(self.inner.apart(moved, clean, 1.0) * self.weights(batch))

  def loss(self, outputs: Attacked, batch: dict, counts: tuple) -> tuple:
    """Returns (f32[], metrics) of an Attacked [B,...]; see `targets.Target`."""
    own, rows = counts
    total, values = self.inner.loss(outputs.clean, batch, own)
    if self.beta:
      spread = self._apart(outputs.moved, outputs.clean, batch) / rows
      total, values = total + self.beta * spread, values | {'loss/spread': spread}
    scores, moved = outputs.scores, outputs.moved_scores
    if scores is not None and moved is not None and self.router_target == 'class_mod':
      route = self.route(scores, moved, batch) / rows
      total, values = total + route, values | {'loss/route': route}
    return total, values

  def route(self, scores: jax.Array, moved: jax.Array, batch: dict) -> jax.Array:
    """Returns f32[], alpha CE(s(x), y mod E) + beta KL(s(x) || s(x')) of f32[B,E], summed over the images."""
    each = self.alpha * cross_entropy(scores, self._expert(scores, batch))
    if self.beta:
      each += self.beta * divergence(scores, moved)
    return jnp.sum(self.weights(batch)[:, 0] * each)

  def judge(self, outputs: Attacked, batch: dict) -> dict:
    """Returns the sums of `inner` for an Attacked [B,...], and how many images change their expert."""
    sums = self.inner.judge(outputs.clean, batch)
    sums |= {f'robust_{name}': total for name, total in self.inner.judge(outputs.moved, batch).items()}
    if outputs.scores is not None and outputs.moved_scores is not None:
      other = jnp.argmax(outputs.scores, axis=-1) != jnp.argmax(outputs.moved_scores, axis=-1)
      sums['moved'] = jnp.sum(self.weights(batch)[:, 0] * other)
    return sums

  def pictures(self, outputs: Attacked, batch: dict) -> dict:
    """Returns the first images [n,H,W,C] before and after the attack, their classes and experts i32[n]."""
    best = lambda x: jnp.argmax(x.reshape(len(x), -1), axis=-1)
    found = dict(image=batch[IMAGE], attacked_image=outputs.images, label=batch['labels'][:, 0],
                 predicted=best(outputs.clean), attacked_predicted=best(outputs.moved))
    if outputs.scores is not None and outputs.moved_scores is not None:
      found |= dict(expert=best(outputs.scores), attacked_expert=best(outputs.moved_scores))
    return {name: array[:SHOWN] for name, array in found.items()}

  def metrics(self, totals: dict) -> dict:
    """Returns the metrics of `inner`, those after the attack, and the share of images with another expert."""
    robust = {name.removeprefix('robust_'): total for name, total in totals.items() if 'robust_' in name}
    values = self.inner.metrics(totals)
    values |= {_robust(name): value for name, value in self.inner.metrics(totals | robust).items()
               if _robust(name) in self.measures}
    return values | ({'eval/moved': totals['moved'] / totals['weight']} if 'moved' in totals else {})


def _robust(name):
  """The name of a metric after the attack: 'eval/robust_accuracy' of 'eval/accuracy'."""
  return name.replace('eval/', 'eval/robust_', 1)


def _together(one, other):
  """The statistics of two passes of the Aux of a layer, as those of one."""
  return {name: jax.tree.map(lambda *parts: jnp.stack(parts), statistic, other.statistics[name]).together()
          for name, statistic in one.statistics.items()}
