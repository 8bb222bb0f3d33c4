"""Buckets of T5's relative position bias, every distance."""

import jax.numpy as jnp
import numpy as np

from stmoe.parts import relpos


def test_every_distance_of_a_decoder_has_its_bucket():
  """16 exact ones; then 16 * 8^(n/16), n = 0 to 15, rounded up, are the first distances (T5, 32 and 128)."""
  borders = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
  distance = np.arange(2000)
  wanted = np.where(distance < 16, distance, 15 + np.searchsorted(borders, distance, side='right'))
  found = relpos.bucket(-jnp.asarray(distance), bidirectional=False)
  np.testing.assert_array_equal(found, wanted)
  assert found.max() == 31                                           # of 32; there is no bucket 32


def test_borders_of_an_encoder_that_are_whole_numbers():
  """8 exact ones; 8 * 16^(n/8): 16, 32 and 64 begin buckets 10, 12 and 14; later keys have 16 more."""
  at = jnp.array([-8, -15, -16, -31, -32, -63, -64, -500, 32, 500])
  assert relpos.bucket(at).tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 28, 31]
