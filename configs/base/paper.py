"""BASE layers (Lewis et al., 2021, arXiv:2103.16716) and S-BASE (Clark et al., 2022, arXiv:2202.01169).

None is what the papers do not give. `derived` is what their figures imply.
"""

# Section 4.1: a decoder of pre-norm blocks with ReLU and no dropout. The paper prints a width of 8096;
# 8192 = 4 D is what its parameters need. 16 heads of 128 (derived).
BACKBONE = dict(d_model=2048, d_ff=8192, num_heads=16, head_dim=128)
VOCAB_SIZE = 51_200                # GPT-2 BPE, padded
LENGTH = 1024

# Section 4: one BASE layer in the middle, 128 experts, by size of the experts. Shared and per expert as
# printed; sublayers of the small and the large one derived from them. Blocks derived: as many as make
# equal FLOPs with 24 blocks and 10 sublayers, a block being worth 1.5 sublayers.
EXPERTS = 128
SIZES = dict(
    standard=dict(layers=24, sublayers=10, shared=1.3e9, expert=335e6, params=44e9),
    small=dict(layers=28, sublayers=4, shared=1.5e9, expert=135e6, params=18.8e9, computed=18.7e9),
    # 840M shared parameters are 14.6 blocks.
    large=dict(layers=15, sublayers=27, shared=840e6, expert=911e6, params=117e9),
)

# Section 5: where N BASE layers stand, each with 10 // N sublayers (total near 44B).
PLACEMENTS = dict(
    middle=dict(layers=1, top=False),
    two=dict(layers=2, top=False),
    three=dict(layers=3, top=False),
    top=dict(layers=1, top=True),
)

# Section 4.1. Each of 128 workers holds 2 rows and assigns their 2048 tokens: 16 for every expert.
OPTIM = dict(
    peak=(0.5e-4, 0.75e-4, 1.0e-4),              # the highest stable of these
    warmup_steps=2000,                           # then linear decay
    clip=0.1,                                    # norm of the shared parameters only
    betas=None,
    rows_per_worker=2, workers=128, accumulate=8,    # 2.1M tokens per update
    days=2.5,
    steps=None,                                  # derived: 545k tokens/s for 2.5 days are 56k
)

# Section 4.1: sparse baselines, every second feed-forward layer, 128 experts, 52.5B parameters. The
# capacity factors are read as slots per token for all its choices, as GShard counts (unverified).
BASELINES = dict(
    moe=dict(k=2, capacity_factor=2.0, balance=0.01, params=52.5e9),      # Sparsely-Gated
    switch=dict(k=1, capacity_factor=1.0, balance=0.01, params=52.5e9),
    dense=dict(layers=28, params=1.5e9),         # data parallel; layers derived from 1.5B parameters
)
MODEL_PARALLEL = dict(two_way=3e9, four_way=6e9)     # about; widths not given, so no configuration

# Table of training speed on 128 GPUs, tokens per second.
SPEED = dict(dense=600e3, model_parallel_2=224e3, moe=292e3, switch=469e3, base=545e3, base_2=475e3)

# The public fork that runs BASE, Switch and Hash under one code (StableMoE, arXiv:2204.08396). Experts:
# one for each of 16 GPUs; the sizes beside the small one do not say how many.
STABLEMOE = dict(
    small=dict(layers=12, d_model=768, d_ff=3072, num_heads=12, head_dim=64, sublayers=3, experts=16),
    medium=dict(layers=24, d_model=1024, d_ff=4096, num_heads=16, head_dim=64, sublayers=6, experts=None),
    large=dict(layers=24, d_model=1536, d_ff=6144, num_heads=16, head_dim=96, sublayers=3, experts=None),
)
STABLEMOE_OPTIM = dict(b1=0.9, b2=0.98, clip=0.1, peak=6e-4, warmup_steps=2000, steps=60_000,
                       rows_per_worker=8, workers=16, accumulate=4)

# S-BASE, arXiv:2202.01169: sizes of its sweep. `params` counts the blocks alone, with the projections of
# Transformer-XL's relative attention.
S_BASE_SIZES = {
    '15m': dict(d_model=512, layers=6, num_heads=8, head_dim=32, params=16_527_360),
    '25m': dict(d_model=512, layers=8, num_heads=8, head_dim=64, params=27_279_360),
    '55m': dict(d_model=640, layers=10, num_heads=12, head_dim=64, params=57_369_600),
    '130m': dict(d_model=896, layers=12, num_heads=16, head_dim=64, params=132_163_584),
    '370m': dict(d_model=1536, layers=12, num_heads=12, head_dim=128, params=368_123_904),
    '870m': dict(d_model=2048, layers=16, num_heads=16, head_dim=128, params=872_546_304),
    '1.3b': dict(d_model=2048, layers=24, num_heads=16, head_dim=128, params=1_308_819_456),
}
S_BASE_EXPERTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# All but the number of tokens (unverified). capacity_factor: of their TPU implementation.
S_BASE_OPTIM = dict(peak=2e-4, end_fraction=0.1, warmup_steps=1500, steps=250_000, tokens=130e9, rows=256,
                    length=2048, vocab_size=32_000, capacity_factor=2.0, activation=None)
# Its law for S-BASE: log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d, with the saturating
# 1/E' = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max; N parameters without experts, L in nats.
S_BASE_LAW = dict(a=-0.082, b=-0.108, c=0.009, d=1.104, e_start=1.847, e_max=314.478)

# What tests compare: (experiment, printed, unit of the last printed digit), and where the printed
# dimensions make another number (experiment, printed, computed by us, largest relative difference).
PARAMETERS = (
    ('base/sizes', SIZES['standard']['params'], 1e9),
    ('base/sizes:size=large', SIZES['large']['params'], 1e9),
    ('base/baselines:method=moe', BASELINES['moe']['params'], 1e8),
    ('base/baselines:method=switch', BASELINES['switch']['params'], 1e8),
    ('base/baselines:method=dense', BASELINES['dense']['params'], 1e8),
)
COMPUTED = (('base/sizes:size=small', SIZES['small']['params'], SIZES['small']['computed'], 0.01),)
