"""Mixtures of experts for several tasks of one row: a file each, found by its name.

A mixer of section `model` is called as mixer(width, d_model, num_tasks, rngs). It is a stack of
`parts.multi_gate.Level`s, and takes (x [B,D], Context of [B,1]) to (states [B,K,H] of the tasks, dict name of
a level or gate -> Aux).
"""
