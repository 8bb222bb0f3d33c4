"""SMILE (He et al., 2022, arXiv:2212.05191): what its abstract and public summaries say.

The paper's text is not at hand and no code is public. None is not known; (unverified) is from memory.
"""

# Masked language models on C4 (unverified), sparse in every second layer (unverified), one expert a GPU.
SIZES = {'3.7b': dict(d_model=None, layers=None, nodes=16, local=8, params=3.7e9)}       # all unverified
LARGER = (13e9, 48e9)              # (unverified)
CAPACITY_FACTOR = 2.0              # (unverified)
ALPHA, BETA = 0.005, 0.005         # of the balance losses of nodes and of local experts (unverified)
OPTIM = None
SPEEDUP = 2.5                      # of pre-training over Switch, at equal convergence a step (abstract)
