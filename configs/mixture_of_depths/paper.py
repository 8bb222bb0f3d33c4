"""Mixture-of-Depths (Raposo et al., 2024, arXiv:2404.02258): what is at hand of the paper; (u) = from memory.

None is what is not at hand.
"""

SHARE = 0.125                        # C / S: 12.5 % of a sequence pass a block
EVERY = 2                            # in every second block
ACCURACY = (0.97, 0.99)              # of the predictor (u)
# Widths, layers, batch, optimizer, coefficients of the losses for the causal form, tables of results.
SIZES = OPTIM = COEFFICIENTS = REPORTED = None
