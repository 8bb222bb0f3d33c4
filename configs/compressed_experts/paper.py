"""Compressed Experts (2025, arXiv:2503.00634): what we know of the paper.

The layer is stmoe/layers/compressed_experts.py, the surgery stmoe/surgery/compressed_experts.py. None is what
we do not know.
"""

CHOICES = dict(phi_moe=(1, 1), olmoe=(4, 4))             # experts that are computed, and vectors
OUTPUT = 'product'                   # of the main sum and the mean vector (unverified)
TRAINING = None                      # of vectors and, in the main results, of the model
# Share of the full model's performance; fewer active parameters; less cost of inference.
REPORTED = dict(performance=0.9, active=-0.3, cost=-0.2)
