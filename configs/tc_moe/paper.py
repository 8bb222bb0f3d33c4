"""TC-MoE (Yan et al., ICLR 2025): what its official inference code and LibMoE (arXiv:2411.00918) say.

Official: stiger1000/TC-MoE, which has no losses; losses as in Fsoft-AIC/LibMoE. None is what neither gives.
"""

ROUTER = dict(num_experts=8, k=2, num_null=2, negative_bias=-1.0, null_bias=-10.0)     # official defaults
REWARD, BALANCE, Z = 1e-5, 0.01, 0.001
SIZES = OPTIM = REPORTED = None
# LibMoE reports an entropy of allocation of 0.68 to 0.73 and calls that over-specialised, but divides by
# ln(2E + k): six positive experts alone, perfectly even, have ln 6 / ln 15 = 0.662.
ENTROPY_OF_SIX = 0.662
