"""LibMoE (arXiv:2411.00918, TMLR 2026): what the sweeps of its language models say.

Code: Fsoft-AIC/LibMoE, folder language_modeling, and Fsoft-AIC/CompeteSMoE, folder moe_pretrain_model, which
have one trainer. None is what they do not give.
"""

# D, layers, experts of width F, k of them a token, positions of a row, rows of a batch, heads of `width`.
# All layers are sparse. Sweeps slimpajama_moe_no_attmoe_154M of CompeteSMoE; LibMoE's have 66 experts.
SIZE = dict(d_model=512, layers=16, experts=64, d_ff=128, k=8, length=1024, batch=64, steps=100_000,
            num_heads=4, width=82)
TURNED = 0.5                       # the share of a head's width that rotary positions turn, by default
VOCAB = 8000                       # pieces; they make the 154M of the sweeps' name (our reading)
PARAMS = 154e6
# Variance scale c^2 of W ~ N(0, c^2 / D) and K ~ N(0, c^2 / D); V ~ N(0, c^2 / (E F)).
INIT_SCALE = 2 / SIZE['layers']
# AdamW, cosine to a tenth of the peak; no warm-up at 0.15B parameters, 4,000 steps and clip 0.25 at 0.68B.
# Betas are the trainer's defaults, which no sweep changes.
OPTIM = dict(peak=2.5e-4, end_fraction=0.1, weight_decay=0.01, clip=0.1, warmup_steps=0, betas=(0.9, 0.999))
# Losses of routers are added up over layers, in the code for language and in that for vision and language.
BALANCE = 0.01                     # of every router's balance or entropy loss
VISION = dict(balance=0.01, z=0.001)         # of its vision-language layers
REDUCTION = 'sum'
