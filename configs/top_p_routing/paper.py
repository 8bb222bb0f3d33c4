"""Dynamic routing by top-p (Huang et al., 2024, arXiv:2403.07652): what we know of paper and released code.

Code: github.com/ZhenweiAn/Dynamic_MoE, of inference. None is what we do not know; (unverified) is from notes
that nobody held against the paper.
"""

# The paper's model (unverified); active: parameters of a token. The width of the experts is not known: 5312
# makes the printed 3.5B with a sparse layer first of every two, as the released configuration has them.
SIZE = dict(d_model=1024, layers=24, experts=16, d_ff=None, heads=None, params=3.5e9, active=0.9e9,
            tokens=100e9)
P = 0.4
BALANCE, ENTROPY = 1e-2, 1e-4        # alpha and beta (unverified)
OPTIM = None

# +0.7 % on average over top-2 with under 90 % of its active parameters; experts of a token in five tasks.
REPORTED = dict(average=0.7, experts=1.76)

PARAMETERS = (('top_p_routing/sizes', SIZE['params'], 1e8),)
