"""Training: the loop, its step, its checks. `stmoe.train(config)` trains, see `stmoe.api.train`."""

import importlib
import sys
import types
import typing


class _Training(types.ModuleType):
  """This package, which is called like the function of the Python API."""

  def __call__(self, *args, **fields) -> typing.Any:
    # By its name: the API stands on this package, not the package on the API.
    return importlib.import_module('stmoe.api').train(*args, **fields)


sys.modules[__name__].__class__ = _Training
