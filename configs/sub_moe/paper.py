"""Sub-MoE (Li et al., 2025, arXiv:2506.23266): what the abstract and summaries say; no code is public."""

RECIPE = dict(
    samples=128,                       # of C4, fed to all experts (unverified)
    clustering='k-means of all experts\' outputs, by cosine',
    weights='usage',                   # share of tokens that have the expert among their k
    whitening='second moment of each expert\'s inputs',      # the exact choice is unverified
    router=None,                       # columns of a group are shared or summed: unverified
)
# Zero-shot performance of Mixtral-8x7B that is left, by the share of experts that goes.
REPORTED = {0.25: 0.96, 0.50: 0.86}
