"""Other libraries' sparse layers for `stmoe bench`, a file each; the file name is the registry.

A peer says why it cannot run here, `missing() -> str` ('' if it can), and makes a `bench.Variant` of a
`bench.Problem`, `variant(problem, floor)`. A peer and its library are imported only when asked for.
"""
