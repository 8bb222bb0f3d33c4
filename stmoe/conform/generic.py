"""Any router, bank or layer with the same arguments: those of the tables here that its signature has."""

import functools
import inspect
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import plugins

VOCAB = 23
OF_ROUTERS = dict(capacity_factor=(1.0, 2.0), min_capacity=2, vocab_size=VOCAB, allow_causal=True, tile=2,
                  num_null=2, hidden=8, skip_bias=0.0,
                  inner=dict(name='st_moe', num_experts=4, capacity_factor=(None, None)),
                  passes=0)              # of several passes float32 has four digits: test_mofme.py
# As large as training makes them, and every optional array there.
OF_BANKS = dict(d_ff=12, init_scale=1.0, use_bias=True, multiplicative_bias=True, rank=3,
                inner=dict(name='mlp', d_ff=12, init_scale=1.0))
# What layers need and cannot know.
OF_LAYERS = dict(d_ff=12, num_experts=4, k=2, router=dict(name='smoe', num_experts=4),
                 experts=dict(name='mlp', d_ff=12, init_scale=1.0), executor='einsum',
                 inner=dict(name='dense', d_ff=12))


class Unknown(errors.UserError):
  """What is to be checked, `whose`, needs the field `name`, of which no check knows a value."""

  def __init__(self, whose: str, name: str):
    super().__init__(f'{whose} needs the field {name!r}, of which no check knows a value; nearest: '
                     f'stmoe check FILE:{name}=VALUE')


def known(make: typing.Callable, fields: dict[str, typing.Any]) -> dict[str, typing.Any]:
  """Returns the entries of `fields` that the class `make` takes.

  Raises Unknown for a field that it needs and that is not among them.
  """
  parameters = inspect.signature(make.__init__).parameters
  given = {'self', 'd_model', 'rngs', 'num_experts'}
  for name, parameter in parameters.items():
    if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY and (
        name not in fields and name not in given):
      raise Unknown(getattr(make, '__name__', str(make)), name)
  return {key: value for key, value in fields.items() if key in parameters}


def check_of(module: str, rule: typing.Callable, call: typing.Callable) -> typing.Callable[..., None]:
  """Returns `call(name, **fields)` as a check of dotted `module`, with the name and the title of `rule`."""
  def check(name, **fields):
    call(name, **fields)
  check.__name__, check.__doc__, check.__module__ = rule.__name__, rule.__doc__, module
  return check


def cached(function: typing.Callable) -> typing.Callable:
  """Returns `function(name, **fields)`, called once for equal arguments and plugins; fields may be groups."""
  results: dict[str, typing.Any] = {}

  @functools.wraps(function)
  def call(*args, **fields):
    key = repr((plugins.known(), args, sorted(fields.items())))
    if key not in results:
      results[key] = function(*args, **fields)
    return results[key]
  return call


def given(module: nnx.Module, rows: int, tokens: int = 1) -> dict[str, jax.Array]:
  """Returns what parts of `module` read of `Context.given` (`reads`), [rows,tokens,...], alike in a row."""
  arrays = {}
  for _, part in modules.offering(module, 'reads'):
    for name, of in part.reads.items():
      drawn = (jax.random.randint(jax.random.key(len(name)), (rows, 1), 0, of) if isinstance(of, int) else
               jax.random.normal(jax.random.key(len(name)), (rows, 1, *of)))
      arrays[name] = jnp.broadcast_to(drawn, (rows, tokens, *drawn.shape[2:]))
  return arrays


def router(name: str, d_model: int, num_experts: int, seed: int = 0, **changed) -> typing.Any:
  """Returns router `name` with the fields of OF_ROUTERS, or `changed` ones."""
  make = lookup.constructor('router', name)
  fields = known(make, OF_ROUTERS | dict(num_experts=num_experts) | changed)
  return lookup.recipe('router', dict(name=name) | fields)(d_model, rngs=nnx.Rngs(seed))


def losses(name: str) -> str:
  """Returns the text that follows `Losses:` in a router's docstring, without its differences."""
  text = lookup.constructor('router', name).__doc__ or ''
  return text.partition('Losses:')[2].partition('Differs:')[0]


def bank(name: str, d_model: int, num_experts: int, seed: int = 0, **changed) -> typing.Any:
  """Returns the bank `name` with the fields of OF_BANKS; no array of it is constant."""
  make = lookup.constructor('experts', name)
  make = lookup.recipe('experts', dict(name=name) | known(make, OF_BANKS | changed))
  return bank_of(make, d_model, num_experts, seed)


def bank_of(make: typing.Callable, d_model: int, num_experts: int, seed: int = 0, **changed) -> typing.Any:
  """Returns the bank of class `make`; see `bank`."""
  fields = {} if isinstance(make, functools.partial) else known(make, OF_BANKS | changed)
  made = make(d_model, num_experts=num_experts, **fields, rngs=nnx.Rngs(seed))
  for i, (_, value) in enumerate(nnx.to_flat_state(nnx.state(made, nnx.Param))):
    value[...] += 0.1 * jax.random.normal(jax.random.key(seed + i), value.shape)
  return made


def needed(kind: str, name: str, changed: dict) -> dict[str, typing.Any]:
  """Returns the fields of OF_LAYERS that module `name` of `kind` needs, and `changed` ones."""
  fields = lookup.fields(kind, name)
  wanted = {key: OF_LAYERS[key] for key, field in fields.items()
            if field.range is not None and field.default is declared.REQUIRED and key in OF_LAYERS} | changed
  builder = {key: None for key, field in fields.items() if field.range is None}
  known(lookup.constructor(kind, name), wanted | builder)
  return wanted


def layer(name: str, d_model: int, seed: int = 0, **changed) -> typing.Any:
  """Returns layer `name`; of the fields in OF_LAYERS only those that it needs, or `changed` ones."""
  recipe = lookup.recipe('layer', dict(name=name) | needed('layer', name, changed))
  return recipe(d_model, rngs=nnx.Rngs(seed))
