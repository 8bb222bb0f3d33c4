"""Cosines between experts: layers by their number, copies alike, others not."""

import jax
import numpy as np

from stmoe.surgery import similarity


def params(*banks):
  """A scanned stack of a dense and a sparse layer, repeated for every bank [E,D,F], and its logical axes.

  All experts of a layer share an array w [D,F].
  """
  wi = np.stack(banks)                                               # [L, E, D, F]
  bank = dict(wi=wi, w=np.ones((len(banks), 2, 3)))
  units = {0: dict(layer=dict(wi=np.zeros((len(banks), 2, 3)))), 1: dict(layer=dict(experts=bank))}
  shared, own = ('layers', 'expert_embed', 'expert_mlp'), ('layers', 'expert', 'expert_embed', 'expert_mlp')
  names = {0: dict(layer=dict(wi=shared)), 1: dict(layer=dict(experts=dict(wi=own, w=shared)))}
  return [dict(decoder=dict(segments={0: dict(blocks=blocks)})) for blocks in (units, names)]


def test_copies_are_alike_and_opposites_opposite():
  one = np.arange(1.0, 7.0).reshape(2, 3)
  bank = np.stack([one, 2 * one, -one, 0 * one])
  other = np.asarray(jax.random.normal(jax.random.key(0), (4, 2, 3)))
  found = similarity.experts(*params(other, bank))
  assert list(found) == ['decoder_01', 'decoder_03']
  np.testing.assert_allclose(found['decoder_03'], [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0] * 4],
                             atol=1e-6)
  flat = other.reshape(4, -1)
  cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
  np.testing.assert_allclose(found['decoder_01'][0, 1], cosine, rtol=1e-5)
