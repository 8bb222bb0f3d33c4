"""Scaling laws: a law is a file (`laws`), with one fit for all laws, and what a fit tells.

`columns` says what the columns of a table mean. `study` goes from a table to coefficients with
intervals, and to an error on runs that were held out. `figures` draws a study. `stmoe fit` is the command.
"""
