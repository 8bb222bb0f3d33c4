"""PEER (He, 2024, arXiv:2407.04153): what is at hand of the paper; None is what is not.

A reading note gives the retrieval and the experts: queries in two halves, 2 sqrt(E) keys, k of each half, the
best k of k^2 sums, one neuron an expert. Sizes, optimizer and results are not in the note.
"""

D_EXPERT = 1                         # hidden units of an expert
GATES = 'softmax'                    # over the k of a head; the released port has a ReLU of each score
SIZES = HEADS = K = D_KEY = EXPERTS = ACTIVATION = OPTIM = TOKENS = REPORTED = None
