"""Taming Sparsely Activated Transformer with Stochastic Experts (Zuo et al., 2021, arXiv:2110.04260).

Unmarked entries are from the released code and its one command (IWSLT'14 German to English);
(unverified) entries are recalled from the paper. None is what neither gives.
"""

# Layers of encoder and decoder each. Expert layers have even index (0, 2, 4, ...).
# The paper prints no parameters for these.
SIZES = dict(
    iwslt=dict(d_model=512, d_ff=1024, num_heads=4, head_dim=128, layers=6, experts=2, dropout=0.3,
               params=None),
    # transformer_big; the experts are the paper's (unverified), the command is not released.
    wmt_en_de=dict(d_model=1024, d_ff=4096, num_heads=16, head_dim=64, layers=6, experts=4, dropout=0.3,
                   params=None),
    wmt_en_fr=dict(d_model=1024, d_ff=4096, num_heads=16, head_dim=64, layers=6, experts=4, dropout=0.1,
                   params=None),
)
# Multilingual, WMT-10 (unverified): 12 + 6 layers, about 300M parameters, 64k pieces, 32.5M pairs of ten
# languages with English; Switch baselines of 4 and 32 experts. No data pipeline is released: no config.
MULTILINGUAL = dict(encoder=12, decoder=6, params=300e6, vocab=64_000, pairs=32.5e6,
                    switch_experts=(4, 32))

CONSISTENCY = 5.0                  # alpha of the command; its default 1.0, in the paper 1 to 5 (unverified)
INFERENCE_LEVEL = 1                # "sentence", which the code draws for each time step; default 0, "token"

OPTIM = dict(
    optimizer='adam', b1=0.9, b2=0.98, weight_decay=1e-4, clip=0.0,
    schedule='inverse_sqrt', learning_rate=1e-3, warmup_steps=4000,
    tokens_per_batch=4096 * 8, steps=None,         # the command states no number of updates
    label_smoothing=0.1, precision='float16',
)
VOCAB_SIZE = None                  # one joined dictionary for both languages; its size is not stated

# BLEU (unverified): beam 5 (low resource), beam 4 with length penalty 0.6 (WMT).
REPORTED = {
    ('iwslt14_de_en', 'transformer'): 34.8,
    ('iwslt14_de_en', 'switch'): None,
    ('iwslt14_de_en', 'thor'): 37.8,
}
# Abstract: multilingual THOR is 2 BLEU above Switch, and equals a mixture of experts 18 times larger.
MULTILINGUAL_GAIN = dict(over_switch=2.0, smaller=18)
# Low-resource pairs, gain over Transformer and Switch, which are equal to 0.5 BLEU (unverified).
LOW_RESOURCE_GAIN = (2.0, 3.0)
