"""Mixture-of-Supernets (Jawahar et al., 2023, arXiv:2306.04845): what its code says; (u) = from memory.

None is what is not at hand.
"""

EXPERTS = 2                          # sets of weights
ROUTER_LAYERS = 2                    # 1 is a variant; neuron-wise mixtures with 2 are the best (u)
SAMPLED = ('largest', 'smallest', 'random')          # networks of a training step (u)
# Architecture embedding: active widths over the largest, or one-hot.
SIZES = OPTIM = REPORTED = None
