"""Kinds of work of the kit, a file each; the file name is the registry.

A piece has WORTH, a number: pieces come in its order. `jobs(dry)` returns its Jobs and Commands
(`device/pending.py`), the most valuable first; tiny ones for CPUs in a `dry` run. `table(records)` returns
Markdown of the records of its jobs, dict job -> record, some of them not done. The first paragraph of its
docstring stands above that. No device is touched before a job begins.
"""
