"""DeepSeekMoE (arXiv:2401.06066), DeepSeek-V2 (arXiv:2405.04434), -V3 (arXiv:2412.19437): what they say.

None is what they do not give; V2 and V3 rows are completed from the released configurations.
"""

# d_ff: width of one routed or shared expert; dense: (leading dense layers, their width); params, active as
# printed.
SIZES = dict(
    # The 2B validation model, section 4. An expert is a quarter of a standard feed-forward layer of 13.1M
    # parameters (1.89B expert parameters = 9 layers x 16 x 13.1M): 853 is derived from that. BPE vocabulary
    # of 8K; whether the head is tied is not stated.
    validation=dict(d_model=1280, num_heads=10, head_dim=128, layers=9, dense=(0, None), routed=63, shared=1,
                    k=7, d_ff=853, vocab_size=8192, params=2.0e9, active=0.3e9),
    # Section 5; head untied and vocabulary padded as in the release.
    **{'16b': dict(d_model=2048, num_heads=16, head_dim=128, layers=28, dense=(1, 10944), routed=64,
                   shared=2, k=6, d_ff=1408, vocab_size=102400, params=16.4e9, active=2.8e9)},
    # Multi-head latent attention in these three; with the plain attention of this project the printed
    # counts cannot be met: computed is what ours makes. groups: (devices or nodes, of which a token reaches).
    v2_lite=dict(d_model=2048, num_heads=16, head_dim=128, layers=27, dense=(1, 10944), routed=64, shared=2,
                 k=6, d_ff=1408, vocab_size=102400, groups=(1, 1), route_scale=1.0, params=15.7e9,
                 active=2.4e9, computed=15.79e9),
    v2=dict(d_model=5120, num_heads=128, head_dim=128, layers=60, dense=(1, 12288), routed=160, shared=2, k=6,
            d_ff=1536, vocab_size=102400, groups=(8, 3), route_scale=16.0, params=236e9, active=21e9,
            computed=246.9e9),
    v3=dict(d_model=7168, num_heads=128, head_dim=128, layers=61, dense=(3, 18432), routed=256, shared=1, k=8,
            d_ff=2048, vocab_size=129280, groups=(8, 4),             # vocabulary (unverified)
            route_scale=2.5, params=671e9, active=37e9,
            computed=688.3e9),
)

# The preliminary 145B model, section 6: no configuration, because its widths are not given.
SIZE_145B = dict(
    d_model=4096, num_heads=32, head_dim=128, layers=62, routed=128, shared=4, k=12,
    dense=(1, None),                   # (unverified); width unknown
    d_ff=None,                         # an eighth of a standard feed-forward layer (unverified)
    params=144.6e9, active=22.2e9, balance=0.003, device=0.05,
    peak=3.0e-4,                       # (unverified)
    tokens=245e9)

# Coefficients of the balance, device and communication losses, each added up over layers.
LOSSES = dict(
    validation=(0.01, 0.0, 0.0),
    **{'16b': (0.001, 0.0, 0.0)},      # per sequence in the release
    v2_lite=(None, None, None),
    v2=(0.003, 0.05, 0.02),
    v3=(1e-4, None, None),             # sequence-wise; balance is left to the bias
)
BIAS_RATE = 0.001                      # V3, gamma
BIAS_FROZEN = 14.3 / 14.8              # share of V3's tokens after which gamma is 0
DEVICE_BUDGET = 1.0                    # V2, training only; a tenth of the sequences is exempt

# V1: AdamW (0.9, 0.95), decay 0.1, clip 1.0; warm-up of 2K steps, rate times 0.316 at 80 % and 90 %;
# no dropout, no token dropping, N(0, 0.006^2) everywhere. Tokens, batch and peak of V2 and V3: not at hand.
OPTIM = dict(b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0, warmup_steps=2000, factor=0.316, at=(0.8, 0.9))
RUNS = dict(
    validation=dict(steps=25_000, peak=1.08e-3, batch_size=2048, length=2048, tokens=100e9),
    **{'16b': dict(steps=106_449, peak=4.2e-4, batch_size=4608, length=4096, tokens=2e12)},
    v2_lite=dict(steps=None, peak=None, batch_size=None, length=None, tokens=5.7e12),
    v2=dict(steps=None, peak=None, batch_size=None, length=None, tokens=8.1e12),
    v3=dict(steps=None, peak=None, batch_size=None, length=None, tokens=14.8e12),
)
INIT_STD = 0.006                       # V1, all parameters

# 100B tokens: Pile loss, HellaSwag, PIQA, TriviaQA, of models with 16 experts of full width or the same
# parameters: gshard_15 has experts 1.5 times as wide, dense_16 all 16 active.
REPORTED = dict(
    dense=(2.060, 38.8, 66.8, 4.9), hash=(1.932, 46.2, 68.4, 6.5), switch=(1.881, 49.1, 70.5, 8.9),
    gshard=(1.867, 50.5, 70.6, 10.2), deepseek_moe=(1.808, 54.8, 72.3, 16.6),
    gshard_15=(1.808, 54.4, 71.1, None), dense_16=(1.806, 55.1, 71.9, None))

PARAMETERS = (
    ('deepseek_moe/validation', SIZES['validation']['params'], 1e8),
    ('deepseek_moe/sizes:size=16b', SIZES['16b']['params'], 1e8),
)
COMPUTED = tuple((f'deepseek_moe/sizes:size={size}', SIZES[size]['params'], SIZES[size]['computed'], 0.05)
                 for size in ('v2_lite', 'v2', 'v3'))
