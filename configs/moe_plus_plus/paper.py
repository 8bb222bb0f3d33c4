"""MoE++ (Jin et al., 2024, arXiv:2410.07348): what we know of the paper and its released model code.

None is what we do not know. (unverified) is from notes that nobody held against the paper.
"""

# Real and virtual experts, tokens, and parameters by the models' names (unverified). One zero and one copy
# expert, the rest constants; every layer is sparse. Widths: those of configs/moe_plus_plus/sizes.py are ours.
SIZES = {
    '0.6b': dict(experts=8, virtual=4, params=0.6e9, tokens=100e9),
    '1b': dict(experts=16, virtual=4, params=1e9, tokens=100e9),
    '2b': dict(experts=32, virtual=8, params=2e9, tokens=100e9),
    '7b': dict(experts=16, virtual=4, params=7e9, tokens=1e12),
}
K = 2
TAU, GAMMA, BETA = 0.75, 1.1, 0.01   # weight of virtual experts, capacity factor, balance (all unverified)
INIT_STD = 0.02                      # of the released code, which has no training
OPTIM = None                         # optimizer, rate, batch

# Real experts of a token: verbs 1.77 of 2, fragments of words below 1.5. Throughput of the experts' forward
# 1.1 to 2.1 times that of a plain mixture of the same size.
REPORTED = dict(verbs=1.77, fragments=1.5, throughput=(1.1, 2.1))

PARAMETERS = (('moe_plus_plus/sizes', SIZES['0.6b']['params'], 1e8),
              *((f'moe_plus_plus/sizes:size={size}', SIZES[size]['params'], 1e9)
                for size in ('1b', '2b', '7b')))
