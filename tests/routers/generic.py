"""Any router with the same arguments: those of FIELDS that its signature has."""

import inspect

from flax import nnx

from stmoe import lookup

VOCAB = 23
FIELDS = dict(capacity_factor=(1.0, 2.0), min_capacity=2, vocab_size=VOCAB, allow_causal=True, tile=2,
              num_null=2, hidden=8, skip_bias=0.0,
              passes=0)                  # of several passes float32 has three digits: test_mofme.py


def fields(name, **changed):
  """Returns the entries of FIELDS, with `changed` ones, that router `name` takes."""
  known = inspect.signature(lookup.constructor('router', name).__init__).parameters
  return {key: value for key, value in (FIELDS | changed).items() if key in known}


def build(name, d_model, num_experts, seed=0, **changed):
  """Returns router `name` with its generic fields."""
  make = lookup.constructor('router', name)
  return make(d_model, num_experts=num_experts, **fields(name, **changed), rngs=nnx.Rngs(seed))


def losses(name):
  """Returns the text that follows `Losses:` in the router's docstring, without its differences."""
  text = lookup.constructor('router', name).__doc__
  return text.partition('Losses:')[2].partition('Differs:')[0]
