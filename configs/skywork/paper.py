"""Skywork-MoE (Wei et al., 2024, arXiv:2406.06563): what the report says.

None is what it does not give.
"""

# Upcycled from Skywork-13B, whose widths (arXiv:2310.19341, unverified) with 16 experts in every layer
# make the printed 146B; 22B active as printed.
SIZE = dict(d_model=4608, num_heads=36, head_dim=128, layers=52, d_ff=12288, vocab_size=65536, experts=16,
            k=2, params=146e9, active=22e9)
# The ablations' model: 2.5B parameters, 16 experts; its widths are not given.
ABLATION = dict(d_model=None, layers=None, d_ff=None, experts=16, k=2, params=2.5e9)

SCALE = 1.0                        # lambda; 1 and 2 have similar loss, both better than no normalisation
XI, ALPHA_MAX, BETA = 0.2, 0.01, 0.99
ALPHA_START = None                 # the configurations start at ALPHA_MAX
FIXED = (1e-2, 1e-3)               # usual constant coefficients
CAPACITY_FACTOR = None
OPTIM = None                       # optimizer, rate, batch and tokens

# C-Eval, CMMLU, MMLU, GSM8K, MATH, HumanEval.
REPORTED = dict(skywork_moe=(82.2, 79.5, 77.4, 76.1, 31.9, 43.9),
                skywork_13b=(62.1, 62.4, 62.7, 60.2, 8.4, 18.9))

PARAMETERS = (('skywork/sizes', SIZE['params'], 1e9),)
