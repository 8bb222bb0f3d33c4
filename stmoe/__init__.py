"""stmoe: sparse mixtures of experts in JAX and Flax.

  stmoe.layer(name, d_model, ...)   a sparse layer for a model of one's own
  stmoe.Context.of(tokens)          what the layer may know of its tokens
  stmoe.train(config)               trains an experiment, and returns the run
  stmoe.open(run)                   a run: logits, routing, generation
  stmoe.plugin(file)                a router, experts, ... in a file of one's own; its code runs

Importing this package imports neither JAX nor TensorFlow. What stands above is imported when it is asked for,
see `stmoe.api`.
"""

import importlib
import typing

__version__ = '0.1.0'

_OFFERED = {'layer': 'stmoe.api', 'open': 'stmoe.api', 'plugin': 'stmoe.api', 'Run': 'stmoe.api',
            'Layer': 'stmoe.api', 'Context': 'stmoe.core.contract'}


def __getattr__(name: str) -> typing.Any:
  if name == 'train':                    # the package, which may be called
    return importlib.import_module('stmoe.train')
  if name not in _OFFERED:
    raise AttributeError(f"module 'stmoe' has no attribute {name!r}")
  return getattr(importlib.import_module(_OFFERED[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_OFFERED, 'train'})
