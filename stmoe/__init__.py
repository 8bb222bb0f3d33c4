"""stmoe: sparse mixtures of experts in JAX and Flax.

Importing this package imports neither JAX nor TensorFlow; its modules do.
"""

__version__ = '0.1.0'
