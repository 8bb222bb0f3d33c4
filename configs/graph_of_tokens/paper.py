"""Graph of Tokens (Nguyen et al., 2025, arXiv:2505.00792): what descriptions of it say, all unverified.

Verified from its abstract are the two variants and a theorem that entropy falls. None is what is not known.
"""

# The host on WikiText-103: of the family of MomentumSMoE's medium model.
SIZE = dict(d_model=352, layers=6, heads=8, experts=16, k=2, d_ff=352, length=512)
TAU = SIGMA = None                     # temperatures; 1 here
BALANCE = None
OPTIM = None                           # optimizer, rate, batch and steps

# Share of tokens whose expert is another one in the next epoch: plain, and both variants in early layers.
FLUCTUATION = dict(smoe=(0.20, 0.33), graph=0.0)
# V-MoE with and without, top-1 in per cent: ImageNet, -C, -A.
REPORTED = dict(vmoe=(79.7, 49.9, 21.7), graph=(80.5, 54.2, 27.8))
