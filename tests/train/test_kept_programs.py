"""A program that was compiled for one core is not taken for two: XLA has not cut it for them."""

import os

import jax
import pytest

from stmoe.train import loop


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='the cores are not told')
def test_programs_are_kept_by_number_of_cores(monkeypatch):
  told = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
  folders = set()
  try:
    for cores in ({0}, {1}, {0, 1}):
      jax.config.update('jax_compilation_cache_dir', None)
      monkeypatch.setattr(os, 'sched_getaffinity', lambda _, cores=cores: cores)
      loop.keep_compilations()
      folders.add(jax.config.jax_compilation_cache_dir)
  finally:
    jax.config.update('jax_compilation_cache_dir', told[0])
    jax.config.update('jax_persistent_cache_min_compile_time_secs', told[1])
  assert len(folders) == 2
