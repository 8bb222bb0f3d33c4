"""SparseMixer (Liu, Gao and Chen, 2023, arXiv:2310.00811): what its released translation example says.

Example: microsoft/SparseMixer, example/run_moe.sh and the layers beside it. (unverified) entries are recalled
from the paper or are fairseq's defaults. None is what neither gives.
"""

# Layers of encoder and decoder each; those of index 0, 2 and 4 are sparse. Widths: fairseq's base
# (unverified for the architecture that the example registers). Parameters are not printed.
SIZE = dict(d_model=512, d_ff=2048, num_heads=8, head_dim=64, layers=6, params=None)
EXPERTS = (2, 4, 6, 8, 16)         # of the paper's sweep; the command has 4
DEFAULT_EXPERTS = 4
EPSILON = 0.1                      # of both routers
BALANCE = 0.01                     # summed over the sparse layers of encoder and decoder
CAPACITY = None                    # nothing is dropped

OPTIM = dict(
    optimizer='adam', b1=0.9, b2=0.98, weight_decay=0.0, clip=0.0, learning_rate=7e-4, warmup_steps=8000,
    steps=400_000, tokens_per_batch=8192 * 16,       # GPUs times accumulation
    dropout=0.1, label_smoothing=0.1, precision='float16')
ACTIVATION_DROPOUT = ATTENTION_DROPOUT = 0.1
VOCAB_SIZE = None                  # one joined dictionary; its size is not stated

# BLEU on WMT'14 English to German by number of experts, dense 28.33 (all digits unverified).
REPORTED = dict(
    switch={2: 28.17, 4: 28.05, 6: 27.96, 8: 27.99, 16: 27.81},
    sparsemixer={2: 28.72, 4: 28.61, 6: 28.32, 8: 28.12, 16: 28.08})
DENSE_BLEU = 28.33
# Second experiment: ELECTRA-base discriminators of two experts, evaluated on GLUE; details are not known.
ELECTRA = None
