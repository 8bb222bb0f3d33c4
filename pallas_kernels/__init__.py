"""Kernels that need JAX only, a folder per operation.

`api.py` is what to call; it takes the implementation of the platform that a program is lowered for. That is
`tpu.py` (Mosaic), `gpu.py` (Triton) or `portable.py` (XLA alone, on CPUs). For the grouped products on GPUs
it is `mosaic.py` on Hopper and `triton.py` elsewhere. Each is tested against `reference.py`, and `bench.py`
times it against a dense product. The grouped products and `combine` are called by
`stmoe.core.execute.pallas`; `route` is there for routers of one's own.
"""
