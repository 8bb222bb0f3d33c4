"""Efficient Language Modeling with Sparse all-MLP (Yu et al., 2022, arXiv:2203.06850), and gMLP.

No official code was found. What is marked (unverified) was not checked against the text; None is unknown.
gMLP: Pay Attention to MLPs (Liu et al., 2021, arXiv:2105.08050), checked in public code.
"""

# gMLP block, in public code; the paper's language models are wider, F = 6 D (unverified).
EXPANSION = 4                      # F / D
SPATIAL_INIT = 1e-3                # S ~ U(-1e-3/N, 1e-3/N); the bias over positions starts at 1

# Widths, numbers of layers and experts, and which layers are sparse: none is known for sure. That is why
# there is no configuration of the sizes below.
SIZES = dict(
    small=dict(d_model=None, d_ff=None, layers=None, experts=None, sparse_layers=None,
               flops_per_forward=0.8e12),                    # (unverified)
    large=dict(d_model=None, d_ff=None, layers=None, experts=None, sparse_layers=None, params=9.4e9,
               flops_per_forward=3.1e12),                    # FLOPs (unverified)
)

# Partial prediction: the share of the positions that decides and is not scored.
PREFIX = 0.2                       # input of the router, gate by its probability: (unverified)

# RoBERTa's corpus and English CC-100 as in BASE, about 100B tokens; GPT-2 pieces (all unverified).
DATA = dict(length=1024, vocab_size=51_200, tokens=100e9)

# The models compared in the large regime, parameters, at equal FLOPs per forward pass.
BASELINES = dict(smlp=9.4e9, gshard=9e9, switch=9e9, hash=10e9, base=10e9)
# Their routing: GShard top-2 and Switch top-1 in every other layer, BASE one inserted layer (unverified).

# Zero-shot in the large regime: accuracy, ReCoRD exact match.
REPORTED = dict(
    copa=dict(smlp=79.0, switch=75.0, gshard=76.0, hash=64.0, base=63.0),
    hellaswag=dict(smlp=54.5, switch=52.5, gshard=38.0, hash=33.0, base=30.2),     # BASE (unverified)
    winogrande=dict(smlp=54.3, switch=53.4, gshard=51.1, hash=51.7, base=51.0),
    record=dict(smlp=73.4, switch=79.9, gshard=72.4, hash=67.2, base=60.7),
    storycloze=dict(smlp=74.7, switch=73.3, gshard=67.9, hash=64.7, base=61.4),    # (unverified)
    piqa=dict(smlp=73.0, switch=76.8, gshard=68.1, hash=63.8, base=63.8),          # (unverified)
)
# Deterministic routing is at least as good as partial prediction overall (unverified).

# Ours: a size for a laptop or one accelerator, since the paper's are unknown.
OURS = dict(d_model=256, d_ff=1024, length=256, layers=8, sparse_layers=(3, 7), experts=8, learning_rate=6e-4,
            balance=1e-2)
