"""GShard (Lepikhin et al., 2020, arXiv:2006.16668): what the paper says. None is what it does not give."""

# Table of models (section 4): experts per sparse layer, layers (both stacks together), parameters, TPU v3
# cores, tokens per batch, steps per second, days, mean BLEU over 100 languages into English.
# Every other layer is sparse, so 36 layers hold 18 banks of experts. `computed` is what these widths make
# with our backbone (the banks alone: 618B, 206B, 155B, 52B, 39B, 13B), so the printed counts round down.
SIZES = {
    '600b': dict(experts=2048, layers=36, params=600e9, computed=619.3e9, cores=2048, tokens_per_batch=4e6,
                 rate=0.72, days=4.0, bleu=44.3),
    '200b': dict(experts=2048, layers=12, params=200e9, computed=206.5e9, cores=2048, tokens_per_batch=4e6,
                 rate=2.15, days=1.4, bleu=41.3),
    '150b': dict(experts=512, layers=36, params=150e9, computed=155.5e9, cores=512, tokens_per_batch=1e6,
                 rate=1.05, days=11.0, bleu=43.7),
    '50b': dict(experts=512, layers=12, params=50e9, computed=51.9e9, cores=512, tokens_per_batch=1e6,
                rate=3.28, days=3.5, bleu=40.0),
    '37b': dict(experts=128, layers=36, params=37e9, computed=39.5e9, cores=128, tokens_per_batch=1e6,
                rate=0.67, days=17.3, bleu=39.0),
    '12.5b': dict(experts=128, layers=12, params=12.5e9, computed=13.2e9, cores=128, tokens_per_batch=1e6,
                  rate=2.16, days=5.4, bleu=36.7),
}
# All of the above: model width, width of dense layers and experts, heads, width of a head.
WIDTHS = dict(d_model=1024, d_ff=8192, num_heads=16, head_dim=128)

# T(96L), the dense model: 2.3B parameters, 42 days on 2048 cores, BLEU 36.9. Its printed hidden width
# 16384 and 32 heads (of 128, unverified) make 5.7B with 48 + 48 layers of width 1024; the sparse models'
# widths make 2.9B, nearer to the printed 2.3B. Both are `widths=` of the configuration.
DENSE = dict(layers=96, params=2.3e9, computed=5.7e9, cores=2048, tokens_per_batch=4e6, days=42, bleu=36.9)
DENSE_WIDTHS = dict(
    printed=dict(d_model=1024, d_ff=16384, num_heads=32, head_dim=128),
    sparse=WIDTHS,
)

# Section 2 and appendix: capacity 2 S / E for both choices together.
CAPACITY_FACTOR = 2.0
THRESHOLD = 0.5                    # second expert kept with probability 2 g_2
BALANCE = 1e-2                     # the weight k of the auxiliary loss is not given; 0.01 is Mesh's

OPTIM = dict(
    optimizer='adafactor',         # no momentum; second moment 1 - t^-0.8, cap 0.99; update clip 1.0
    schedule='1 / sqrt(max(t, 1e4))',
    learning_rate=1.0,
    dropout=0.1,                   # of inputs, residuals and attention
    dtype='float32',
    vocab_source=64_000, vocab_target=32_000,
    steps=None,                    # days and steps/s give 249k for 600B
)
INIT_SCALE = None                  # not given

BILINGUAL_BLEU = 30.8              # mean of 100 bilingual baselines
# Billions of tokens until the training cross entropy reached 0.7, 0.6, 0.5.
TOKENS_TO_LOSS = {
    '600b': (82, 175, 542), '200b': (176, 484, 1780), '150b': (66, 170, 567), '50b': (141, 486, None),
    '37b': (321, 1074, None), '12.5b': (995, None, None),
}
