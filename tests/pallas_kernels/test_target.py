"""A program gets the implementation of the platform it is lowered for, not of the process' devices."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import target

CHOICES = dict(cpu=lambda x: x + 1, tpu=lambda x: x + 2, gpu=lambda x: x + 3)
OPS = [path.parent.name for path in
       sorted((pathlib.Path(target.__file__).parent).glob('*/api.py'))]


@pytest.mark.parametrize('name, want', [(None, 1), ('cpu', 1), ('tpu', 2), ('gpu', 3)])
@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_name_or_platform_chooses(name, want, wrap):
  assert float(wrap(target.choose(name, **CHOICES))(jnp.float32(0))) == want


@pytest.mark.parametrize('platform, want', [('cpu', 1), ('tpu', 2), ('cuda', 3), ('rocm', 1)])
def test_lowering_keeps_one_for_platforms_that_are_not_there(platform, want):
  text = str(jax.export.export(jax.jit(target.choose(None, **CHOICES)), platforms=[platform])(
      jnp.float32(0)).mlir_module())
  found = [n for n in (1, 2, 3) if f'dense<{n}.' in text]
  assert found == [want]


def test_unknown_target_is_named():
  with pytest.raises(ValueError, match="target 'npu' is none of cpu, tpu, gpu"):
    target.choose('npu', **CHOICES)


@pytest.mark.parametrize('op', OPS)
def test_module_of_an_operation_is_imported_when_called(op):
  functions = target.modules(f'pallas_kernels.{op}')
  assert set(functions) == set(target.NAMES)
  assert callable(getattr(importlib.import_module(f'pallas_kernels.{op}.api'), op))
