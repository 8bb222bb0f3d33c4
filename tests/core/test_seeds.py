"""Seeds of 64 bits: those below 2^32 are JAX's own, and no two are one."""

import jax
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import ranges
from stmoe.core import seeds
from stmoe.train import state as states

ALL = (0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**33, 2**63, 2**64 - 1)
words = lambda key: tuple(jax.random.key_data(key).tolist())


def test_no_two_seeds_are_one():
  key = jax.random.key(3)
  for keys in ([seeds.key(s) for s in ALL], [seeds.fold(key, s) for s in ALL],
               [states.fold(s, 'params') for s in ALL]):
    assert len(set(map(words, keys))) == len(ALL)


@pytest.mark.parametrize('seed', [0, 1, 42, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_are_the_numbers_they_were(seed):
  assert words(seeds.key(seed)) == words(jax.random.key(seed))
  assert words(seeds.fold(seeds.key(5), seed)) == words(jax.random.fold_in(jax.random.key(5), seed))


def test_what_is_no_seed_is_refused():
  assert experiment.load('lm/stdlib:smoke', ['seed=18446744073709551615'])[0].seed == ranges.Seed.high
  for text in ('-1', '18446744073709551616', '1.5', 'None', 'True'):
    with pytest.raises(errors.UserError, match=f'seed={text}: expected a whole number from 0 to'):
      experiment.load('lm/stdlib:smoke', [f'seed={text}'])
