"""Banks of experts around a bank, their `inner`: one file each, found by its name as banks are.

In a configuration they are `experts=dict(name='packed', ..., inner=dict(name='glu', ...))`.
"""
