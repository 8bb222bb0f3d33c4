"""Sparse MoE as the New Dropout (Chen et al., 2023, arXiv:2303.01610): what paper and released scripts say.

Unmarked entries are from the released Transformer-XL scripts; (unverified) entries are recalled from the
paper. None is what neither gives.
"""

# Enwik8, table 1 and figure 5: embeddings tied, post-norm.
MODEL = dict(d_model=256, num_heads=8, head_dim=64, layers=4, experts=16, d_ff=512, dense_d_ff=8192,
             dropout=0.1, attention_dropout=0.0, memory=512, params=None)
LENGTH = 512                       # of training; evaluation reads 128 at a time with a memory of 896
DEPTHS = (4, 8, 12)                # figure 5: layers 0 to 3 are sparse, also at 8 and 12; others are dense,
DEPTH_D_FF = 512                   # and small

# k: 8 to 16 in the released scripts; the paper's text starts smaller (unverified).
SCHEDULE = dict(schedule='linear_increase', k_min=8, k_max=16, steps=400_000)
TOP_K = 2                          # of the second evaluation, and of the learned baseline (unverified)

OPTIM = dict(
    optimizer='adam', b1=0.9, b2=0.999, weight_decay=0.0, clip=0.25,
    schedule='cosine to 0, no warm-up', learning_rate=2.5e-4, steps=400_000, batch=22,
    eval_every=4000, eval_batch=10, seed=1111,
)
BALANCE = None                     # weight of the learned baseline's balance loss: not stated
INIT = 0.02                        # every matrix N(0, 0.02^2), router and experts too; biases 0

# SST-2 (table 2), from the checkpoint: all experts, router still frozen, 5k steps of 16 sequences.
FINETUNE = dict(k=16, learning_rate=1e-4, schedule='cosine to 0, no warm-up', steps=5000, batch=16,
                eval_every=500, memory=128)

# BERT-base and RoBERTa-base with 16 experts on BookCorpus (unverified), no code released. Abstract: gains
# over the dense model in points of accuracy, and training time saved at most.
BERT_GAIN = dict(asdiv_a=1.03, mawps=0.78, svamp=1.09)
TIME_SAVED = 0.37
# Bits per character of table 1: not at hand.
REPORTED = dict(smoe_dropout=None, dense=None, learned=None, thor=None)
