"""Dynamic-DINO (arXiv:2507.17436): numbers of two reading notes; the paper itself was not read.

None is what was not found. Detection is not part of this project: the decomposition and the layer are.
"""

D_MODEL, D_FF, LAYERS = 256, 2048, 6     # of the decoder (unverified)
COPIES, K = 16, 2                        # up to 16 copies were tried, larger is better; k = 4 overfits
BALANCE = (0.01, 'mean')                 # the reduction over layers is not stated
EPOCHS = dict(dense=7, tuning=10)
# Zero-shot AP on COCO, LVIS-minival, LVIS-val: the start, their own training of it, and the mixture.
REPORTED = dict(official=(42.9, 33.5, 27.3), dense=(42.6, 31.1, 25.4), dynamic_dino=(43.7, 33.6, 27.4))
INITIALISATION_AP = 0.6                  # what the paired start is worth
