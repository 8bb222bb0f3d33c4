"""Kernels that need JAX only, one folder per operation: reference.py, tpu.py, gpu.py, api.py, bench.py.

`stmoe.core.execute` is their only caller. Every kernel is tested against its `reference.py`.
"""
