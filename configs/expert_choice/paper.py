"""Mixture-of-Experts with Expert Choice Routing (Zhou et al., 2022, arXiv:2202.09368): what the paper says.

None is what it does not give.
"""

# Models: decoders after GLaM; every second layer sparse. Parameters by experts (0 = dense), active ones.
# A vocabulary of 32,000 with a tied head gives the printed figures; with the 256,000 pieces that the
# text names they would be 0.17B (0.1B) and 0.9B (8B) larger.
SIZES = {
    '0.1b': dict(d_model=768, d_ff=3072, num_heads=12, head_dim=64, layers=12,
                 # Dense prints 130M; gated layers throughout make 138M.
                 params={0: 130e6, 16: 548e6, 32: 1.0e9, 64: 1.9e9, 128: 3.7e9}, computed={0: 138e6},
                 # Active prints 145M; two experts and one of all other matrices make 152M.
                 active=145e6, computed_active=152e6),
    '8b': dict(d_model=4096, d_ff=16384, num_heads=32, head_dim=128, layers=32, params={0: 8.7e9, 64: 143e9},
               active=9.8e9),
}
VOCAB_SIZE = 32_000
LENGTH = 1024

CAPACITY_FACTOR = 2.0              # c: average experts per token
OPTIM = dict(
    optimizer='adafactor',         # beta1 0, beta2 0.99
    schedule='constant for 10k steps, then inverse square root',
    learning_rate=0.01,            # GLaM's (unverified)
    dropout=0.0,
    tokens=1.6e12, tokens_per_batch=None, balance=0.0,
)
# The baselines' balance loss: GLaM's weight is not given here; Switch's 0.01 is taken.
BASELINE_BALANCE = 1e-2

# Section 3.3, the capped variant: at most b experts per token, entropy lambda, iterations.
CAPPED = dict(entropy=1e-3, sweeps=100, caps=(2, 3))

# flaxformer's encoder-decoders (t5x/configs/moe/models/experts_choose_*.gin): expert choice in the
# encoder, top-2 token choice in the decoder; layers and experts as there, None = not at hand.
FLAXFORMER = dict(
    small=dict(experts=32), base=dict(experts=64), large=dict(experts=64), xl=dict(experts=None),
    xxl=dict(experts=None),
)
FLAXFORMER_OPTIM = dict(capacity_factor=(1.0, 1.0), group=4096, balance=1e-2, router_z=0.0, init_scale=0.1,
                         every=2)

# Mean of 11 GLUE and SuperGLUE tasks: Switch top-1, GShard top-2, expert choice c = 2.
REPORTED = {
    ('0.1b', 32): (80.6, 83.5, 85.0), ('0.1b', 64): (78.4, 82.2, 84.0), ('0.1b', 128): (81.0, 81.3, 82.6),
    ('8b', 64): (88.9, 90.3, 92.6), ('8b', 0): (89.2,),
}
# The same per task, 0.1B with 64 experts: the text names no size beside 64E, but these are the means above.
REPORTED_TASKS = {
    'BoolQ': (73.2, 77.5, 79.7), 'CB': (85.9, 84.4, 89.1), 'CoLA': (64.1, 85.2, 88.3),
    'MNLI': (80.8, 85.2, 86.7),
    'MRPC': (81.3, 81.3, 84.4), 'QNLI': (89.4, 89.7, 91.3), 'QQP': (88.9, 90.5, 91.0),
    'RTE': (74.1, 79.3, 81.6),
    'SST2': (91.8, 95.1, 95.1), 'WiC': (64.4, 67.8, 65.6), 'WNLI': (68.8, 68.8, 71.7),
}
# Same mean, 0.1B with 64 experts: mean, deviation.
REPORTED_CAPPED = dict(cap2=(83.2, .4), cap3=(84.0, .4), uncapped=(84.0, .2), hash=(81.3, .1))
