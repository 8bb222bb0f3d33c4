"""SlimMoE (2025, arXiv:2506.18349): what we know of the paper; the surgery is stmoe/surgery/slim_moe.py.

None is what we do not know. Phi-3.5-MoE becomes two smaller models; the smallest has fewer heads, too.
"""

# Parameters, and those that a token uses.
SIZES = dict(phi_35_moe=(41.9e9, 6.6e9), mini=(7.6e9, 2.4e9), tiny=(3.8e9, 1.1e9))
TOKENS = 400e9                       # of distillation, less than a tenth of the original's training
STAGES = None                        # intermediate sizes; one step to the target is worse
TOP = 8                              # logits of the teacher that are compared (unverified)
IMPORTANCE = 'first order'           # |sum theta dL/dtheta| of a unit, of the distillation loss (unverified)
REPORTED = None                      # mini: MMLU near Llama-3.1-8B, at 2/3 of Phi-3-mini's active parameters
