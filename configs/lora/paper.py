"""LoRA (2021, arXiv:2106.09685): what we know of it. None is what is not at hand.

The adapter is stmoe/parts/adapters/lora.py. Rank-stabilised scales are of arXiv:2312.03732, magnitudes (DoRA)
of arXiv:2402.09353.
"""

RANK = ALPHA = TARGETS = OPTIM = REPORTED = None
# A begins as Kaiming's uniform draw with a = sqrt(5), which is U(-1 / sqrt(in), 1 / sqrt(in)), or as a normal
# draw of deviation 1 / r. B begins as 0.
B_INIT = 0.0
