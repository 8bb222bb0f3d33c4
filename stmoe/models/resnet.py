"""Residual convolution networks whose convolutions are chosen for every image, all by one router (AdvMoE)."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import modules
from stmoe import ranges
from stmoe import router_state as state
from stmoe.core import assignment
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.experts import channels as channel_groups
from stmoe.parts import batch_norm
from stmoe.parts.pictures import conv
from stmoe.parts.pictures import patches

NAME = 'pathway'                     # the one name under which the network reports
# Of the router's network: the default of the reference's convolutions, uniform up to 1 / sqrt(fan in).
UNIFORM = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Pathway(typing.NamedTuple):
  """Which expert an image goes to in every convolution, and how experts are run."""
  a: assignment.Assignment
  execute: contract.Executor


def fan_out(width: int, size: int) -> typing.Callable[..., jax.Array]:
  """Returns the initialiser N(0, 2 / (k^2 F)) of convolutions [k,k,C,F]."""
  return nnx.initializers.normal((2 / (size * size * width)) ** 0.5)


class Convolution(nnx.Module):
  """A convolution without a bias: one of E for each image, or the only one.

  Args:
    side:     H and W of what goes in; channels, width: C and F; size, stride: of the window.
    num_experts: E; 0 = the only one.
    init: of the only one; None = `fan_out`.
  """

  def __init__(self, side: int, channels: int, width: int, *, size, stride=1, num_experts=0, init=None, rngs):
    self.side, self.width = -(-side // stride), width
    make = functools.partial(channel_groups.Channels, side=side, width=width, size=size, stride=stride)
    self.experts: typing.Any = None if not num_experts else banks.made(
        make, side * side * channels, num_experts=num_experts, out=self.side ** 2 * width, rngs=rngs)
    self.dense: typing.Any = None if num_experts else conv.Conv(
        channels, width, size=size, stride=stride, pixels=self.side ** 2, use_bias=False,
        init=init or fan_out(width, size), rngs=rngs)

  def __call__(self, x: jax.Array, pathway: Pathway | None) -> jax.Array:
    """Returns [B,H',W',F] for x [B,H,W,C]."""
    if self.experts is None or pathway is None:
      return self.dense(x)
    a, execute = pathway
    rows = axes.constrain(x.reshape(a.token.shape[0], a.num_tokens, -1), 'group', None, None)
    y = execute(rows, a, self.experts)                               # [G, S, H'W'F]
    return y.reshape(len(x), self.side, self.side, self.width)


class Block(nnx.Module):
  """relu(shortcut(x) + convolutions(x)), each convolution with a norm, between them relu (arXiv:1512.03385).

  The shortcut is x itself, or where the shape changes a dense 1 x 1 convolution with a norm. A router's
  network subsamples there, and puts zeros before and after the channels ('pad').

  Args:
    side, channels: of what goes in.
    windows:  (size, width, stride) of each convolution.
    shortcut: 'conv' or 'pad'.
    init:     see `Convolution`.
    name:     first part of the names of statistics.
  """

  def __init__(self, side: int, channels: int, windows: typing.Sequence[tuple[int, int, int]],
               name: str = 'block', *, num_experts=0, shortcut='conv', init=None, rngs):
    self.convs: nnx.List = nnx.List([])
    self.norms: nnx.List = nnx.List([])
    self.stride, self.before = 1, channels
    at, depth = side, channels
    for number, (size, width, stride) in enumerate(windows):
      self.convs.append(Convolution(at, depth, width, size=size, stride=stride, num_experts=num_experts,
                                    init=init, rngs=rngs))
      self.norms.append(_norm(width, f'{name}.norm_{number}', rngs))
      at, depth, self.stride = -(-at // stride), width, self.stride * stride
    self.side, self.width = at, depth
    other = shortcut == 'conv' and (self.stride > 1 or depth != channels)
    self.shortcut: typing.Any = None if not other else Convolution(
        side, channels, depth, size=1, stride=self.stride, init=init, rngs=rngs)
    self.shortcut_norm: typing.Any = None if not other else _norm(depth, f'{name}.shortcut_norm', rngs)

  def __call__(self, x: jax.Array, pathway: Pathway | None, train: bool,
               real: jax.Array) -> tuple[jax.Array, dict]:
    """Returns (y [B,H',W',F], what the norms saw: dict name -> Statistic) for x [B,H,W,C], see `Network`."""
    y, seen = x, dict[str, contract.Statistic]()
    for number, (convolve, norm) in enumerate(zip(self.convs, self.norms)):
      y, own = _normed(norm, convolve(jax.nn.relu(y) if number else y, pathway), train, real)
      seen |= own
    if self.shortcut is not None:
      x, own = _normed(self.shortcut_norm, self.shortcut(x, None), train, real)
      seen |= own
    elif x.shape != y.shape:
      more = self.width - self.before
      around = (0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)
      x = jnp.pad(x[:, ::self.stride, ::self.stride], around)
    return jax.nn.relu(x + y), seen


class Network(nnx.Module):
  """A convolution, blocks in stages, and the mean over pixels: images [B,H,W,C] to features [B,D].

  Args:
    side, channels: of the images.
    stem:   channels of the first convolution, which is dense.
    stages: of each stage, the windows of each of its blocks.
    init:   of dense convolutions, see `Convolution`.
    name:   first part of the names of statistics.
    label:  what its parameters are called in section `groups`, or None.
  """

  def __init__(self, side: int, channels: int, stem: int, stages: typing.Sequence, name: str = 'network', *,
               num_experts=0, shortcut='conv', init=None, label=None, rngs):
    self.stem = Convolution(side, channels, stem, size=3, init=init, rngs=rngs)
    self.stem_norm = _norm(stem, f'{name}.stem_norm', rngs)
    self.blocks: nnx.List = nnx.List([])
    depth = stem
    for windows in (windows for stage in stages for windows in stage):
      self.blocks.append(Block(side, depth, windows, f'{name}.block_{len(self.blocks)}',
                               num_experts=num_experts, shortcut=shortcut, init=init, rngs=rngs))
      side, depth = self.blocks[-1].side, self.blocks[-1].width
    self.width = depth
    self.label = label

  def __call__(self, x: jax.Array, pathway: Pathway | None, train: bool,
               real: jax.Array) -> tuple[jax.Array, dict]:
    """Returns (features [B,D], what the norms saw: dict name -> Statistic) for images x [B,H,W,C].

    real: bool[B], False of rows that hold no image: in training norms do not see them.
    """
    x, seen = _normed(self.stem_norm, self.stem(x, None), train, real)
    x = jax.nn.relu(x)
    for block in self.blocks:
      x, own = block(x, pathway, train, real)
      seen |= own
    return jnp.mean(x, axis=(1, 2)), seen


def _norm(channels, name, rngs):
  """The batch norm of images of so many channels."""
  return batch_norm.BatchNorm((channels,), ('unmodeled',), name, rngs=rngs)


def _normed(norm, x, train, real):
  """What the batch norm `norm` returns for x [B,H,W,C], of whose rows real bool[B] hold an image."""
  return norm(x, train, jnp.broadcast_to(real[:, None, None], x.shape[:3]))


def basic(width: int, stride: int) -> list[tuple[int, int, int]]:
  """Returns the windows of a block of two 3 x 3 convolutions, as ResNet-18 has."""
  return [(3, width, stride), (3, width, 1)]


def bottleneck(width: int, stride: int) -> list[tuple[int, int, int]]:
  """Returns the windows of a block of three convolutions with 4 times the channels out, as ResNet-50 has."""
  return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]


BLOCKS = dict(basic=basic, bottleneck=bottleneck)


def stages(block: str, widths: typing.Sequence[int], depths: typing.Sequence[int]) -> list:
  """Returns the windows of the blocks of each stage; each stage but the first begins with stride 2."""
  return [[BLOCKS[block](width, 2 if number and not i else 1) for i in range(depth)]
          for number, (width, depth) in enumerate(zip(widths, depths))]


class ResNet(nnx.Module):
  """A ResNet for small images, dense or with E experts in all convolutions of its blocks (arXiv:2308.10110).

  A second network reads the image, and the router makes of its features the one expert that the image has in
  all convolutions: its pathway. Stem, shortcuts and norms are of all experts.

  Args:
    vocab_size:  V, the number of labels.
    d_model:     channels of the stem.
    widths, depths: channels and blocks of each stage; the channels of experts are `ratio` times as many.
    block:       'basic' or 'bottleneck'.
    ratio:       of the widths: 0.5 in the paper's mixtures, 1.0 of a dense network.
    image_size, channels: of the square images.
    router:      recipe of a router; None = a dense network.
    router_width, router_depth: channels of the first of three stages of the router's network, and blocks of
      each.
    executor:    runs the experts, see `lookup.executor`: `blocks` computes for each image one of E.
    dtype:       of activations; parameters, norms, routers and logits are float32.
  Differs: the running statistics of the norms move once a step, by the mean over the step's passes; the
    released code moves them in every pass.
  """

  targets = 'labels'               # what is predicted is one of V classes of the whole image
  rows_per_token = 1.0             # an image has one expert

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count = 64,
               widths: ranges.Many(ranges.Count, 1) = (64, 128, 256, 512),
               depths: ranges.Many(ranges.Count, 1) = (2, 2, 2, 2), block: ranges.Choice(*BLOCKS) = 'basic',
               ratio: ranges.PartOf1 = 1.0, image_size: ranges.Count, channels: ranges.Count = 3,
               router: ranges.Named('router') | None = None, router_width: ranges.Count = 16,
               router_depth: ranges.Count = 3, executor: ranges.Spelled('executor') = 'gather',
               dtype: ranges.Dtype = 'float32', blocks, rngs):
    if blocks or len(widths) != len(depths):
      raise UserError(f'model resnet: widths={tuple(widths)}, depths={tuple(depths)} and blocks of '
                      f'{", ".join(blocks) or "no letter"}; stages have a width and a depth each, and their '
                      'blocks are no section; nearest: blocks={}')
    around = stages('basic', [router_width * 2 ** i for i in range(3)], [router_depth] * 3)
    network: typing.Any = router and Network(image_size, channels, router_width, around, 'router_network',
                                             shortcut='pad', init=UNIFORM, label='router', rngs=rngs)
    self.router = router and checked.built(router, network.width, rngs)
    self.router_network = network
    wide = [max(round(ratio * width), 1) for width in widths]
    self.experts = Network(image_size, channels, d_model, stages(block, wide, depths), 'experts', rngs=rngs,
                           num_experts=self.router.num_experts if self.router else 0)
    self.head = Head(self.experts.width, vocab_size, rngs=rngs)
    self.shape = (image_size, image_size, channels)
    self.d_model, self.group_size = self.experts.width, None
    self.executor = executor
    self.dtype = jnp.dtype(dtype)
    lookup.executor(executor)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,1,V], aux: dict NAME -> Aux, {} of a dense network in evaluation).

    Args:
      batch:  image f32[B,H,W,C], and weights i32[B,1]: 0 for rows that hold no image.
      key:    PRNG key, or None for no randomness.
      train:  norms use the batch's statistics.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    patches.check(batch['image'], self.shape)
    routed, seen = self._routed(batch, key, train, step, tokens)
    pathway = routed and Pathway(routed.assignment, banks.opening(lookup.executor(self.executor)))
    x, own = self.experts(batch['image'].astype(self.dtype), pathway, train, _real(batch))
    one = contract.Aux(losses={}, load=self.count_tokens(batch)[NAME][None], metrics={})
    aux = routed.aux if routed else one
    aux = aux.replace(statistics=aux.statistics | seen | own)
    with jax.named_scope('head'):
      return self.head(x)[:, None], {NAME: aux} if routed or train else {}         # [B, 1, V]

  def scores(self, batch: dict[str, jax.Array], train: bool = False) -> jax.Array | None:
    """Returns f32[B,E], the logits of the router for each image; None of a dense network."""
    if self.router is None:
      return None
    return self._scores(batch, self._context(batch, None, train, 0, None), train)[0].reshape(
        len(batch['image']), -1)

  def _scores(self, batch, ctx, train):
    """(logits f32[G,S,E], what the norms saw) of the router."""
    features, seen = self.router_network(batch['image'].astype(self.dtype), None, train, _real(batch))
    x = features.reshape(*ctx.mask.shape, -1)                        # [G, S, D]
    return self.router.logits(x, ctx), seen

  def _context(self, batch, key, train, step, tokens):
    groups = axes.num_shards('group')                                # devices route their own images
    tokens = self.count_tokens(batch) if tokens is None else tokens
    mask = _real(batch).reshape(groups, -1)                          # [G, S]
    return contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                            tokens=tokens[NAME]).fold('router')

  def _routed(self, batch, key, train, step, tokens):
    """(Routed of the images, what the norms of the router's network saw), (None, {}) of a dense network."""
    if self.router is None:
      return None, {}
    ctx = self._context(batch, key, train, step, tokens)
    with jax.named_scope('route'):
      logits, seen = self._scores(batch, ctx, train)
      return self.router.decide(logits, ctx, {}), seen

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the images in `batch`: dict(NAME=f32[])."""
    return {NAME: jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list['ResNet']:
    """Returns the model itself: its blocks are of different shapes, and no `parts.stack.Stack`."""
    return [self]

  def blocks(self) -> list[str]:
    """Returns the names of blocks whose states may be shown: none."""
    return []

  def by_name(self) -> dict[str, 'ResNet']:
    """Returns dict NAME -> the model, which has the only router."""
    return {NAME: self}

  def commit(self, aux: dict[str, contract.Aux], offer: str = 'commit') -> None:
    """Moves the running statistics of all norms, and what the router remembers, by a step's Aux."""
    for part in (self.router_network, self.router, self.experts):
      if part is not None and NAME in aux:
        modules.commit(part, aux[NAME], offer)

  def states(self) -> dict[str, dict[str, jax.Array]]:
    """Returns dict NAME -> dict dotted path -> array of every RouterState."""
    found = nnx.to_flat_state(nnx.state(self, state.RouterState))
    return {NAME: {'.'.join(map(str, path)): value for path, value in found}}


def _real(batch):
  """bool[B], whether a row of a batch holds an image."""
  return batch['weights'][:, 0] > 0


class Head(nnx.Module):
  """x w + b in float32, w [D,V] initially N(0, 0.01^2)."""

  def __init__(self, width: int, vocab_size: int, *, rngs):
    self.w = axes.param(nnx.initializers.normal(0.01), (width, vocab_size), 'embed', 'vocab', rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (vocab_size,), 'vocab', rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns f32[...,V] for x [...,D]."""
    return x.astype(jnp.float32) @ self.w[...] + self.b[...]
