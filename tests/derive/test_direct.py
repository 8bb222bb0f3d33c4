"""Folders read straight onto devices: the arrays of a conversion, each device with its own slices."""

import pathlib

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.derive import convert
from stmoe.derive import direct
from stmoe.interop import tensors as files
from tests.interop import runs

CASES = pathlib.Path(__file__).resolve().parents[1] / 'data' / 'checkpoints'
CASE = CASES / 'mixtral_window_pad'
MESH = dict(data=2, expert=2, model=2)


def test_arrays_are_those_of_a_conversion(tmp_path):
  convert.read(CASE, tmp_path / 'run')
  _, want = runs.load(tmp_path / 'run')
  cfg, plan, model = direct.opened(CASE, MESH)
  bank = model.decoder.segments[0].blocks[0].layer.experts.wi[...]
  shape, (layers, experts, d_model, d_ff) = bank.addressable_shards[0].data.shape, bank.shape
  assert shape == (layers, experts // 2, d_model, d_ff // 2)         # a device has a quarter
  jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(model), jax.tree.leaves(want))
  assert jax.tree.map(lambda x: x.sharding, jax.tree.leaves(model)) == [
      s.sharding for part in ('params', 'router_state') for s in jax.tree.leaves(plan.shapes[part])]
  assert 'param_dtype' not in cfg.model


def test_bytes_of_other_slices_are_not_looked_at(monkeypatch):
  seen, read = {}, files.Tensor.read
  def noted(tensor, first=0, last=None):
    seen.setdefault(tensor.start, []).append((first, last))
    return read(tensor, first, last)
  monkeypatch.setattr(files.Tensor, 'read', noted)
  direct.opened(CASE, dict(data=1, expert=1, model=8))
  table = files.tensors(CASE)['lm_head.weight']                      # [160, 32] there, by the vocabulary
  assert sorted(seen[table.start]) == [(first, first + 20) for first in range(0, 160, 20)]


def test_a_mesh_that_does_not_divide_the_experts_is_refused():
  with pytest.raises(errors.UserError, match='mesh.expert=8: .* is not divisible by 8'):
    direct.opened(CASE, dict(data=1, expert=8, model=1))
