"""Launchers start the runs of a sweep; a file each, named in `--launcher NAME:field=value,...`.

`launch(runs, board, *, fields) -> exit code`: does the runs and keeps `board` (stmoe/sweep/live.py) up to
date. It returns 0 when it has nothing left to do, whether or not runs failed. After a signal that stopped it,
it returns the code of the signal (130 after Ctrl-C, 85 after SIGTERM). A field has the type of its default.
"""
