"""SwitchHead (Csordás et al., 2023, arXiv:2312.07987): what the released sweeps say.

Sweeps: RobertCsordas/moe_attention, folder sweeps, sweeps of WikiText-103 with rotary positions. None is what
they do not give.
"""

# D, layers, positions of a row, dropout, clip by norm, warm-up. Steps 100,000 and 64 rows a batch everywhere.
SIZES = dict(
    small=dict(d_model=412, layers=16, length=512, dropout=0.1, clip=0.1, warmup=0),
    big=dict(d_model=1024, layers=18, length=1024, dropout=0.2, clip=0.25, warmup=4000),
)
STEPS, BATCH = 100_000, 64

# H heads of width P, E experts of each head, k of them a token; F = int(D * ff_multiplier). The feed-forward
# layers are widened until the parameters match the dense model's.
# small: wikitext103_moeatt_rope_matched_k3, wikitext103_xl_rope;
# big:   wikitext103_moeatt_big_h4_matched_k2_rope, wikitext103_baseline_big_rope.
ATTENTION = dict(
    small=dict(heads=2, width=64, experts=5, k=3, ff_multiplier=5.08),
    big=dict(heads=4, width=100, experts=4, k=2, ff_multiplier=4.04),
)
DENSE = dict(
    small=dict(heads=10, width=41, ff_multiplier=4.985),
    big=dict(heads=16, width=64, ff_multiplier=4.014),
)
# SwitchAll: sparse feed-forward layers, too (sigma-MoE). Sweep wikitext103_small_fullmoe, which has the
# positions of Transformer-XL, 256 positions a row and clip 0.25; here it is `small` with these layers.
SWITCH_ALL = dict(heads=2, width=76, experts=5, k=2, ffn=dict(experts=16, k=4, d_ff=128))
TURNED = 0.5                       # the share of a head's width that rotary positions turn
# Coefficients of the entropy loss, which layers add up: moe.att.perplexity_reg and, of SwitchAll's experts,
# moe.perplexity_reg.
ENTROPY = dict(attention=0.0, ffn=1e-4)

# AdamW, cosine from the peak. Betas and weight decay are not in the sweeps: None.
PEAK = 2.5e-4
BETAS = WEIGHT_DECAY = END_FRACTION = None

VOCAB = 8000                       # pieces of SentencePiece, which make the 47M and 262M of the paper
REPORTED = None                    # the paper's tables are not at hand
