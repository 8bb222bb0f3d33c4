"""ST-MoE (Zoph et al., 2022, arXiv:2202.08906): what the paper and its released configurations say.

None is what neither gives. Quality is negative log perplexity on C4, larger is better.
"""

# Table 11. Layers of each stack that run here: the table prints 27 for the L models and for 32B
# (unverified); 24, with the extra dense layers that 27 may count, is what the released configuration
# has and what gives the printed parameters. A sparse layer in every fourth block.
SIZES = dict(
    dense_l=dict(d_model=1024, d_ff=2816, num_heads=16, head_dim=64, layers=24, printed_layers=27, experts=0,
                 params=0.8e9, flops_per_sequence=645e9),
    l=dict(d_model=1024, d_ff=2816, num_heads=16, head_dim=64, layers=24, printed_layers=27, experts=32,
           params=4.1e9, flops_per_sequence=645e9),
    # flaxformer's gin: 24 + 24 layers, 64 experts, capacity 1.25 / 2.
    st_32b=dict(d_model=5120, d_ff=20480, num_heads=64, head_dim=128, layers=24, printed_layers=27,
                experts=64, params=269e9, flops_per_sequence=20.2e12),
    # The next two are released configurations without a row in the paper.
    base=dict(d_model=768, d_ff=2048, num_heads=12, head_dim=64, layers=12, experts=16, params=None, z=1e-4),
    xl=dict(d_model=2048, d_ff=5120, num_heads=32, head_dim=64, layers=24, experts=16, params=None,
            capacity_factor=(2.0, 4.0), sequences=2),
)
# Other rows of table 11: T5-XXL is configs/t5.py's; Switch-XXL is switch/sizes:size=xxl, printed here with
# 64 experts in every fourth layer, which does not make its 395B.

EVERY = 4
SEQUENCES = 4                      # group: 2048 tokens in the encoder, 456 in the decoder (section 7)
CAPACITY_FACTOR = (1.25, 2.0)      # train, eval: slots per token, for both choices together
THRESHOLD = 0.2                    # appendix G: choice i >= 2 sent with probability min(1, g_i / 0.2)
BALANCE = 1e-2                     # c_B, section 3.3
ROUTER_Z = 1e-3                    # c_z, section 3.3
INIT_SCALE = 0.1

OPTIM = dict(
    optimizer='adafactor',
    schedule='1 / sqrt(max(t, 1e4))',      # 32B: 10k steps of warm-up, then inverse square root
    tokens_per_batch=2**20,
    steps=500_000,                 # of L: 524B tokens
    ablation_steps=100_000,
    steps_32b=1_430_000,           # 1.5T tokens
)
# Shares of the 32B model's pre-training text, of which only C4 and Wikipedia are public.
MIXTURE = dict(c4=.17, web=.34, wikipedia=.05, conversations=.23, forums=.02, books=.17, news=.02)

# Section 3: seeds that stayed stable, seeds run, quality (mean, deviation).
STABILITY = dict(baseline=(4, 6, -1.755, 0.02), clip=(3, 3, -4.206, 0.17), z=(3, 3, -1.741, 0.02))

# Routing algorithms: (choices, train factor, eval factor) -> quality; 32 experts, 100k steps.
ALGORITHMS = {
    (1, 0.75, 2.0): -1.404, (1, 1.0, 2.0): -1.384, (1, 1.25, 1.25): -1.378, (1, 1.25, 2.0): -1.373,
    (2, 0.75, 2.0): -1.402, (2, 1.0, 2.0): -1.378, (2, 1.25, 1.25): -1.375, (2, 1.25, 2.0): -1.369,
    (2, 2.0, 2.0): -1.360, (2, 2.0, 3.0): -1.359, (3, 2.0, 3.0): -1.356,
}
DENSE_QUALITY = dict(l=-1.474, xl=-1.384)
# Batch-prioritised top-1: (train, eval) -> (quality, without priority or None).
BATCH_PRIORITY = {(0.5, 0.5): (-1.433, None), (0.75, 0.75): (-1.409, -1.428), (1.0, 1.0): (-1.386, -1.397),
                  (1.25, 2.0): (-1.375, None)}
# Extra dense layer beside each sparse one; 'random': as many, placed anywhere (unstated where: no config).
EXTRA_FFN = dict(none=-1.383, after=-1.369, before=-1.369, random=-1.376)
# Bias of the experts' gated product; the additive one brought nothing and has no config.
EXPERT_BIAS = dict(none=-1.369, multiplicative=-1.361, additive=-1.371)
# (choices, threshold) -> quality, capacity factor 3.
THRESHOLDS = {(2, 0.2): -1.354, (2, 0.05): -1.356, (3, 0.2): -1.351, (3, 0.05): -1.349}

# Fine-tuning (no configuration here: it needs a pre-trained model). Dropout 0.1, expert dropout higher; rates
# {1e-3, 5e-4, 1e-4} x tokens {1M, 262k, 65k} x optimizer state {kept, reset}.
FINETUNE = dict(sparse_best=(86.9, 1e-3, 2**20, 'kept'), sparse_second=(86.5, 5e-4, 2**16, None),
                dense_best=(85.1, 1e-4, 2**18, None), task_cap=65_536)
# Train capacity factor, balance loss on -> dropped tokens in %, SuperGLUE.
DROPPED = {(.75, True): (10.6, 86.5), (1.25, True): (.3, 86.7), (2., True): (0., 85.8),
           (4., True): (0., 86.4),
           (.75, False): (15.6, 85.7), (1.25, False): (2.9, 85.8)}
# Section 5 (assignment of the two columns with / without sentinels unverified): SuperGLUE dense and
# sparse, GEC sparse.
SENTINELS = dict(superglue_dense=((84.9, .33), (85.1, .25)), superglue_sparse=(86.6, 86.6),
                 gec_sparse=(22.2, 22.9))

# Fine-tuned development scores: Dense-L, L, 32B (32B mostly on test sets).
REPORTED = {
    'SuperGLUE': (85.1, 87.4, 91.2),        # 32B: 93.2 on development sets
    'BoolQ': (87.1, 88.6, 92.4), 'COPA': (83.0, 91.0, 99.2), 'RTE': (91.0, 92.1, 93.5),
    'WiC': (70.4, 74.0, 77.7),
    'MultiRC F1': (83.9, 86.0, 89.6), 'WSC': (95.2, 93.3, 96.6), 'ReCoRD': (85.7, 88.9, 95.1),
    'CB': (100, 98.2, 98.0), 'XSum R2': (19.9, 21.8, 27.1), 'CNN-DM R2': (20.3, 20.7, 21.7),
    'Winogrande': (75.4, 81.7, 96.1), 'ANLI R3': (54.3, 57.3, 74.7), 'ARC-E': (63.5, 75.4, 95.2),
    'ARC-C': (50.2, 56.9, 86.5), 'TriviaQA': (28.1, 33.8, 62.3), 'NatQA': (27.2, 29.5, 41.9),
    'WebQA': (30.5, 33.2, 47.4), 'SQuADv2 F1': (94.0, 94.5, 96.3), 'SQuADv2 accuracy': (87.6, 88.1, 90.8),
}
