"""Which implementation of an operation a program gets: that of the platform that the program is lowered for.

A process may lower for devices that it does not have, and for several kinds of them. So the platform is never
that of the default device. The mesh in use says which of a platform's kernels and tiles are taken, and where
there is none, the devices of the process do.
"""

import importlib

import jax
import jax.numpy as jnp

NAMES = ('cpu', 'tpu', 'gpu')
DTYPES = (jnp.float32, jnp.bfloat16)    # of the arrays that kernels multiply and add up


def device():
  """Returns the device that kernels and tiles are chosen for: of the mesh in use, else of this process."""
  return jax.sharding.get_abstract_mesh().abstract_device or jax.local_devices()[0]


def check_dtype(name, x):
  """Raises ValueError unless kernels know the dtype of an array x, which the message calls `name`."""
  if x.dtype not in DTYPES:
    raise ValueError(f'{name} is {x.dtype}; nearest: {", ".join(jnp.dtype(d).name for d in DTYPES)}')


def choose(name, *, cpu, tpu, gpu):
  """Returns the function of arrays that computes an operation on the target `name`.

  With None the function holds all three. Each is traced, and lowering keeps that of its platform ('gpu' for
  CUDA, 'cpu' for every platform without kernels). Outside of `jit` only that of the arguments' device is
  called.

  Args:
    name: 'cpu', 'tpu', 'gpu', or None: the platform that the program is lowered for.
    cpu, tpu, gpu: functions of the same arrays, or trees of them, with results of one shape and dtype.
  Raises:
    ValueError: there is no such target.

  >>> choose('cpu', cpu=lambda x: x + 1, tpu=None, gpu=None)(1)
  2
  """
  if name is None:
    return lambda *args: jax.lax.platform_dependent(*args, tpu=tpu, cuda=gpu, cpu=cpu, default=cpu)
  if name not in NAMES:
    raise ValueError(f'target {name!r} is none of {", ".join(NAMES)} or None')
  return dict(cpu=cpu, tpu=tpu, gpu=gpu)[name]


def modules(package, **options):
  """Returns dict target -> function of arrays, named as `package`, in its modules portable, tpu and gpu.

  A module is imported when its function is called, so that nobody needs the toolkit of another platform.
  `options` are given to each of these functions.
  """
  function = package.rpartition('.')[2]

  def of(module):
    def call(*args):
      return getattr(importlib.import_module(f'{package}.{module}'), function)(*args, **options)
    return call
  return dict(cpu=of('portable'), tpu=of('tpu'), gpu=of('gpu'))
