"""MoEUT (Csordás et al., 2024, arXiv:2405.16039): profiles of the released code, RobertCsordas/moeut.

Optimizer and batch are those of LibMoE's sweeps (configs/libmoe), which are not of these profiles. None is
what neither gives.
"""

# D, layers in all, G of them distinct, H heads of width P, E experts of width F in a feed-forward layer, k of
# them a token, A experts of a head's values and outputs.
# 727m: the note at hand has D = 1024, which makes 582M; 1280 makes the 727M of the name (our reading).
SIZES = {
    '44m': dict(d_model=412, layers=16, groups=2, heads=4, width=82, experts=155, k=12,
                attention_experts=8),
    '126m': dict(d_model=768, layers=18, groups=2, heads=4, width=96, experts=254, k=12,
                 attention_experts=10),
    '244m': dict(d_model=1024, layers=18, groups=2, heads=4, width=128, experts=387, k=16,
                 attention_experts=10),
    '318m': dict(d_model=1024, layers=24, groups=3, heads=4, width=128, experts=338, k=16,
                 attention_experts=10),
    '727m': dict(d_model=1280, layers=36, groups=4, heads=5, width=128, experts=467, k=20,
                 attention_experts=13),
    '1b': dict(d_model=1536, layers=36, groups=4, heads=6, width=128, experts=565, k=24,
               attention_experts=12),
}
D_FF, ATTENTION_K = 128, 2         # F, and choices of a head, in all profiles
TURNED = 0.5                       # the share of a head's width that rotary positions turn

# Coefficients of the entropy losses. They are of the sum over distinct layers, each loss of all its passes
# together; of attention the losses of both selections add up.
ENTROPY = dict(ffn=0.01, attention=0.001)
EXPERT_DROPOUT = None              # the code has it, at a rate that is not at hand

# An untied vocabulary of 8,000 pieces makes the counts (our reading); 244m has 0.7M less than its name.
VOCAB = 8000
PARAMETERS = (('moeut/sizes', 44e6, 1e6), ('moeut/sizes:size=126m', 126e6, 1e6),
              ('moeut/sizes:size=244m', 244e6, 1.5e6), ('moeut/sizes:size=318m', 318e6, 1e6),
              ('moeut/sizes:size=727m', 727e6, 1e6), ('moeut/sizes:size=1b', 1e9, 1e8))

LARGE_CLIP, LARGE_WARMUP = 0.25, 4000      # of the sweeps at 0.68B; else libmoe.OPTIM
REPORTED = OPTIM = None            # the paper's tables are not at hand
