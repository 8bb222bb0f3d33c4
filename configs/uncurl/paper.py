"""UNCURL (Sarkar et al., 2024, arXiv:2409.01483): what the abstract says; no code was found.

Pruning is offline, after training and for a task; the number of experts adapts to the layer. Beyond a pruning
factor quality is lost, and this factor rises with the number of experts in pre-training. Pruned large models
are compared with small ones from scratch.
"""

# A small reproduction that is expected to show the direction: experts before, choices of a token, factors.
SMALL = dict(experts=(8, 32), k=(1, 2), factors=(2, 4, 8))
REPORTED = dict(factor=None)           # no number is at hand
