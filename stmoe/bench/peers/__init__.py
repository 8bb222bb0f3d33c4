"""Other libraries' sparse layers for `stmoe bench`, one file each; the file name is the registry.

A peer says why it cannot run here, `missing() -> str` ('' if it can), and makes a `bench.Variant` of a
`bench.Problem`, `variant(problem, floor)`. It is imported, and its library too, only when it is asked for.
"""
