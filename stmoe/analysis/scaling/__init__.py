"""Scaling laws: one law a file (`laws`), one fit for all of them, and what a fit tells.

`columns` says what the columns of a table mean. `study` goes from a table to coefficients with
intervals, and to an error on runs that were held out. `figures` draws it. `stmoe fit` is the command.
"""
