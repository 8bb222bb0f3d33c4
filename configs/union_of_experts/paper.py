"""Union of Experts (Yang et al., 2025, arXiv:2503.02495): the released scripts and the abstract.

Scripts: YujiaoYang-work/UoE, folders language_modeling and long_range_modeling. None is what neither gives.
"""

# WikiText-103, the code base of Transformer-XL: 150 positions a row, a memory of 150 more, adaptive softmax.
MODEL = dict(d_model=400, num_heads=10, head_dim=40, layers=16, d_ff=2100, dropout=0.1, length=150,
             memory=150, params=None)
# E shards of a network, k of them scored by a token; of attention all heads, half of them.
EXPERTS, K = 4, 2
SHARE = 0.5                            # m / S: every shard computes int(S / 2) tokens of a sequence
CAPACITY, EPSILON = 1.0, 1e-8
OPTIM = dict(optimizer='adam', learning_rate=2.5e-4, warmup=0, steps=200_000, batch=60, schedule=None,
             betas=None, clip=None)

# Long Range Arena (text): two layers, two heads, of which a token has one. Gates over experts, rotary
# positions for half of each head's channels, at true positions, SwiGLU shards, RMSNorm before sub-layers.
LONG_RANGE = dict(d_model=128, layers=2, heads=2, k=1, learning_rate=1e-4, weight_decay=0.01, dropout=0.1,
                  batch=16, steps=60_000)

# Abstract. Perplexity: mean reduction against the best of other mixtures, and the share of its FLOPs. Long
# Range Arena: points of accuracy above all compared, and the share of the best mixture's FLOPs. Images:
# points above the best model of comparable FLOPs.
REPORTED = dict(perplexity=2.38, flops=0.76, long_range=0.68, long_range_flops=0.50, images=1.75)
