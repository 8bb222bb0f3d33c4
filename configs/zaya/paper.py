"""ZAYA's router (2025 model; its code in transformers, by a reading note): what the note says.

No report of it is at hand. Its memory over depth is that of RMoE, arXiv:2408.06793. None is what the note
does not say.
"""

SKIP_BIAS = -1.0                   # where the selection bias of the skip expert begins
LAYERS_OF_MLP = 3                  # two with GELU, then a linear one to E + 1
LAMBDA = 1.0                       # where the factor of what lower layers gathered begins
# Width of r and of the MLP, choices of a token, the rule by which biases move, GELU's form.
WIDTH = K = BIAS_RULE = GELU = None
SIZES = OPTIM = REPORTED = None
