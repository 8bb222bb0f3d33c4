"""LibMoE (arXiv:2411.00918, TMLR 2026): what the sweeps of its language models say.

Code: Fsoft-AIC/LibMoE, folder language_modeling, and Fsoft-AIC/CompeteSMoE, folder moe_pretrain_model, which
have one trainer. None is what they do not give.
"""

# D, layers, experts of width F, k of them a token, positions of a row, rows of a batch; all layers sparse.
SIZE = dict(d_model=512, layers=16, experts=64, d_ff=128, k=8, length=1024, batch=64, steps=100_000,
            num_heads=None)
# AdamW, cosine to a tenth of the peak; no warm-up at 0.15B parameters, 4,000 steps and clip 0.25 at 0.68B.
OPTIM = dict(peak=2.5e-4, end_fraction=0.1, weight_decay=0.01, clip=0.1, warmup_steps=0, betas=None)
BALANCE = 0.01                     # of every router's balance or entropy loss
VISION = dict(balance=0.01, z=0.001)         # of its vision-language layers
VOCAB_SIZE = None
