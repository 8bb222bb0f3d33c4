"""Banks are checked when a layer makes them: each mistake is one line that names the bank's file."""

import functools
import pathlib
import shutil
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

import stmoe.experts
from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.core import banks
from stmoe.core.transport import layouts
from tests.core import test_conformance as conformance
from tests.experts import generic

D, E = 6, 4


class Toy(nnx.Module):
  """One matrix an expert; the tests below each break it in one way."""

  names, extra, width = ('expert', 'expert_embed', 'unmodeled'), 0, D

  def __init__(self, d_model, *, num_experts, rngs):
    shape = num_experts + self.extra, d_model, self.width
    self.w = axes.param(nnx.initializers.normal(1.0), shape, *self.names, rngs=rngs)

  def __call__(self, rows, key=None):
    return rows.linear(self.w[...])


class Narrow(Toy):
  width = D - 1


class Shared(Toy):
  names = 'unmodeled', 'expert_embed', 'unmodeled'


class More(Toy):
  extra = 1


class Bare(Toy):
  def __call__(self, rows, key=None):
    return rows.linear(self.w[...]).x


class Wide(Toy):
  def __call__(self, rows, key=None):
    return rows.linear(self.w[...]).map(lambda x: x.astype(jnp.float32))


class Unsorted(Toy):
  def __call__(self, rows, key=None):
    return layouts.Buckets(jax.vmap(jnp.matmul)(rows.x, self.w[...].astype(rows.x.dtype)))


class Counted(Toy):
  def __call__(self, rows, key=None):
    return rows.linear(self.w[...].reshape(E, D, D))


class Broken(Toy):
  def __call__(self, rows, key=None):
    return rows.linear(self.w[..., :3, :])


MISTAKES = {
    Narrow: r'it returned rows bfloat16\[4,6,5\] for bfloat16\[4,6,6\]; wanted: width 6',
    Wide: r'it returned rows float32\[4,6,6\] for .*; wanted: bfloat16',
    Bare: r'it returned bfloat16\[4,6,6\]; wanted: its rows, as rows.linear',
    Shared: r"w float32\[4,6,6\] without the logical axis 'expert' .*; wanted: axes.param\(.*'expert'",
    More: r'w is float32\[5,6,6\], of experts; wanted: first an axis of 4 experts',
    Unsorted: r'it takes rows.x to be \[E,R,D\].*; wanted: rows.each\(f, arrays\)',
    Counted: r'it does not run with one expert alone.*; wanted: no number of experts but',
    Broken: r'it does not run on bfloat16\[4,6,6\]: ',
}


@pytest.mark.parametrize('mistake', MISTAKES, ids=lambda kind: kind.__name__)
def test_a_mistake_is_one_line_that_names_the_file(mistake):
  with pytest.raises(errors.UserError, match=f'^tests/core/test_banks.py: {MISTAKES[mistake]}') as found:
    banks.made(mistake, D, num_experts=E, rngs=nnx.Rngs(0))
  assert '\n' not in str(found.value)


def test_what_is_no_mistake():
  banks.made(Toy, D, num_experts=E, rngs=nnx.Rngs(0))
  banks.made(Narrow, D, num_experts=E, out=D - 1, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('name', lookup.available('experts'))
def test_every_file_holds_a_bank(name):
  bank = generic.build(name, D, E)
  out = bank(layouts.Buckets(jnp.ones((E, 1, D)))).x.shape[-1]
  assert not list(banks.faults(bank, E, D, out))


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder whose files are banks as those of `stmoe/experts` are."""
  monkeypatch.setattr(stmoe.experts, '__path__', [*stmoe.experts.__path__, str(tmp_path)])
  before = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - before:
    if name.startswith('stmoe.experts.'):
      del sys.modules[name]


def test_a_bank_is_a_file(folder):
  shutil.copy(pathlib.Path(generic.__file__).parent / 'conv.py', folder / 'folded.py')
  with pytest.raises(errors.UserError, match=r'folded.py: .* defines no class called like its file; wanted: '
                     r'Folded \(there are: Conv\)'):
    lookup.constructor('experts', 'folded')
  shutil.copy(pathlib.Path(generic.__file__).parent / 'conv.py', folder / 'conv.py')
  assert {'conv', 'mlp', 'lora', 'mpo'} <= set(lookup.available('experts')) and 'virtual' not in (
      lookup.available('experts'))
  make = functools.partial(banks.made, lookup.recipe('experts', dict(name='conv', width=5)))
  bank = make(conformance.D, num_experts=conformance.E, rngs=nnx.Rngs(0))
  assert type(bank).__module__ == 'stmoe.experts.conv'
  x, a = conformance.activations(), conformance.made('padding', 2, 9)
  got, want = (conformance.run(x, a.weight, bank, a, executor=name) for name in ('blocks', 'einsum'))
  conformance.assert_same(got, want)
