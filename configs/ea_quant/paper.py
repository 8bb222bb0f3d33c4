"""EAQuant (2025, arXiv:2506.13329, id unverified): what paper and a copy of its code say.

The surgery is stmoe/surgery/ea_quant.py. None is what we do not know.
"""

BITS = ((4, 4), (3, 4))              # of weights and activations
ROUTER_BITS = 8
ALPHA, QUANTILE, FENCE, RATE = 0.6, 0.65, 1.5, 0.7       # the driver's; a function's QUANTILE is 0.8
RATIOS = (0.35, 1.0, 101)            # of a router's range: first, last, number
TOKENS = 2.0                         # of an expert in calibration, over an even share of a sequence
REPORTED = (1.15, 2.28)              # average gain over the baselines in per cent, three models
MODELS = None
