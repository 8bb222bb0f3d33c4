"""Avg-K (Liu et al., 2023, arXiv:2305.13999): what is at hand of the paper; (u) = from memory, not checked.

None is what is not at hand.
"""

# Decoder of GPT-3's 355M class (u): a sparse layer in every second block, also in every fourth.
SIZE = dict(d_model=1024, num_heads=16, head_dim=64, layers=24, d_ff=4096, length=1024, vocab_size=51200,
            params=355e6)
EVERY = (2, 4)
E = (4, 8, 16, 32)                   # sizes of the memory in dense layers, mainly 16 (u)
BLOCKS = (4096, 2048, 1024, 512, 256, 128, 64, 1)   # cells of a block (u); 4096 active cells in all
BALANCE = 0.01                       # of Switch; Avg-K has no balance loss
TOKENS = 60e9                        # RoBERTa's corpora and CC100 English (u)
OPTIM = None                         # Adam

# About 1 % more FLOPs than Switch, lower perplexity than Switch and Hash. At E = 16 1 to 2 points below
# Switch, falling with the size of a block from 4096 to 64 cells (u); the tables are not at hand.
REPORTED = None

PARAMETERS = (('avg_k/blocks:method=dense', SIZE['params'], 1e7),)
