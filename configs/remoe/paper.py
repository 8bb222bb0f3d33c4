"""ReMoE (2024, arXiv:2412.14711): what we know of the paper and of its released code (thu-ml/ReMoE).

None is what we do not know.
"""

SIZES = None                         # of the paper's models: those of configs/remoe/small.py are ours
INITIAL, MULTIPLIER = 1e-8, 1.2      # of lambda, and of its change after a step
DENSE_STEPS = 100                    # the first steps, roughly, compute most experts
REPORTED = None                      # loss below top-k routing at equal mean FLOPs
