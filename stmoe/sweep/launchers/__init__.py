"""Who starts the runs of a sweep; one file each, named in `--launcher NAME:field=value,...`.

`launch(runs, board, *, fields) -> exit code`: does the runs, keeps `board` (stmoe/sweep/live.py) up to
date, and returns 0 when it has nothing left to do, whether or not runs failed, or the code of the signal that
stopped it (130 after Ctrl-C, 85 after SIGTERM). A field has the type of its default.
"""
