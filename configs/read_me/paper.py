"""Read-ME (arXiv:2410.19123, the number is unverified): what the released training scripts say.

None is what was not found.
"""

BASE = dict(name='Llama-2-7B-chat', d_ff=11_008)
DOMAINS, SHARE = 7, 0.5                  # of RedPajama; an expert has SHARE of the units, less one
UNITS = 5503                             # of an expert
ROUTER = dict(depth=2, divisor=1.0, width=None, heads=None)
ROUNDS, STEPS = 5, dict(router=100, rest=200)      # rates are multiplied by RATE_FACTOR every round
RATE_FACTOR = 0.8
LENGTH = 2048
BATCH = dict(router=16 * 2, rest=32 * 1)           # sequences: accumulated batches times their size
LOSS = dict(hard=0.75, smoothing=0.5)
REPORTED = dict(mmlu=10.1, latency=-0.061)         # points over open dense models of its size; mean latency
