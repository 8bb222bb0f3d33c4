"""A bank whose matrices are codes of a few bits, stored packed; executors run the bank of their values."""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import codes
from stmoe.errors import UserError


class Codes(nnx.Module):
  """Matrices w [E,I,O] of experts, or [I,O] of all, as codes of B bits in packed planes.

  planes u8[...,B,ceil(I O / 8)], scale and zero f32[...,I/group,O]: a grid for every output and group of
  inputs. All three are state that no optimizer sees, and are in the checkpoint under `router_state`.
  own: whether the matrices are of experts. number: widths at which they are read.
  """

  def __init__(self, w: jax.Array, bits: int, own: bool, number: int = 1, **fields):
    stored, first = codes.encode(w, bits, **fields), ('expert',) if own else ()
    self.planes, self.scale, self.zero = (
        axes.state(stored[part], *first, 'unmodeled', 'unmodeled') for part in ('planes', 'scale', 'zero'))
    self.shape = tuple(w.shape[-2:])
    self.bits = bits
    self.products_per_row = math.prod(self.shape) * number

  def num_coded(self) -> int:
    """Returns how many weights there are codes of, in all layers where these are stacked."""
    return math.prod(self.planes.shape[:-2]) * math.prod(self.shape)

  def matrix(self, bits: int | None = None) -> jax.Array:
    """Returns the values f32[...,I,O] of the first `bits` bits, None = of all."""
    bits = self.bits if bits is None else bits
    q = codes.unpack(self.planes[...], math.prod(self.shape), bits)  # [..., I O]
    scale, zero = self.scale[...], self.zero[...]                    # [..., I/group, O]
    rows, columns = self.shape
    q = q.reshape(*q.shape[:-1], scale.shape[-2], rows // scale.shape[-2], columns)
    w = codes.value(q, scale[..., None, :], zero[..., None, :], bits, self.bits)
    return w.reshape(*w.shape[:-3], rows, columns)


class Packed(nnx.Module):
  """The bank `inner`, every matrix of it on a grid, and what enters its products as well.

  What is computed is what integer products of these codes give, up to rounding of float32. With bfloat16
  activations values are rounded once more. Matrices are codes (`Codes`), other arrays of `inner` stay
  parameters. A bank made anew has the rounded weights of a new `inner`. Codes do not train; the gradient of
  rounded inputs is that of the inputs.

  Args:
    inner:  recipe of a bank.
    bits:   B of a weight.
    group:  inputs of an output that have a grid in common; None = all.
    kind:   of the grids, a key of `codes.GRIDS`. Codes of 'nested' grids may be cut short.
    activation_bits: of what enters a product, on a grid for each row; None = not rounded.
    smooth: with a vector s [D], by which the input is divided before it is rounded. Weights have its factor.
    widths: bits that are read. The bank then has an expert for every expert of `inner` and width, in this
      order: expert e at widths[j] is e * len(widths) + j. () = all bits.
  """

  def __init__(self, d_model: int, *, num_experts, inner: ranges.Named('experts'),
               bits: ranges.Whole(1, 8) = 4, group: ranges.Count | None = None,
               kind: ranges.Choice(*codes.GRIDS) = 'affine',
               activation_bits: ranges.Whole(2, 8) | None = None, smooth: ranges.Flag = False,
               widths: ranges.Many(ranges.Whole(1, 8)) = (), rngs):
    number = len(widths) or 1
    if num_experts % number or max(widths, default=bits) > bits:
      raise UserError(f'experts packed: widths={tuple(widths)} of bits={bits} for {num_experts} experts; '
                      f'wanted: at most {bits} bits, and a multiple of {number} experts')
    self.inner = inner
    self.d_model = d_model
    self.num_experts = num_experts
    self.widths = tuple(widths)
    self.activation_bits = activation_bits
    self.smooth = axes.state(jnp.ones(d_model), 'expert_embed') if smooth else None
    self.codes: typing.Any = nnx.Dict()
    self.kept: typing.Any = nnx.Dict()
    bank = inner(d_model, num_experts=num_experts // number, rngs=rngs)
    for path, variable in nnx.to_flat_state(nnx.state(bank)):
      if is_matrix(variable):
        own = 'expert' in names_of(variable)
        self.codes[named(path)] = Codes(variable[...], bits, own, number if own else 1, group=group,
                                        kind=kind)
      else:
        self.kept[named(path)] = variable

  def opened(self) -> 'Simulated':
    """Returns the bank of plain arrays that executors run, with E experts at every width."""
    number = len(self.widths) or 1
    bank = axes.abstract(lambda: self.inner(self.d_model, num_experts=self.num_experts, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(bank)
    arrays = []
    for path, variable in nnx.to_flat_state(state):
      name, own = named(path), 'expert' in names_of(variable)
      if name in self.kept:
        array = self.kept[name][...]
        array = jnp.repeat(array, number, 0) if own else array
      elif own and self.widths:
        each = [self.codes[name].matrix(bits) for bits in self.widths]
        array = jnp.stack(each, 1).reshape(self.num_experts, *each[0].shape[1:])   # [E n, I, O]
      else:
        array = self.codes[name].matrix()
      arrays.append((path, variable.replace(array)))
    return Simulated(nnx.merge(graph, nnx.from_flat_state(arrays)), self.smooth, self.activation_bits)

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    return self.opened()(rows, key)


class Simulated(nnx.Module):
  """A bank of plain arrays whose rows are divided by s [D], and rounded before every product."""

  def __init__(self, inner: contract.Bank, smooth: nnx.Variable | None, bits: int | None):
    self.inner = inner
    self.smooth = smooth
    self.bits = bits

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    rows = rows if self.smooth is None else rows.scale(1 / self.smooth[...])
    if self.bits is None:
      return self.inner(rows, key)
    return typing.cast(Rounded, self.inner(Rounded(rows, self.bits), key)).rows


class Rounded:
  """Rows [.,D] whose every row is rounded to a grid before a product."""

  def __init__(self, rows: typing.Any, bits: int):
    self.rows, self.bits = rows, bits

  @property
  def x(self) -> jax.Array:
    """The rows themselves."""
    return self.rows.x

  def linear(self, w: jax.Array, b: jax.Array | None = None) -> 'Rounded':
    """Returns rounded rows times w [E,I,O] (plus b [E,O]) of their expert."""
    near = self.rows.map(lambda x: codes.rounded(x, self.bits))
    return Rounded(near.linear(w, b), self.bits)

  def scale(self, b: jax.Array) -> 'Rounded':
    """Returns rows times b [E,F] of their expert, elementwise."""
    return Rounded(self.rows.scale(b), self.bits)

  def shift(self, b: jax.Array) -> 'Rounded':
    """Returns rows plus b [E,F] of their expert."""
    return Rounded(self.rows.shift(b), self.bits)

  def map(self, f: typing.Callable[..., jax.Array], *others: 'Rounded') -> 'Rounded':
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return Rounded(self.rows.map(f, *(other.rows for other in others)), self.bits)

  def each(self, f: typing.Callable[..., jax.Array], *arrays: jax.Array) -> 'Rounded':
    """Returns f(rows [.,D] of one expert, its parts of the arrays [E,...]) -> [.,F] of every expert."""
    return Rounded(self.rows.each(f, *arrays), self.bits)


def named(path: tuple) -> str:
  """Returns the name under which the array at `path` of a bank is stored, ('wi', 'w') -> 'wi_w'."""
  return '_'.join(map(str, path))


def names_of(variable: nnx.Variable) -> tuple:
  """Returns the logical axes of an array, but for an axis of stacked layers."""
  names = variable.get_metadata().get('out_sharding') or ()
  return tuple(name for name in names if name != 'layers')


def is_matrix(variable: nnx.Variable) -> bool:
  """Returns whether an array of a bank is a matrix [I,O], of every expert or of all."""
  return len([name for name in names_of(variable) if name != 'expert']) == 2
