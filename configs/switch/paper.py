"""Switch Transformers (Fedus et al., 2021, arXiv:2101.03961): what the paper and its releases say.

None is what neither gives. Figures named `computed` are what the printed dimensions give,
where the printed parameters say something else.
"""

# Table 9: pre-training models. Layers of each stack; a sparse layer in every `every`-th.
SIZES = dict(
    base=dict(d_model=768, d_ff=2048, num_heads=12, head_dim=64, layers=12, experts=128, gated=True, every=2,
              params=7e9, flops_per_sequence=124e9),
    # Printed 26B; the printed GEGLU experts of width 2816 make 27.2B. The released model (ReLU, 4096)
    # has 26.3B.
    large=dict(d_model=1024, d_ff=2816, num_heads=16, head_dim=64, layers=24, experts=128, gated=True,
               every=2, params=26e9, computed=27.2e9, flops_per_sequence=425e9),
    # 128 experts are as in the released configuration, and give the printed 395B; ST-MoE's
    # table 11 prints 64 experts for the same model, which would make 201B.
    xxl=dict(d_model=4096, d_ff=10240, num_heads=64, head_dim=64, layers=24, experts=128, gated=True, every=2,
             params=395e9, flops_per_sequence=6.3e12),
    # 32 heads (unverified); the released configuration has 30.
    c=dict(d_model=2080, d_ff=6144, num_heads=32, head_dim=64, layers=15, experts=2048, gated=False, every=1,
           params=1571e9, flops_per_sequence=890e9),
)

# The released checkpoints' configurations (google/flaxformer, t5x/configs/moe/models/switch_*.gin).
# group: tokens routed together at most; capacity_factor: (train, eval).
RELEASED = dict(
    base=dict(SIZES['base'], d_ff=3072, gated=False, tied=True, capacity_factor=(1.25, 2.0), min_capacity=4,
              group=8192, params=None),
    large=dict(SIZES['large'], d_ff=4096, gated=False, tied=True, capacity_factor=(1.25, 2.0), min_capacity=4,
               group=4096, params=None),
    xxl=dict(SIZES['xxl'], tied=False, capacity_factor=(1.25, 4.0), min_capacity=2, group=4096, params=None),
    c=dict(SIZES['c'], num_heads=30, tied=False, capacity_factor=(1.0, 2.0), min_capacity=2, group=2048,
           params=None),
)
RELEASED_EXPERTS = (8, 16, 32, 64, 128, 256)   # of Switch-Base

BALANCE = 1e-2                     # alpha, section 2.2
JITTER = 1e-2                      # epsilon of Mesh-TensorFlow; the paper gives none
INIT_SCALE = 0.1                   # section 2.4
OUTPUT_Z = 1e-4                    # released configurations

# Pre-training: optimizer and schedule are T5's defaults (unverified for the paper).
OPTIM = dict(
    optimizer='adafactor',
    schedule='1 / sqrt(max(t, 1e4))',
    tokens_per_batch=2**20,
    steps=550_000,                 # of the models that are fine-tuned: 576B tokens
    ablation_steps=100_000,        # of every comparison
)

# Negative log perplexity on C4 after 100k steps, by experts (0 = dense T5-Base), and parameters:
# the expert-count study of section 3. Its models are the released models (ReLU, 3072, tied head).
EXPERT_SCALING = {
    0: dict(params=223e6, quality=-1.636),
    16: dict(params=1.1e9, quality=-1.505),
    32: dict(params=2.0e9, quality=-1.474),
    64: dict(params=3.8e9, quality=-1.444),
    128: dict(params=7.4e9, quality=-1.432),
    256: dict(params=14.7e9, quality=-1.427),
}
# 64 experts reach T5-Base's loss of 450k steps after 60k.

# Table 1: 128 experts, 100k steps; quality, hours to quality -1.50 (threshold unverified), examples/s.
# Rows (model, capacity factor). The wider Switch-Base+ (-1.534, 67.6, 780) has unknown widths: no config.
CAPACITY = {
    ('dense', None): (-1.731, None, 1600),          # T5-Base
    ('dense_large', None): (-1.550, 131.1, 470),    # T5-Large
    ('moe', 2.0): (-1.547, 68.7, 840),              # top-2, "MoE-Base"
    ('moe', 1.25): (-1.559, 80.7, 790),
    ('moe', 1.0): (-1.572, 80.1, 860),
    ('switch', 2.0): (-1.554, 72.8, 860),
    ('switch', 1.25): (-1.553, 65.0, 910),
    ('switch', 1.0): (-1.561, 62.8, 1000),
}

# Section 2.4: (quality, examples/s); with the router in bfloat16 too, training diverged.
PRECISION = dict(float32=(-1.718, 1160), bfloat16=(-3.780, None), selective=(-1.716, 1390))

# Section 2.4, early training: quality (mean, standard deviation) by scale of the initial variance.
INIT = {0.1: (-2.72, 0.01), 1.0: (-3.60, 0.68)}

# Appendix C compares argmax, sampling from the softmax, input dropout and input jitter; jitter was best.
EXPLORATION = dict(argmax=None, sample=None, dropout=None, jitter=None)   # figures not at hand

# Fine-tuning: 16k steps of 2^20 tokens, evaluated every 200, the peak reported.
FINETUNE = dict(dropout=0.1, expert_dropout=0.4, steps=16_000, eval_every=200, tokens_per_batch=2**20,
                learning_rate=1e-3)            # learning rate (unverified)

# Section 2.4, regularisation in fine-tuning: GLUE, CNN/DM, SQuAD, SuperGLUE.
REGULARISATION = {
    ('dense', 0.1, 0.1): (82.9, 19.6, 83.5, 72.4),      # (model, dropout, expert dropout)
    ('switch', 0.1, 0.1): (84.7, 19.1, 83.7, 73.0),
    ('switch', 0.2, 0.2): (84.4, 19.2, 83.9, 73.2),
    ('switch', 0.3, 0.3): (83.9, 19.6, 83.4, 70.7),
    ('switch', 0.1, 0.4): (85.2, 19.6, 83.7, 73.0),
}

# Table 5: fine-tuned.
TASKS = ('GLUE', 'SQuAD', 'SuperGLUE', 'Winogrande', 'XSum R2', 'ANLI R3', 'ARC-E', 'ARC-C', 'WebQA', 'NatQA',
         'TriviaQA')
REPORTED = dict(
    t5_base=(84.3, 85.5, 75.1, 66.6, 18.7, 51.8, 56.7, 35.5, 26.6, 25.8, 24.5),
    switch_base=(86.7, 87.2, 79.5, 73.3, 20.3, 54.0, 61.3, 32.8, 27.4, 26.8, 30.7),
    t5_large=(87.8, 88.1, 82.7, 79.1, 20.9, 56.6, 68.8, 35.5, 27.7, 27.6, 29.5),
    switch_large=(88.5, 88.6, 84.7, 83.0, 22.3, 58.6, 66.0, 35.5, 31.3, 29.5, 36.9),
)

# Section 4.2: student initialised from the non-expert weights; 0.75 of the loss on labels, 0.25 on the
# teacher.
DISTILLATION = dict(hard=0.75, soft=0.25)
