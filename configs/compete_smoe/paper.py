"""CompeteSMoE (arXiv:2402.02526, arXiv:2505.13380): what its released code says.

Code: Fsoft-AIC/CompeteSMoE, folders moe_pretrain_model (language) and moe_model (vision and language). None
is what it does not give.
"""

from stmoe.configs.libmoe import paper as libmoe

# Of the sweep of language models, whose sizes are those of configs/libmoe; the parser's own default of `most`
# is 2, and the sweep has no warm-up (the class: 0.05).
SCHEDULE = dict(rate=0.07, warm_up=0.0, most=3)
THETA, TAUGHT = 0.2, 'hybrid'
# Coefficients of a competing step, then of the others. Half of 0.01 each for diversity and entropy.
LANGUAGE = dict(distillation=0.001, diversity=0.005, competition_entropy=0.005, entropy=0.01)
VISION = dict(distillation=0.01, diversity=0.01, competition_balance=0.01, balance=0.01, z=0.001)
# Every loss of the layer; those that a code has not weigh 0.
LOSSES = ('distillation', 'diversity', 'competition_balance', 'competition_entropy', 'balance', 'z',
          'entropy')
REPORTED = None
PARAMETERS = (('compete_smoe/language', libmoe.PARAMS, 1e6),)
# Measured at the sweep's shape with random weights (D 512, F 128, E 64, k 8): with the code's initial values
# E q is 0.999 to 1.001, and a uniform router has a distillation loss of 1e-11; with outputs of rms 1 they are
# 0.91 to 1.16 and 2e-7. A random router has 3e-5: the loss flattens the router before it teaches winners.
UNIFORM_LOSS, RANDOM_LOSS = 1e-11, 3e-5
