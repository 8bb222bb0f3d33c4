"""Duo-LLM (Alizadeh Vahid et al., 2024, arXiv:2410.10846): what a reading note says; no public code.

Unmarked entries of REPORTED are of the abstract; (u) = of reading notes, unverified. None is not known.
"""

# The note's model (u). Widths of a big and a small module, both SwiGLU. The vocabulary is not stated: 32,000
# tied pieces make the printed count.
MODEL = dict(d_model=2560, layers=12, big=10_240, small=640, params=1.4e9)
VOCAB, HEADS, HEAD_DIM = 32_000, 20, 128                             # ours
OPTIM = DATA = TOKENS = LAMBDA = TAU = None

# Trained routers differ from oracles and are worse. An oracle with a big module in one layer is better than
# big modules in all. (u): the best budget is 6 of 12; with 4 the oracle has its big modules late, with 8
# early; a trained router is about as good as fixed patterns, and as the best of 100 random routes.
REPORTED = dict(one_big_beats_all=True, best_budget=6, late_budget=4, early_budget=8, random_routes=100)

PARAMETERS = (('duo_llm/testbed', MODEL['params'], 1e8),)
